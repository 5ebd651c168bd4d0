#!/usr/bin/env bash
# Trains with one process for each GPU, on one machine or, called once on each, on several.
#
# usage: scripts/train.sh OVERRIDE...
#   scripts/train.sh experiment=simplerl_zero_qwen2.5_math_7b model.path=/models/Qwen2.5-Math-7B
#   NPROC=4 scripts/train.sh experiment=quickstart actor.tensor_model_parallel_size=2
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=machine-0 scripts/train.sh ...       and NODE_RANK=1 on the other machine
#   scripts/train.sh ...                               in a pod of Kubeflow's or a task of SkyPilot's, which say the rest
#
# Environment: NPROC (default: what the launcher says, or the number of GPUs, or 1); NNODES, NODE_RANK, MASTER_ADDR,
# MASTER_PORT, VENV, PYTHON (see scripts/env.sh).
set -euo pipefail
# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

case ${1:-} in -h | --help) usage "${BASH_SOURCE[0]}" && exit 0 ;; esac
if [ $# -eq 0 ]; then
  usage "${BASH_SOURCE[0]}" >&2
  exit 2
fi
ask_launcher
if [ -z "$NPROC" ]; then
  NPROC=$(num_gpus)
  if [ "$NPROC" = 0 ]; then NPROC=1; fi
fi
check_count NPROC "$NPROC"
prepare_env
launch "$NPROC" train "$@"
