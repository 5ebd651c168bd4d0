#!/usr/bin/env bash
# Lint, format and types: what must hold before a commit. Pre-commit and CI call this file.
#
# usage: scripts/check.sh
#
# Environment: VENV, PYTHON (see scripts/env.sh).
set -euo pipefail
# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

case ${1:-} in
  '') ;;
  -h | --help) usage "${BASH_SOURCE[0]}" && exit 0 ;;
  *) fail "check.sh takes no arguments, got: $*" ;;
esac
prepare_env dev
cd "$ROOT"
"$PY" -m ruff check .
"$PY" -m ruff format --check .
"$PY" -m mypy
