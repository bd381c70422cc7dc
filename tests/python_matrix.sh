#!/usr/bin/env bash
# Installs the whole in an environment of its own for each interpreter that is named, and runs the
# tests there. Words after -- are pytest's. The environments stay in ./.venv-<version>, or in $VENVS.
#   tests/python_matrix.sh python3.10 python3.12 ~/.pyenv/versions/3.13.0/bin/python -- -x
set -uo pipefail
cd "$(dirname "$0")/.."

interpreters=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do interpreters+=("$1"); shift; done
[ "${1:-}" = -- ] && shift
[ ${#interpreters[@]} -gt 0 ] || { echo "usage: $0 INTERPRETER ... [-- pytest's words]" >&2; exit 2; }

report=()
failed=0
for interpreter in "${interpreters[@]}"; do
  version=$("$interpreter" -c 'import platform; print(platform.python_version())') || exit 2
  venv="${VENVS:-.}/.venv-${version%.*}"
  says=passed
  { [ -x "$venv/bin/python" ] || "$interpreter" -m venv "$venv"; } &&
    "$venv/bin/python" -m pip install -q -c constraints.txt -e ".[cpu,export,test]" &&
    "$venv/bin/python" -m pip check || says="not installed"
  if [ "$says" = passed ]; then
    "$venv/bin/python" -m pytest tests "$@" || says="failed"
  fi
  [ "$says" = passed ] || failed=1
  report+=("Python $version: $says")
done
printf '%s\n' "${report[@]}"
exit $failed
