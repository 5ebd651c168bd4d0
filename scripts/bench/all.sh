#!/usr/bin/env bash
# Measures everything that docs/benchmarks.md, docs/algorithms.md and docs/placement.md tell and writes their tables
# anew. For a quiet machine: about two and a half hours on two cores, and longer where other work disturbs it.
#
# usage: scripts/bench/all.sh [FIGURES.jsonl]     (default: runs/bench.jsonl; lines that are there are not measured again)
#
# Environment: RUNS (times that the step beside TRL's is measured; default 3), VENV, PYTHON (see scripts/env.sh), TRL_VENV
# (environment of TRL; default .venv-trl, made here; that of vLLM is made too), SKIP (names of benches to leave out).
set -euo pipefail
# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/../env.sh"

case "$#:$*" in
  1:-h | 1:--help) usage "${BASH_SOURCE[0]}" && exit 0 ;;
  *:-* | [!01]:*)
    usage "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
BENCH=$ROOT/scripts/bench
OUT=${1:-$ROOT/runs/bench.jsonl}
TRL_VENV=${TRL_VENV:-$ROOT/.venv-trl}
prepare_env dev
mkdir -p "$(dirname "$OUT")"
touch "$OUT"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(num_cores)}
if [ ! -f "$TRL_VENV/.installed" ]; then
  "$PY" -m venv "$TRL_VENV"
  with_clock "installing TRL into ${TRL_VENV##*/} ..." \
    "$TRL_VENV/bin/python" -m pip install --quiet --disable-pip-version-check -r "$BENCH/sides/trl.txt"
  touch "$TRL_VENV/.installed"
fi

measure() { # NAME COMMAND...: one line of JSON under the name, once
  local name=$1 line
  shift
  case " ${SKIP:-} " in *" $name "*) return ;; esac
  if grep -qF "{\"as\": \"$name\", " "$OUT"; then return; fi
  say "$name: $*"
  line=$("$@" | tail -n 1)
  printf '{"as": "%s", %s\n' "$name" "${line#\{}" >>"$OUT"
}

on_ranks() { # COUNT BENCH ARGS...: a bench of several processes; each has its share of the cores
  local count=$1
  shift
  OMP_NUM_THREADS=$((OMP_NUM_THREADS > count ? OMP_NUM_THREADS / count : 1)) \
    "$PY" -m torch.distributed.run --standalone --nproc_per_node "$count" "$@"
}

measure machine "$PY" "$BENCH/machine.py"
for work in "S varied" "S fixed" "M fixed" "M varied"; do
  read -r model variant <<<"$work"
  for run in $(seq "${RUNS:-3}"); do
    measure "step $work $run" "$PY" "$BENCH/step.py" --model "$model" --variant "$variant" \
      --against trl,roofline --trl-python "$TRL_VENV/bin/python"
  done
done
measure logprob "$PY" "$BENCH/logprob.py"
measure scaling "$PY" "$BENCH/scaling.py"
measure packing "$PY" "$BENCH/packing.py"
measure rollout "$PY" "$BENCH/rollout.py"
if engine=$("$ROOT/scripts/engine_env.sh" vllm --cpu); then
  SIMPLERL_VLLM_PYTHON=$engine measure engines "$PY" "$BENCH/rollout.py" --against vllm
fi
measure convert "$PY" "$BENCH/convert.py" --repeats 4
measure refit "$PY" "$BENCH/refit.py"
measure "refit TP2" on_ranks 2 "$BENCH/refit.py" 2
measure "refit across" on_ranks 2 "$BENCH/refit.py" 1 1 16 1
measure "refit across TP2" on_ranks 3 "$BENCH/refit.py" 2 1 16 1
measure placement "$PY" "$BENCH/placement.py"
measure data_plane "$PY" "$BENCH/data_plane.py" --fixed
measure checkpoint "$PY" "$BENCH/checkpoint.py"
measure kills "$PY" "$BENCH/kills.py"
measure "kills of two ranks" "$PY" "$BENCH/kills.py" --ranks 2
measure grader "$PY" "$BENCH/grader.py"
measure quickstart "$PY" "$BENCH/quickstart.py"
measure "quickstart TP2" "$PY" "$BENCH/quickstart.py" --nproc 2 --seeds 1 actor.tensor_model_parallel_size=2
warm_starts=$(mktemp -d)
trap 'rm -rf "$warm_starts"' EXIT
for seed in 1 2 3; do
  for recipe in default grpo dr_grpo rloo reinforce_pp dapo gspo vapo; do
    measure "algorithms $recipe $seed" "$PY" "$BENCH/algorithms.py" --recipes "$recipe" --seeds "$seed" \
      --warm-starts "$warm_starts"
  done
done
"$PY" "$BENCH/page.py" "$OUT"
