#!/usr/bin/env bash
# Shows in eight minutes what one GPU makes of this project: its GPU tests, MFU of an update and of a log-probability
# pass, decoding, refit, three PPO steps beside a CPU's, and Transformer Engine's layers. For a bare machine with torch
# and transformers and nothing to download from: what it lacks comes from a folder of wheels.
#
# usage: scripts/gpu_first_hour.sh [--wheels FOLDER] [--out FOLDER] [--minutes N] [--dry]
#   scripts/gpu_wheels.sh wheels                     beforehand, on a machine with a network: fills the folder
#   scripts/gpu_first_hour.sh --wheels wheels        on the GPU: figures as they come, one JSON line at the end
#   scripts/gpu_first_hour.sh --dry                  anywhere, in toy sizes on the CPU: shows that every step runs
#
# Ends with 69, and says so, where torch sees no GPU.
#
# Nothing is installed into the machine's Python: wheels are unpacked below --out (default: a temporary folder), where
# the output of every step and first_hour.json lie too. Environment: PYTHON (default python3: one that has torch).
set -euo pipefail
# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

case ${1:-} in -h | --help) usage "${BASH_SOURCE[0]}" && exit 0 ;; esac
PY=${PYTHON:-python3}
"$PY" -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("torch") and u.find_spec("transformers")))' ||
  fail "$PY has no torch or no transformers; name one that has both with PYTHON=..."
exec "$PY" "$ROOT/scripts/bench/first_hour.py" "$@"
