#!/usr/bin/env bash
# Makes .venv-threestudio: a Python with the libraries of threestudio's time. Does nothing when
# THREESTUDIO_ROOT isn't set, when THREESTUDIO_PYTHON names another Python, or when it is made already.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
venv="$here/../../.venv-threestudio"
python="${PYTHON:-python3}"

[[ -n "${THREESTUDIO_ROOT:-}" && -z "${THREESTUDIO_PYTHON:-}" ]] || exit 0
[[ ! -e "$venv/.installed" || "$here/requirements.txt" -nt "$venv/.installed" ]] || exit 0

"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 11))' || {
    echo "threestudio's libraries need Python 3.10 or 3.11, this is $("$python" --version)." >&2
    echo "Try: PYTHON=python3.11 make test-threestudio" >&2
    exit 1
}
"$python" -m venv "$venv"
"$venv/bin/pip" install -q -r "$here/requirements.txt"
"$venv/bin/pip" install -q --no-deps torchvision==0.28.0 # its dependencies would be another torch
touch "$venv/.installed"
