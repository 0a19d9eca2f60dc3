#!/usr/bin/env bash
# Gradescope runs this once, as root, when the image is built: Python and the packages of the grader.
# The submissions' process uses them too, so they are outside of /autograder, which is closed to it.
# transformers is not among them: no submission needs it, and none may have it.
set -euo pipefail
cd "$(dirname "$0")"
torch_index=''

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
python=""
for name in python3.13 python3.12 python3.11; do
    if apt-get install -y -qq "$name" "$name-venv" >/dev/null 2>&1; then
        python="$name"
        break
    fi
done
[ -n "$python" ] || { echo "setup.sh: no Python 3.11 or newer: choose a newer Ubuntu" >&2; exit 1; }

"$python" -m venv /opt/autograder
pip() { /opt/autograder/bin/python -m pip install --quiet --no-cache-dir "$@"; }
pins() { grep -E "^($1)==" requirements.txt; }
pip ${torch_index:+--index-url "$torch_index"} $(pins torch)
pip $(pins "safetensors|einops|numpy|scikit-learn|sacrebleu|tqdm|filelock")
