# Sets this project up: a Python environment with requirements.txt, then the course's files in data/.
#
#   source setup.sh           does it and leaves the environment active (bash, zsh; from any folder)
#   bash setup.sh             does the same without activating
#   bash setup.sh --python    the Makefile's way in: the environment only, and its interpreter printed
#
# Where conda is installed the environment is cs224n_dfp, made from env.yml; elsewhere it is .venv here.
# With --python it is the environment that is active, if that has every line of requirements.txt, else .venv.
# A stamp inside the environment says for which requirements.txt it is complete, so a second call takes
# seconds and a set-up that was interrupted is done again.

# Sourced: a child does the work and answers with the one line that activates. Nothing is defined here,
# so nothing has to be cleaned up in the caller's shell, not even after Ctrl-C.
if [ "${BASH_SOURCE:-$0}" != "$0" ] || case "${ZSH_EVAL_CONTEXT-}" in *:file*) ;; *) false ;; esac; then
    eval "$(bash "${BASH_SOURCE:-$0}" --activate || echo false)"
    return
fi
if [ -z "${BASH_VERSION-}" ]; then
    case "$0" in
        *setup.sh) exec bash "$0" "$@" ;;
        *) echo "setup.sh: source it from bash or zsh" >&2 && return 1 ;;
    esac
fi

set -euo pipefail
CDPATH='' cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")"
exec 3>&1 1>&2 </dev/null # progress goes to stderr; stdout (now 3) is kept for the answer
trap 'exit 130' INT       # pip answers Ctrl-C like any failure; it must count as an interruption

env_name="cs224n_dfp"
venv="$PWD/.venv"
stamp=".cs224n_dfp-stamp"
checksum="$(cksum <requirements.txt)"

say() { printf 'setup: %s\n' "$*" >&2; }
fail() {
    printf 'setup.sh: %s\n' "$*" >&2
    exit 1
}

# is_complete PREFIX: set up for this very requirements.txt, and not moved since (scripts hold the path).
is_complete() {
    [ -x "$1/bin/python" ] && [ "$(cat "$1/$stamp" 2>/dev/null)" = "$checksum $1" ]
}

# has_requirements PYTHON: every pin is installed there, by whatever means.
has_requirements() {
    "$1" -c '
import pathlib, sys
from importlib.metadata import version

for line in pathlib.Path("requirements.txt").read_text(encoding="utf-8").splitlines():
    name, _, pin = line.partition("#")[0].strip().partition("==")
    if name and version(name).partition("+")[0] != pin:
        sys.exit(1)
' 2>/dev/null
}

# is_new_enough PYTHON: it runs (a pyenv shim may not) and is at least 3.11.
is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# find_python: prints the interpreter that .venv is made with.
find_python() {
    local name bare=""
    for name in python3.13 python3.12 python3.11 python3 python; do
        is_new_enough "$name" || continue
        if "$name" -c 'import ensurepip, venv' 2>/dev/null; then
            # Inside an active .venv this is the interpreter below it, which survives a rebuild.
            "$name" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))'
            return
        fi
        bare="${bare:-$("$name" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')}"
    done
    [ -z "$bare" ] || fail "$bare is here without venv: install it (Debian, Ubuntu: apt-get install $bare-venv)"
    fail "no Python 3.11 or newer found (looked for python3.13, python3.12, python3.11, python3, python)"
}

make_venv() {
    is_complete "$venv" && return
    local python state quiet=""
    state="$(cat "$venv/$stamp" 2>/dev/null || true)"
    case "$state" in
        "") ;;            # no .venv yet, or one made by hand, which is kept
        *" $venv") ;;     # complete for an older requirements.txt
        *) state="redo" ;; # interrupted, or moved here from another folder
    esac
    if [ "$state" = "redo" ] || ! is_new_enough "$venv/bin/python" ||
        ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        python="$(find_python)"
        say "making .venv with $("$python" --version) ($python)"
        mkdir -p "$venv"
        echo "unfinished" >"$venv/$stamp"
        find "$venv" -mindepth 1 -maxdepth 1 ! -name "$stamp" -exec rm -rf {} +
        "$python" -m venv "$venv" || fail "$python -m venv $venv failed: see its message above"
    fi
    echo "unfinished" >"$venv/$stamp"
    say "installing requirements.txt into .venv (PyTorch is large: this takes some minutes)"
    [ -t 2 ] || quiet="--quiet"
    "$venv/bin/python" -m pip install --no-input ${quiet:+"$quiet"} -r requirements.txt || {
        [ $? -ge 128 ] || rm -f "$venv/$stamp" # pip gave up tidily: what is installed is whole
        fail "pip could not install requirements.txt into $venv: see its message above"
    }
    echo "$checksum $venv" >"$venv/$stamp"
}

# conda_prefix: prints the folder of the environment, or nothing.
conda_prefix() {
    "$conda" env list | awk -v name="$env_name" '$1 == name { print $NF }' ||
        fail "'$conda env list' failed: see its message above"
}

make_conda_env() {
    prefix="$(conda_prefix)"
    if [ -n "$prefix" ] && is_complete "$prefix"; then return; fi
    if [ -z "$prefix" ]; then
        say "creating the conda environment $env_name from env.yml (this takes some minutes)"
        "$conda" env create --name "$env_name" --file env.yml ||
            fail "conda could not create $env_name: see its message above"
    else
        say "updating the conda environment $env_name from env.yml (this takes some minutes)"
        rm -f "$prefix/$stamp"
        "$conda" env update --name "$env_name" --file env.yml ||
            fail "conda could not update $env_name: see its message above"
    fi
    prefix="$(conda_prefix)"
    [ -x "$prefix/bin/python" ] || fail "conda made $env_name, but '$prefix/bin/python' is not there"
    echo "$checksum $prefix" >"$prefix/$stamp"
}

# fill_data PYTHON: never fails, since the samples that come with the repository do for trying things.
fill_data() {
    local python="$1"
    set -- data/download.py
    [ ! -d ../shared/data ] || set -- "$@" --from ../shared/data
    say "filling data/ ($*)"
    "$python" "$@" ||
        say "data/ is not complete (no network?): data/sample will do for trying things; call again later"
}

if [ "${1-}" = "--python" ]; then
    for active in "${VIRTUAL_ENV-}" "${CONDA_PREFIX-}"; do
        if [ -n "$active" ] && [ "$active" != "$venv" ] && has_requirements "$active/bin/python"; then
            echo "$active/bin/python" >&3
            exit
        fi
    done
    make_venv
    echo "$venv/bin/python" >&3
    exit
fi

conda="${CONDA_EXE:-conda}"
if command -v "$conda" >/dev/null; then
    make_conda_env
    activate="$(printf 'typeset -f conda >/dev/null || eval "$(%q shell.posix hook)"; ' "$conda")"
    activate="${activate}conda activate $env_name"
else
    make_venv
    prefix="$venv"
    activate="$(printf '. %q' "$venv/bin/activate")"
fi
fill_data "$prefix/bin/python"
if [ "${1-}" = "--activate" ]; then
    say "ready: $("$prefix/bin/python" --version) in $prefix, active in this shell"
    printf '%s\n' "$activate" >&3
else
    say "ready: $("$prefix/bin/python" --version) in $prefix; to activate it: source setup.sh"
fi
