#!/usr/bin/env bash
# Make, on a machine with network, the environment of a GPU machine without it, and the wheels to bring along:
#
#     bash benchmarks/gpu/environment.sh FOLDER [PYTHON3.12]
#
# FOLDER/env gets the packages of machine.txt and no others (6 GB), and FOLDER/wheels those of brought.txt, which must stay
# within 64 MiB. If interrupted, it resumes when started again. Then, to find what these versions break:
#
#     PROOF_PYTHON=FOLDER/env/bin/python bash benchmarks/gpu/prove.sh --rehearse --wheels FOLDER/wheels --out OUT
set -euo pipefail
if [ $# -lt 1 ]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1/wheels"
folder=$(cd "$1" && pwd)
python=$folder/env/bin/python

find_python() {
    local candidate
    for candidate in "$@" python3.12 "$HOME"/.pyenv/versions/3.12*/bin/python python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "environment.sh: no Python 3.12 was found: name one as the second argument" >&2
    return 1
}

[ -x "$python" ] && "$python" -m pip --version >/dev/null 2>&1 || "$(find_python "${@:2}")" -m venv --clear "$folder/env"

# missing FILE INSTALLED: the lines of FILE that are not among INSTALLED, compared in a canonical spelling
missing() {
    grep -v '^#' "$1" | tr 'A-Z_' 'a-z-' | grep -vxF -f <(tr 'A-Z_' 'a-z-' <<<"$2") || true
}

installed=$("$python" -m pip freeze --all --disable-pip-version-check)
missing "$here/machine.txt" "$installed" | xargs -r -n 4 "$python" -m pip install --quiet --no-deps --progress-bar off

# A wheel's file name has _ where its package's name may have -.
have=$(cd "$folder/wheels" && ls | sed -n 's/^\([^-]*\)-\([^-]*\)-.*\.whl$/\1==\2/p')
for wanted in $(missing "$here/brought.txt" "${have:-none}"); do
    case $wanted in
        deepspeed*) "$python" -m pip wheel --quiet --no-deps --no-build-isolation -w "$folder/wheels" "$wanted" ;;
        *) "$python" -m pip download --quiet --no-deps --only-binary=:all: -d "$folder/wheels" "$wanted" ;;
    esac
done
kilobytes=$(du -sk "$folder/wheels" | cut -f1)
echo "$folder/env: $("$python" -c 'import torch, platform; print("Python", platform.python_version(), "torch", torch.__version__)')"
echo "$folder/wheels: $((kilobytes / 1024)) of at most 64 MiB"
[ "$kilobytes" -le 65536 ]
