// %%{title}: what the app's own build.gradle.kts needs. Merge this into it; it is not a build file by itself.
// The versions are the oldest that read these files; take the newest that Maven has.

android {
    androidResources {
        noCompress += listOf("onnx", "ort", "tflite")
    }
}

dependencies {
%%{dependencies}
}
