#!/usr/bin/env bash
# Be an iOS team: git pulls the demo model's Swift package from a registry, as SwiftPM does; the zip of the same version has the
# checksum that SwiftPM would ask for; where a Swift toolchain is, SwiftPM resolves a fresh app against the package, builds it,
# prepares the golden pictures and makes a mistake that must be named; coremltools, where it is, reads the Core ML packages.
# Core ML itself runs on Apple systems only: nothing here runs the model.
#   scripts/pull_as_ios.sh REGISTRY [WORKDIR]
#     REGISTRY     a folder or a URL that `edge-export publish` wrote to
#     WORKDIR      a new folder to work in; without it, a temporary one that is removed afterwards
#   EDGE_PACKAGE=NAME  another Swift package than digits-cnn-coreml
#   EDGE_PYTHON=PATH   a Python with coremltools; otherwise that of scripts/demo or scripts/test, if one of them was run
set -euo pipefail

fail() { # EXIT-CODE CAUSE FIX
    echo "error: $2; fix: $3" >&2
    exit "$1"
}

[ $# -ge 1 ] && [ $# -le 2 ] || fail 2 "name a registry, and a folder if you like" "scripts/pull_as_ios.sh REGISTRY [WORKDIR]"
package=${EDGE_PACKAGE:-digits-cnn-coreml}
[[ $package =~ ^[a-z0-9][a-z0-9._-]*$ ]] ||
    fail 2 "EDGE_PACKAGE is '$package', which is no package's name" "take it from edge-export list REGISTRY NAME"
command -v git >/dev/null || fail 12 "there is no git here" "apt-get install git"
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

registry=${1%/}
if [[ $registry == http://* || $registry == https://* ]]; then
    base=$registry
else
    [ -d "$registry" ] || fail 10 "$registry is no folder" "name a registry: edge-export publish BUNDLE REGISTRY makes one"
    registry=$(cd "$registry" && pwd)
    base=file://${registry// /%20}
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

# SwiftPM keeps a mirror of every repository that it depends on, and checks a tag out of it.
url=$base/swift/$package.git
git clone --quiet --mirror "$url" mirror.git 2>git.log ||
    fail 10 "$registry has no Swift package $package ($(tail -1 git.log))" "publish it: edge-export publish BUNDLE REGISTRY"
git -C mirror.git fsck --strict >/dev/null 2>git.log || fail 19 "the repository is damaged ($(head -1 git.log))" "publish it again"
tag=$(git -C mirror.git tag --sort=-version:refname | head -1)
[ -n "$tag" ] || fail 19 "$url has no version" "publish it again"
git clone --quiet --branch "$tag" mirror.git package 2>/dev/null
commit=$(git -C package rev-parse HEAD)
echo "package    $package $tag, commit ${commit:0:12}, $(git -C package ls-files | wc -l) files"

archive=$package-$tag.zip
fetch() { # NAME
    case $base in
    file://*) cp "$registry/swift/$package/$tag/$1" . ;;
    *) curl -fsS --retry 2 -O "$base/swift/$package/$tag/$1" ;;
    esac || fail 19 "the registry has no $1 beside the repository" "publish it again"
}
fetch "$archive"
fetch "$archive.sha256"
told=$(cut -d' ' -f1 "$archive.sha256")
has=$(sha256sum "$archive" | cut -d' ' -f1)
[ "$told" = "$has" ] || fail 19 "$archive has SHA-256 ${has:0:16}..., its checksum says ${told:0:16}..." "publish it again"
python3 -m zipfile -e "$archive" unpacked
diff -r --exclude=.git package unpacked/* >diff.log || fail 19 "zip and repository differ ($(head -1 diff.log))" "publish it again"
echo "zip        the same files, checksum ${has:0:16}..."

golden=$(sed -n 's/.*\.library(name: "\([A-Za-z0-9]*Golden\)".*/\1/p' package/Package.swift)
product=$(sed -n 's/.*\.library(name: "\([A-Za-z0-9]*\)".*/\1/p' package/Package.swift | head -1)
prefix=$(basename package/Sources/"$golden"/*Golden.swift Golden.swift)
if swift=$("$root/scripts/swift_toolchain" 2>/dev/null); then
    mkdir -p app/Sources/App
    cat >app/Package.swift <<SWIFT
// swift-tools-version: 5.9
import PackageDescription
let package = Package(
    name: "App", platforms: [.iOS("17.0"), .macOS("14.0")],
    dependencies: [.package(url: "$url", exact: "$tag")],
    targets: [.executableTarget(name: "App", dependencies: [
        .product(name: "$product", package: "$package"), .product(name: "$golden", package: "$package"),
    ])]
)
SWIFT
    cat >app/Sources/App/main.swift <<SWIFT
import $product
import $golden

let golden = try ${prefix}Golden.load()
var pictures = 0
for sample in golden.samples {
    for (name, picture) in sample.pictures {
        let got = ${prefix}Preprocessing.tensor(rgba: picture.rgba, width: picture.width, height: picture.height)
        let wanted = try sample.input(name).values.map { Float(\$0) }
        let finding = ${prefix}Mistakes.name(expected: wanted, got: got)
        guard finding.isAgreement else { fatalError("sample \(sample.number): \(finding)") }
        pictures += 1
        if pictures == 1 {
            let wrong = ${prefix}Mistakes.name(expected: wanted, got: got.map { \$0 / 255 })
            print("mistake    divided by 255 once more: \(wrong)")
        }
    }
}
print("pictures   \(pictures) golden pictures prepared by the package as in calibration")
SWIFT
    # What SwiftPM remembers of other registries at this URL is not this project's: caches and fingerprints of its own.
    own=(--cache-path "$work/cache" --config-path "$work/config" --security-path "$work/security")
    (cd app && "$swift" package "${own[@]}" resolve >resolve.log 2>&1) ||
        fail 10 "SwiftPM does not resolve the package ($(grep -m1 error app/resolve.log))" "see docs/integrate-ios.md"
    echo "swiftpm    $(grep -m1 -o 'resolved at.*' app/resolve.log || echo "resolved $tag")"
    (cd app && "$swift" build "${own[@]}" >build.log 2>&1) ||
        fail 70 "what SwiftPM pulled does not compile ($(grep -m1 error: app/build.log))" "report this as a bug"
    # A toolchain that was unpacked beside the host's own libraries runs what it made through its own env.
    run=()
    [ -x "$(dirname "$swift")/env" ] && [[ $swift == */edge-exporter/* ]] && run=("$(dirname "$swift")/env")
    (cd app && "${run[@]}" .build/debug/App >run.log 2>&1) ||
        fail 19 "the package does not prepare its own golden pictures ($(grep -m1 -i fatal app/run.log))" "publish it again"
    cat app/run.log
else
    echo "swiftpm    not run: no Swift here (scripts/swift_toolchain --install brings one)"
fi

python=${EDGE_PYTHON:-}
for candidate in "$root/.venvs/run/bin/python" "$root/.venvs/dev/bin/python"; do
    [ -z "$python" ] && [ -x "$candidate" ] && python=$candidate
done
packages=$(find package -name '*.mlpackage' | sort)
if [ -n "$packages" ] && [ -n "$python" ] && "$python" -c 'import coremltools' 2>/dev/null; then
    # shellcheck disable=SC2086
    "$python" - $packages 2>/dev/null <<'PYTHON' || fail 19 "coremltools does not read what was pulled" "publish it again"
import sys
from pathlib import Path

import coremltools

for path in sys.argv[1:]:
    description = coremltools.models.MLModel(path, skip_model_load=True).get_spec().description
    told = description.metadata.userDefined
    print(f"core ml    {Path(path).name}: {', '.join(item.name for item in description.input)}; says {told.get('edge.model', '-')}")
PYTHON
elif [ -n "$packages" ]; then
    echo "core ml    not read: no coremltools here (name a Python that has it: EDGE_PYTHON=...)"
fi
echo "pulled     $package $tag with git from $registry"
