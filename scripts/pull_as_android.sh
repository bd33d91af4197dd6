#!/usr/bin/env bash
# Be an Android team: Gradle pulls the demo model's AAR and its golden vectors from a registry into a fresh project; javac
# compiles an app's code against what came; on the JVM it checks the model's digest, prepares the golden pictures and makes a
# mistake that must be named. The runtime itself (LiteRT, onnxruntime) is for phones: it is neither pulled nor run.
#   scripts/pull_as_android.sh REGISTRY [WORKDIR]
#     REGISTRY     a folder or a URL that `edge-export publish` wrote to
#     WORKDIR      a new folder to work in; without it, a temporary one that is removed afterwards
#   EDGE_MODULE=GROUP:ARTIFACT  another artifact than edge.models:digits-cnn-static-wi8-ai8-tflite
set -euo pipefail

fail() { # EXIT-CODE CAUSE FIX
    echo "error: $2; fix: $3" >&2
    exit "$1"
}

usage="scripts/pull_as_android.sh REGISTRY [WORKDIR]"
[ $# -ge 1 ] && [ $# -le 2 ] || fail 2 "name a registry, and a folder if you like" "$usage"
module=${EDGE_MODULE:-edge.models:digits-cnn-static-wi8-ai8-tflite}
[[ $module =~ ^[a-z][a-z0-9_.]*:[a-z0-9][a-z0-9._-]*$ ]] ||
    fail 2 "EDGE_MODULE is '$module', which is no GROUP:ARTIFACT" "take it from edge-export list REGISTRY NAME"
command -v gradle >/dev/null || fail 12 "there is no gradle here" "apt-get install gradle"
command -v javac >/dev/null || fail 12 "there is no javac here" "apt-get install default-jdk-headless"

registry=${1%/}
if [[ $registry == http://* || $registry == https://* ]]; then
    repository=$registry/maven
else
    [ -d "$registry" ] || fail 10 "$registry is no folder" "name a registry: edge-export publish BUNDLE REGISTRY makes one"
    registry=$(cd "$registry" && pwd)
    repository=file://${registry// /%20}/maven
fi

if [ $# -eq 2 ]; then
    work=$2
    mkdir -p "$work" 2>/dev/null || fail 15 "$work cannot be made" "name a folder that can be written"
    [ -z "$(ls -A "$work")" ] || fail 2 "$work is not empty" "name a new folder: what is there already proves nothing"
    work=$(cd "$work" && pwd)
else
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
cd "$work"

: >settings.gradle
cat >build.gradle <<GRADLE
repositories {
    maven {
        url '${repository//\'/%27}'
        // Gradle 7 and newer want it said that a registry on this machine speaks plain HTTP.
        if (delegate.hasProperty('allowInsecureProtocol')) { allowInsecureProtocol = true }
    }
}
configurations { app; tests }
dependencies {
    app('$module:latest.release@aar') { transitive = false }
    tests '$module-golden:latest.release'
}
task pull {
    doLast {
        def pulled = { configuration -> configuration.resolvedConfiguration.resolvedArtifacts.first() }
        println "version \${pulled(configurations.app).moduleVersion.id}"
        copy { from configurations.app; into 'aar' }
        copy { from configurations.tests; into 'tests' }
    }
}
GRADLE
if ! gradle -q --no-daemon -g "$work/gradle-home" pull >gradle.log 2>&1; then
    reason=$(grep -m1 -E 'Could not (find|GET|HEAD)|efused' gradle.log | sed 's/^[> ]*//' || true)
    fail 10 "$registry has no $module for Gradle (${reason:-$(head -1 gradle.log)})" \
        "publish the model where that is kept: edge-export publish BUNDLE REGISTRY"
fi
coordinates=$(sed -n 's/^version //p' gradle.log)

mkdir library
(cd library && jar xf ../aar/*.aar)
package=$(sed -n 's/.*package="\([^"]*\)".*/\1/p' library/AndroidManifest.xml)
cat >App.java <<JAVA
import $package.GoldenVectors;
import $package.ModelInfo;
import $package.Preprocessing;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.util.List;

public final class App {
    public static void main(String[] arguments) throws Exception {
        ModelInfo info = ModelInfo.get();
        byte[] model = Files.readAllBytes(Paths.get("library/assets", info.asset()));
        info.requireValidated(ByteBuffer.wrap(model));
        System.out.println("model      " + info.name() + " " + info.version() + " as " + info.artifact() + ": "
                + model.length + " bytes, SHA-256 " + info.sha256().substring(0, 16) + "... as validated");
        GoldenVectors golden = GoldenVectors.read();
        if (!golden.hasPictures()) {
            System.out.println("pictures   none: this bundle's golden vectors start from tensors");
            return;
        }
        List<String> mistakes = golden.preparationMistakes(Preprocessing::tensor);
        if (!mistakes.isEmpty()) {
            throw new IllegalStateException(mistakes.get(0));
        }
        System.out.println("pictures   " + golden.size() + " golden pictures prepared on the JVM as in calibration");
        mistakes = golden.preparationMistakes((argb, width, height) -> {
            Object tensor = Preprocessing.tensor(argb, width, height);
            for (int index = 0; tensor instanceof float[] && index < ((float[]) tensor).length; index++) {
                ((float[]) tensor)[index] /= 255;
            }
            return tensor;
        });
        System.out.println("mistake    divided by 255 once more: " + mistakes.get(0));
    }
}
JAVA
javac -d classes -cp "library/classes.jar:$(echo tests/*.jar)" App.java ||
    fail 70 "what Gradle pulled does not compile" "report this as a bug"
java -cp "classes:library/classes.jar:$(echo tests/*.jar)" App >app.log 2>&1 ||
    fail 19 "what Gradle pulled is not what was validated ($(grep -m1 Exception app.log))" "publish the bundle again"
cat app.log
echo "pulled     $coordinates with Gradle from $registry"
