#!/usr/bin/env bash
# Trains a tiny model on made-up arithmetic, end to end, on whatever machine this is: no GPU, no download of weights or data.
#
# usage: scripts/quickstart.sh [OVERRIDE...]
#   NPROC=2 scripts/quickstart.sh                                         two processes
#   scripts/quickstart.sh trainer.run_dir=runs/mine trainer.seed=3        any setting of conf/ can be overridden
#   scripts/quickstart.sh trainer.run_dir=runs/grpo algo=grpo             by another recipe of conf/algo
#
# Environment: NPROC (default 1), VENV, PYTHON (see scripts/env.sh).
set -euo pipefail
# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

case ${1:-} in -h | --help) usage "${BASH_SOURCE[0]}" && exit 0 ;; esac
NPROC=${NPROC:-1}
check_count NPROC "$NPROC"
prepare_env
launch "$NPROC" train experiment=quickstart "$@"
