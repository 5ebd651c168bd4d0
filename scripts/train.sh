#!/usr/bin/env bash
# Trains on one machine, with one process for each GPU.
#
# usage: scripts/train.sh OVERRIDE...
#   scripts/train.sh experiment=simplerl_zero_qwen2.5_math_7b model.path=/models/Qwen2.5-Math-7B
#   NPROC=4 scripts/train.sh experiment=quickstart actor.tensor_model_parallel_size=2
#
# Environment: NPROC (default: the number of GPUs, or 1), VENV, PYTHON (see scripts/env.sh).
set -euo pipefail
# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

case ${1:-} in -h | --help) usage "${BASH_SOURCE[0]}" && exit 0 ;; esac
if [ $# -eq 0 ]; then
  usage "${BASH_SOURCE[0]}" >&2
  exit 2
fi
if [ -z "${NPROC:-}" ]; then
  NPROC=$(num_gpus)
  if [ "$NPROC" = 0 ]; then NPROC=1; fi
fi
check_count NPROC "$NPROC"
prepare_env
launch "$NPROC" train "$@"
