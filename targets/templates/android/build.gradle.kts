// %%{models[0].name|comment} %%{models[0].version|comment}: what the app's own build.gradle.kts needs. Merge this into it; it is not a build file by itself.
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
<% for model in models %>
    %%{"" if loop.first else "// "}implementation("%%{model.coordinates}")  // %%{model.file|comment} on %%{model.runtimes|join(", ")}; brings
<%- for _, artifact, version in model.dependencies %> %%{artifact} %%{version}%%{"" if loop.last else ","}<% endfor +%>
<% endfor %>
    testImplementation("%%{models[0].golden_coordinates}")
    androidTestImplementation("%%{models[0].golden_coordinates}")
}
