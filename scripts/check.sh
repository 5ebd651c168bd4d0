#!/usr/bin/env bash
# Lint, format and types, of Python, shell scripts and Dockerfiles: what must hold before a commit. Pre-commit and CI call
# this file.
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
PATH=$("$PY" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH
shellcheck -x scripts/*.sh scripts/slurm/*.sh scripts/slurm/*.sbatch docker/*.sh .ci/run
# DL3059 would have consecutive RUN steps made one, and the installation done again for what comes after it.
hadolint --ignore DL3059 docker/Dockerfile docker/Dockerfile.cpu
