#!/usr/bin/env bash
# `docker run` with what training on the GPUs of one machine needs: GPUs, shared memory, limits, and the folders of models,
# data and runs at the places where the experiments look for them.
#
# usage: docker/run.sh [--dry-run] COMMAND...
#   docker/run.sh train experiment=simplerl_zero_qwen2.5_math_7b           a rank for each GPU
#   docker/run.sh simplerl convert --from hf --to nemo /models/X /work/runs/x.nemo
#   docker/run.sh --dry-run train experiment=quickstart                    prints the command
#
# Environment:
#   IMAGE                default nemo-simplerl, as docker/Dockerfile says how to build it
#   SIMPLERL_MODEL_DIR   folder of models, seen as /models (read only)
#   SIMPLERL_DATA_DIR    folder of problems, seen as /data (read only)
#   RUNS                 folder for run directories, seen as /work/runs (default: ./runs)
#   GPUS                 for docker's --gpus (default: all)
#   DOCKER_ARGS          more options of docker run, split at spaces
set -euo pipefail

dry_run=""
case ${1:-} in
  -h | --help) sed -n '2,/^[^#]*$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" && exit 0 ;;
  --dry-run) dry_run=yes && shift ;;
esac
if [ $# -eq 0 ]; then
  sed -n '2,/^[^#]*$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
case $1 in
  train) shift && set -- /opt/nemo_simplerl/scripts/train.sh "$@" ;;
  simplerl) shift && set -- python3 -m nemo_simplerl "$@" ;;
esac

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

runs=${RUNS:-runs}
if [ -z "$dry_run" ]; then mkdir -p "$runs"; fi # docker would make it root's
case $runs in /*) ;; *) runs=$PWD/$runs ;; esac
# --ipc=host: NCCL and the engine pass tensors through /dev/shm, of which a container has 64 MiB. memlock and stack: as
# NVIDIA's images ask. --network=host: NCCL finds the network devices, and other machines this one. --init: a signal
# reaches torchrun, which gives its ranks half a minute, and what they leave behind is reaped.
args=(--rm --init --gpus "${GPUS:-all}" --ipc=host --network=host --ulimit memlock=-1 --ulimit stack=67108864
  --ulimit nofile=1048576 --stop-timeout 60 --user "$(id -u):$(id -g)" --volume "$runs:/work/runs" --workdir /work)
for pair in SIMPLERL_MODEL_DIR:/models SIMPLERL_DATA_DIR:/data; do
  name=${pair%%:*}
  folder=${!name:-}
  if [ -z "$folder" ]; then continue; fi
  folder=$(cd "$folder" 2>/dev/null && pwd) || fail "$name=${!name} is not a folder"
  args+=(--volume "$folder:${pair#*:}:ro" --env "$name=${pair#*:}")
done
for name in SIMPLERL_REWARD_TOKEN NCCL_DEBUG NCCL_SOCKET_IFNAME GLOO_SOCKET_IFNAME NPROC NNODES NODE_RANK MASTER_ADDR \
  MASTER_PORT TORCH_ELASTIC_SHUTDOWN_TIMEOUT; do
  if [ -n "${!name:-}" ]; then args+=(--env "$name"); fi
done
if [ -t 0 ] && [ -t 1 ]; then args+=(--interactive --tty); fi
read -r -a more <<<"${DOCKER_ARGS:-}"
command=(docker run "${args[@]}" ${more[@]+"${more[@]}"} "${IMAGE:-nemo-simplerl}" "$@")

if [ -n "$dry_run" ]; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
command -v docker >/dev/null || fail "docker is not installed here"
exec "${command[@]}"
