#!/usr/bin/env bash
# Be a Raspberry Pi: pip installs the demo model from a registry into a fresh environment; three lines of Python
# predict from a golden picture; the installed command replays the golden vectors.
#   scripts/pull_as_pi.sh REGISTRY [WORKDIR] [--emulated]
#     REGISTRY     a folder or a URL that `edge-export publish` wrote to
#     WORKDIR      a new folder to work in; without it, a temporary one that is removed afterwards
#     --emulated   the same again on an emulated Cortex-A76 (a Raspberry Pi 5's core), with aarch64's own pip and runtimes
#   EDGE_MODEL=NAME  another model than digits-cnn;  PYTHON=PROGRAM  another Python than python3
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() { # EXIT-CODE CAUSE FIX
    echo "error: $2; fix: $3" >&2
    exit "$1"
}

usage="scripts/pull_as_pi.sh REGISTRY [WORKDIR] [--emulated]"
emulated=
places=()
for argument in "$@"; do
    case $argument in
        --emulated) emulated=yes ;;
        -h | --help) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" && exit ;;
        -*) fail 2 "there is no option $argument" "$usage" ;;
        *) places+=("$argument") ;;
    esac
done
[ "${#places[@]}" -ge 1 ] && [ "${#places[@]}" -le 2 ] || fail 2 "name a registry, and a folder if you like" "$usage"

model=${EDGE_MODEL:-digits-cnn}
[[ $model =~ ^[a-z0-9][a-z0-9._-]*$ ]] || fail 2 "EDGE_MODEL is '$model', which is no model's name" "use letters, digits and -"
project=$(sed -E 's/[-_.]+/-/g' <<<"$model-edge")
module=${project//-/_}
[[ $module =~ ^[0-9] ]] && module=model_$module

python=${PYTHON:-python3}
command -v "$python" >/dev/null || fail 12 "there is no $python here" "apt-get install python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail 12 "$("$python" -V) is too old" "use Python 3.11 or newer: PYTHON=python3.11 $usage"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail 12 "$python cannot make virtual environments" "apt-get install python3-venv"

registry=${places[0]%/}
if [[ $registry != *://* ]]; then
    [ -d "$registry" ] || fail 10 "$registry is no folder" "name a registry: edge-export publish BUNDLE REGISTRY makes one"
    registry=$("$python" -c 'import pathlib, sys; print(pathlib.Path(sys.argv[1]).absolute().as_uri())' "$registry")
fi
index=$registry/simple/
page=$index$project/
[[ $page == file:* ]] && page=${page}index.html
told=$("$python" -c '
import sys, urllib.request
try:
    urllib.request.urlopen(sys.argv[1], timeout=30).read()
except (OSError, ValueError) as error:
    sys.exit(str(getattr(error, "reason", error)))
' "$page" 2>&1) ||
    fail 10 "$registry has no $project for pip ($told)" "publish the model where that is kept: edge-export publish BUNDLE REGISTRY"

if [ "${#places[@]}" -eq 2 ]; then
    work=${places[1]}
    mkdir -p "$work" 2>/dev/null || fail 15 "$work cannot be made" "name a folder that can be written"
    [ -z "$(ls -A "$work")" ] || fail 2 "$work is not empty" "name a new folder: what is there already proves nothing"
    work=$(cd "$work" && pwd)
else
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
fi
cd "$work"

say() { printf '\n$ %s\n' "$*"; }

say "python -m venv venv && . venv/bin/activate"
"$python" -m venv venv >venv.log 2>&1 || fail 15 "no virtual environment could be made: $(tail -n 1 venv.log)" "free some space"
wish="${project}[onnxruntime]"
say "pip install \"$wish\" --extra-index-url $index"
# What is wrong with the registry or the network is in pip's last error line.
venv/bin/python -m pip install --no-input --disable-pip-version-check "$wish" --extra-index-url "$index" \
    --report pip.json >pip.log 2>&1 ||
    fail 19 "pip did not install it: $(grep -E '^ *(ERROR|Expected|Got)' pip.log | tr -s ' \n' ' ' || tail -n 1 pip.log)" \
        "see $work/pip.log, if you named a folder; a hash that does not match means a damaged registry"
grep -E '^Successfully installed' pip.log
# pip takes a name from any of its indexes: make sure that it was this one.
venv/bin/python -c '
import json, sys
index, project = sys.argv[1:]
items = json.load(open("pip.json"))["install"]
(took,) = [item["download_info"] for item in items if item["metadata"]["name"] == project]
url, sha256 = took["url"], took["archive_info"]["hashes"]["sha256"]
print(f"{project} is {url}\n  SHA-256 {sha256}")
sys.exit(not url.startswith(index))
' "$index" "$project" || fail 19 "$project came from another index than $index" "install it by the line with its digest: edge-export list $registry"

three_lines="from $module import Model
model = Model()
best = model.predict(picture)"
picture=$(venv/bin/python -c "
import json
from $module import run
folder = run.BUNDLE / 'golden'
sample = json.loads((folder / 'golden.json').read_text())['samples'][0]
name, file = next(iter({**sample['inputs'], **sample.get('raw', {})}.items()))
print(folder / file)
")
[[ $picture == *.npy ]] && echo "(this bundle has no golden pictures: taking the first golden tensor)"
say "python"
sed 's/^/>>> /' <<<"$three_lines" | sed "s|picture)|\"${picture##*/}\")|"
venv/bin/python -c "
picture = '$picture'
$three_lines
print(model)
for label, score in best:
    print(f'{score:12.5f}  {label}')
"

say "$project --replay"
venv/bin/"$project" --replay

if [ -n "$emulated" ]; then
    edge_python=${EDGE_PYTHON:-$("$root/scripts/environment" run)}
    pip_folder=$(venv/bin/python -c 'import pip, pathlib; print(pathlib.Path(pip.__file__).parent)')
    cd "$root"
    "$edge_python" scripts/pull_on_arm.py "$index" "$project" "$module" "$picture" "$pip_folder" "$work"
fi
printf '\npulled and proven: %s\n' "$project"
