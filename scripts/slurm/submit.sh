#!/usr/bin/env bash
# Checks a run against the cluster with `simplerl plan`, and queues it only if it can run there.
#
# usage: scripts/slurm/submit.sh [--sft] [SBATCH OPTION...] -- OVERRIDE...
#   NODES=2 scripts/slurm/submit.sh --time=08:00:00 -- experiment=simplerl_zero_qwen2.5_math_7b
#   CONTAINER=/images/simplerl.sqsh NODES=2 scripts/slurm/submit.sh --partition=gpu -- experiment=...
#
# Environment: NODES (default 1), NPROC (ranks on each, default 8), GPU (one of `simplerl plan --help`, default h100-80g;
# cpu asks Slurm for no GPUs), and that of scripts/slurm/job.sh. The plan is made here, with VENV and PYTHON.
set -euo pipefail
# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/../env.sh"

job=ppo
options=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage "${BASH_SOURCE[0]}" && exit 0 ;;
    --) break ;;
    --sft) job=sft ;;
    -N* | --nodes* | --gpus-per-node*) fail "$1: set NODES and NPROC instead, so that the plan is made for them" ;;
    *) options+=("$1") ;;
  esac
  shift
done
if [ $# -lt 2 ]; then
  usage "${BASH_SOURCE[0]}" >&2
  exit 2
fi
shift
export NPROC=${NPROC:-8}
NODES=${NODES:-1}
GPU=${GPU:-h100-80g}
check_count NODES "$NODES"
check_count NPROC "$NPROC"
command -v sbatch >/dev/null || fail "there is no sbatch on this machine; submit from a login node of the cluster"
prepare_env
require_plan "$NODES" "$NPROC" "$GPU" --files "$@"
if [ "$GPU" != cpu ]; then options=(--gpus-per-node="$NPROC" ${options[@]+"${options[@]}"}); fi
export SIMPLERL_ROOT=$ROOT VENV
exec sbatch --nodes="$NODES" ${options[@]+"${options[@]}"} "$ROOT/scripts/slurm/$job.sbatch" "$@"
