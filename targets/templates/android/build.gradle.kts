// %%{title}: what the app's own build.gradle.kts needs. Merge this into it; it is not a build file by itself.
//
// settings.gradle.kts says where models are published, beside google() and mavenCentral():
//     dependencyResolutionManagement { repositories { maven { url = uri("REGISTRY/maven") } } }
//
// Take the artifact that the app runs; it brings the runtime that it needs, in the oldest version that reads these files.
// An app may ask for a newer one. The -golden artifact is for tests.

android {
    androidResources {
        noCompress += listOf("onnx", "ort", "tflite")
    }
}

dependencies {
%%{dependencies}
}
