#!/usr/bin/env bash
# Runs the tests that this machine can run.
#
# usage: scripts/test.sh [--fast | --long | --gpu | --newest] [PYTEST ARGUMENT...]
#   scripts/test.sh                     everything that needs no GPU, but for the tests marked long
#   scripts/test.sh --fast              without those marked slow
#   scripts/test.sh --long              those marked long: SLURM, the steps of an image, many kills
#   scripts/test.sh --gpu               only those that need a GPU, one at a time
#   scripts/test.sh --newest            those of tests/newest.txt, with the versions of constraints-newest.txt, in
#                                       .venv-newest; ends with 69 where there is no Python 3.12 to make it with
#   scripts/test.sh tests/reward -k latex
#
# Environment: WORKERS (test processes; default: one for each core), VENV, PYTHON (see scripts/env.sh).
set -euo pipefail
# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

marks="not gpu and not long" extras=dev
WORKERS=${WORKERS:-$(num_cores)}
check_count WORKERS "$WORKERS"
case ${1:-} in
  -h | --help) usage "${BASH_SOURCE[0]}" && exit 0 ;;
  --fast) marks="not gpu and not slow and not long" && shift ;;
  --long) marks="long and not gpu" && shift ;;
  --gpu) marks=gpu && WORKERS=1 && shift ;;
  --newest)
    use_newest_versions
    extras="test"
    # pytest reads what follows an @ as a list of tests, one a line.
    shift && set -- "@tests/newest.txt" "$@"
    if [ "$VENV" != system ] && ! is_supported "$VENV/bin/python" && ! reason=$(pick_python 2>&1 >/dev/null); then
      say "the newest versions were not tested: ${reason#error: }"
      exit 69
    fi
    ;;
esac
prepare_env "$extras"
use_threads "$WORKERS"
cd "$ROOT"
exec "$PY" -m pytest -n "$WORKERS" --dist worksteal -m "$marks" -p no:cacheprovider -rs --durations=10 "$@"
