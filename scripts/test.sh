#!/usr/bin/env bash
# Runs the tests that this machine can run.
#
# usage: scripts/test.sh [--fast | --gpu] [PYTEST ARGUMENT...]
#   scripts/test.sh                     everything that needs no GPU
#   scripts/test.sh --fast              without the tests marked slow
#   scripts/test.sh --gpu               only those that need a GPU, one at a time
#   scripts/test.sh tests/reward -k latex
#
# Environment: WORKERS (test processes; default: one for each core), VENV, PYTHON (see scripts/env.sh).
set -euo pipefail
# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

marks="not gpu"
WORKERS=${WORKERS:-$(num_cores)}
check_count WORKERS "$WORKERS"
case ${1:-} in
  -h | --help) usage "${BASH_SOURCE[0]}" && exit 0 ;;
  --fast) marks="not gpu and not slow" && shift ;;
  --gpu) marks=gpu && WORKERS=1 && shift ;;
esac
prepare_env dev
use_threads "$WORKERS"
cd "$ROOT"
exec "$PY" -m pytest -n "$WORKERS" --dist worksteal -m "$marks" -p no:cacheprovider -rs --durations=10 "$@"
