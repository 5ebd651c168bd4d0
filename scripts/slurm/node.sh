#!/usr/bin/env bash
# Started by srun once on each node of a job, inside the container where there is one: torchrun for this node's ranks.
#
# usage: scripts/slurm/node.sh COMMAND OVERRIDE...
#
# Environment: NNODES, NPROC, MASTER_ADDR, MASTER_PORT, VENV, PYTHON from job.sh; SLURM_NODEID from srun.
set -euo pipefail
# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/../env.sh"

case ${1:-} in -h | --help) usage "${BASH_SOURCE[0]}" && exit 0 ;; esac
export NODE_RANK=$SLURM_NODEID
# Nothing below asks Slurm or MPI for anything. TensorRT-LLM's workers would take these for a world that they belong to.
for name in $(compgen -e); do
  case $name in SLURM* | SRUN* | PMI* | OMPI_* | MPI_*) unset "$name" ;; esac
done
prepare_env
launch "${NPROC:?}" "$@"
