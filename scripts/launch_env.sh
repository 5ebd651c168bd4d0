#!/usr/bin/env bash
# Makes the Python environment of a launcher's own package, which cannot share the trainer's; its interpreter is the only
# output.
#
# usage: scripts/launch_env.sh kubernetes | skypilot | nemo-run
#   $(scripts/launch_env.sh nemo-run) scripts/launch_nemo_run.py --help
#
# kubernetes has what the tests check manifests with. The environment is made in .venv-NAME from the pins of
# constraints-launch-NAME.txt, kept, and made anew when they change. Ends with 69, and says why, where it cannot be had.
#
# Environment: LAUNCH_VENVS (the folder for environments; default: that of setup.py), PYTHON (see scripts/env.sh; 3.11 or
# 3.12), PIP_* (pip's own).
set -euo pipefail
unset VENV # the trainer's
# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

case "$*" in
  -h | --help) usage "${BASH_SOURCE[0]}" && exit 0 ;;
  kubernetes | skypilot | nemo-run) ;;
  *) usage "${BASH_SOURCE[0]}" >&2 && exit 2 ;;
esac
VENV=${LAUNCH_VENVS:-$ROOT}/.venv-$1
case $VENV in /*) ;; *) VENV=$PWD/$VENV ;; esac
SUPPORTED="3.11 or 3.12"
CONSTRAINTS=$ROOT/constraints-launch-$1.txt

is_ready() {
  [ -f "$VENV/.installed" ] && [ "$(cat "$VENV/.installed")" = "$(cksum <"$CONSTRAINTS")" ] &&
    is_supported "$VENV/bin/python"
}

unavailable() { # WHY
  leave_out "the environment of ${CONSTRAINTS##*/} cannot be had here: $*"
}

pip_install_pins() { # their requirements contradict each other: see the files
  PIP_CONSTRAINT="" PIP_USER=0 "$VENV/bin/python" -m pip install --quiet --no-input --no-compile \
    --disable-pip-version-check --no-deps -r "$CONSTRAINTS" >"$VENV/install.log" 2>&1
}

install_launcher() {
  local reason
  reason=$(pick_python 2>&1 >/dev/null) || unavailable "${reason#error: }"
  clear_venv
  ensure_venv
  with_clock "installing ${CONSTRAINTS##*/} into ${VENV##*/} ..." pip_install_pins || {
    reason=$(grep '^ERROR' "$VENV/install.log" | tail -n 1)
    unavailable "${reason:-pip failed}; the whole log is $VENV/install.log"
  }
  cksum <"$CONSTRAINTS" >"$VENV/.installed"
}

if ! is_ready; then
  lock_venv
  if ! is_ready; then install_launcher; fi
  exec 9>&-
fi
printf '%s\n' "$VENV/bin/python"
