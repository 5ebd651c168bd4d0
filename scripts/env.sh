# Sourced by the other scripts, never run. Defines:
#   prepare_env [EXTRAS]   a virtual environment with the project installed in it; sets PY to its python
#   use_newest_versions    from then on prepare_env makes that of the newest versions, in a folder of its own
#   use_threads COUNT      OMP_NUM_THREADS for COUNT processes on this machine, unless it is set already
#   launch NPROC ARGS...   says what it chose and replaces this shell by `python -m nemo_simplerl ARGS`, under torchrun
#                          when there is more than one rank; what is wrong with ARGS is told before ranks are started
#   ask_launcher           fills what is unset of NPROC, NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT from what Kubeflow
#                          (PET_*) or SkyPilot (SKYPILOT_*) set; `launch` does so too
#   require_plan NODES NPROC GPU ARGS...   ends the script where `simplerl plan` says that the run cannot be
#   num_gpus, num_cores, check_count, usage, fail, leave_out
#
# Environment:
#   VENV     folder of the virtual environment (default: .venv beside setup.py); VENV=system installs nothing and uses
#            the python3 on PATH as it is, for a container image that has everything
#   PYTHON   interpreter to make it with (default: the first of python3.11 python3.12 python3.10 python3 that works,
#            and then of pyenv's)
#   NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT   for `launch` on several machines, called once on each: how many there
#            are (default 1), which one this is (0, 1, ...), and where all ranks meet (a name of machine 0; port 29500);
#            by default as a launcher set them, see ask_launcher
#   PIP_*    are pip's own and are left alone
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${VENV:-$ROOT/.venv}
case $VENV in
  system | /*) ;;
  *) VENV=$PWD/$VENV ;;
esac

SUPPORTED="3.10, 3.11 or 3.12"
CONSTRAINTS=$ROOT/constraints.txt

use_newest_versions() {
  SUPPORTED=3.12 # which Megatron-core needs from 0.17 on
  CONSTRAINTS=$ROOT/constraints-newest.txt
  if [ "$VENV" = "$ROOT/.venv" ]; then VENV=$ROOT/.venv-newest; fi
}

say() { printf '%s\n' "$*" >&2; }

fail() {
  say "error: $*"
  exit 1
}

leave_out() { # WHAT AND WHY: it cannot be had here; one line, also in the file SKIPPED where one is named, and status 69
  say "$*"
  if [ -n "${SKIPPED:-}" ]; then printf '%s\n' "$*" >>"$SKIPPED"; fi
  exit 69
}

usage() { # FILE: the comment at its top
  sed -n '2,/^[^#]*$/s/^# \{0,1\}//p' "$1"
}

is_supported() { # PYTHON: it runs (a version manager's shim may not) and is a version we support
  "$1" -c 'import re, sys; sys.exit("%d.%d" % sys.version_info[:2] not in re.findall(r"[\d.]+", sys.argv[1]))' \
    "$SUPPORTED" >/dev/null 2>&1
}

pick_python() {
  local candidate
  if [ -n "${PYTHON:-}" ]; then
    is_supported "$PYTHON" || fail "PYTHON=$PYTHON does not run or is not Python $SUPPORTED"
    printf '%s\n' "$PYTHON"
    return
  fi
  for candidate in python3.11 python3.12 python3.10 python3 "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/*/bin/python3; do
    if is_supported "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  fail "no Python $SUPPORTED on PATH or among pyenv's (python3 is: $(python3 --version 2>&1 || true));" \
    "install one, or name it with PYTHON=/path/to/python${SUPPORTED##* }"
}

num_cores() {
  # nproc knows the cores this shell may use; it would answer OMP_NUM_THREADS where that is set.
  env -u OMP_NUM_THREADS nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1
}

num_gpus() {
  if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    printf '%s' "$CUDA_VISIBLE_DEVICES" | tr ',' '\n' | grep -c . || true
  elif command -v nvidia-smi >/dev/null 2>&1; then
    nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true
  else
    echo 0
  fi
}

use_threads() { # COUNT
  local threads=$(($(num_cores) / $1))
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
}

ask_launcher() {
  local nproc=${PET_NPROC_PER_NODE:-${SKYPILOT_NUM_GPUS_PER_NODE:-}} name
  case $nproc in auto | gpu | 0) nproc="" ;; esac # the GPUs that are found
  NPROC=${NPROC:-$nproc}
  NNODES=${NNODES:-${PET_NNODES:-${SKYPILOT_NUM_NODES:-1}}}
  NODE_RANK=${NODE_RANK:-${PET_NODE_RANK:-${SKYPILOT_NODE_RANK:-}}}
  MASTER_ADDR=${MASTER_ADDR:-${PET_MASTER_ADDR:-${SKYPILOT_NODE_IPS:-}}}
  MASTER_ADDR=${MASTER_ADDR%%$'\n'*} # SkyPilot names all machines, that of rank 0 first
  MASTER_PORT=${MASTER_PORT:-${PET_MASTER_PORT:-}}
  # torchrun would take PET_* for options that were not given: --standalone then waits for a second machine for ever. And
  # a PyTorchJob says RANK of a machine, which is a process's to everything below.
  for name in $(compgen -e); do
    case $name in
      PET_NNODES | PET_NODE_RANK | PET_NPROC_PER_NODE | PET_MASTER_* | PET_RDZV_* | PET_STANDALONE) unset "$name" ;;
      RANK | LOCAL_RANK | WORLD_SIZE) unset "$name" ;;
    esac
  done
}

require_plan() { # NODES NPROC GPU ARGS...
  "$PY" -m nemo_simplerl plan "${@:4}" --nodes "$1" --gpus-per-node "$2" --gpu "$3" >&2 ||
    fail "nothing was submitted; mend what the plan names"
}

launch() { # NPROC ARGS...
  local nproc=$1 torchrun=()
  shift
  ask_launcher
  use_threads "$nproc"
  if [ "${NNODES:-1}" != 1 ]; then
    check_nodes
    torchrun=(--nnodes "$NNODES" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT")
  elif [ "$nproc" -gt 1 ]; then
    torchrun=(--standalone)
  fi
  export PYTHONSAFEPATH=1 # from Python 3.11 on: a file here named http.py is not taken for the module
  say "$(launch_in_words "$nproc")"
  if [ "${#torchrun[@]}" -gt 0 ]; then
    # One process says what is wrong with ARGS: under torchrun its own report would follow.
    WORLD_SIZE=$((nproc * ${NNODES:-1})) LOCAL_WORLD_SIZE=$nproc "$PY" -m nemo_simplerl "$@" --check || exit
    exec "$PY" -m torch.distributed.run "${torchrun[@]}" --nproc_per_node "$nproc" -m nemo_simplerl "$@"
  fi
  exec "$PY" -m nemo_simplerl "$@"
}

launch_in_words() { # NPROC
  local ranks="$1 ranks" meeting="" packages=$VENV
  if [ "$1" = 1 ]; then ranks="1 rank"; fi
  if [ "${NNODES:-1}" != 1 ]; then
    ranks="machine $NODE_RANK of $NNODES, $ranks on each"
    meeting=", meeting at $MASTER_ADDR:$MASTER_PORT"
  elif [ "$1" -gt 1 ]; then
    meeting=", meeting at a free port of this machine"
  fi
  if [ "$VENV" = system ]; then packages="$PY as it is"; fi
  printf '%s\n' "$ranks, OMP_NUM_THREADS=$OMP_NUM_THREADS, $(num_gpus) GPUs$meeting; Python: $packages"
}

check_nodes() { # sets MASTER_PORT
  case $NNODES in *:*) fail "NNODES=$NNODES: a run has a fixed number of machines; leave an elastic policy out" ;; esac
  check_count NNODES "$NNODES"
  case ${NODE_RANK:-} in
    '' | *[!0-9]* | 0?*) fail "NNODES=$NNODES needs NODE_RANK=0 to $((NNODES - 1)), another one on each machine" ;;
  esac
  if [ "$NODE_RANK" -ge "$NNODES" ]; then fail "NODE_RANK=$NODE_RANK, but NNODES=$NNODES machines count from 0"; fi
  [ -n "${MASTER_ADDR:-}" ] || fail "NNODES=$NNODES needs MASTER_ADDR: a name or address of machine 0 that all can reach"
  MASTER_PORT=${MASTER_PORT:-29500}
}

check_count() { # NAME VALUE
  case $2 in
    '' | *[!0-9]* | 0*) fail "$1=$2 is not a number of processes; use 1 or more" ;;
  esac
}

# --- installation ---------------------------------------------------------------------------------------------------

wanted_stamp() { # the checkout's place counts because the installation points at it
  { printf '%s\n' "$ROOT" && cat "$ROOT/setup.py" "$CONSTRAINTS"; } | cksum
}

stamped_extras() { # the extras that were installed last, comma-separated
  if [ -f "$VENV/.installed" ]; then sed -n 2p "$VENV/.installed"; fi
}

has_extras() { # EXTRAS: each of them was installed last
  local extra installed
  installed=,$(stamped_extras),
  for extra in ${1//,/ }; do
    [[ $installed == *,$extra,* ]] || return 1
  done
}

is_installed() { # EXTRAS
  [ -f "$VENV/.installed" ] && [ "$(sed -n 1p "$VENV/.installed")" = "$(wanted_stamp)" ] && has_extras "$1" &&
    is_supported "$VENV/bin/python"
}

with_clock() { # MESSAGE COMMAND...: one line; on a terminal it counts the seconds
  local message=$1 start=$SECONDS ticker="" status=0
  shift
  if [ -t 2 ]; then
    (while kill -0 $$ 2>/dev/null; do
      printf '\r%s %d s ' "$message" $((SECONDS - start)) >&2
      sleep 1
    done) 9>&- &
    ticker=$!
  else
    say "$message"
  fi
  "$@" || status=$?
  if [ -n "$ticker" ]; then
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    printf '\r\033[K' >&2
  fi
  if [ "$status" -eq 0 ]; then say "$message done in $((SECONDS - start)) s"; fi
  return "$status"
}

make_venv() { # PYTHON
  if "$1" -c 'import ensurepip, venv' 2>/dev/null; then
    "$1" -m venv "$VENV"
  elif "$1" -m virtualenv --version >/dev/null 2>&1; then
    "$1" -m virtualenv --quiet "$VENV"
  elif "$1" -c 'import venv' 2>/dev/null && "$1" -m pip --version >/dev/null 2>&1; then
    "$1" -m venv --without-pip "$VENV" &&
      PIP_USER=0 "$1" -m pip --python "$VENV/bin/python" install --quiet --disable-pip-version-check pip
  else
    return 1
  fi
}

clear_venv() { # the lock in the folder stays: another shell may be waiting on it
  rm -rf -- "${VENV:?}"/{bin,include,lib,lib64,pyvenv.cfg,.installed}
}

ensure_venv() {
  local python
  if [ -f "$VENV/pyvenv.cfg" ]; then
    if is_supported "$VENV/bin/python" && "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then return; fi
    say "$VENV does not work (its Python is gone or not supported, or it was left half made): making it anew"
    clear_venv
  fi
  python=$(pick_python)
  make_venv "$python" >"$VENV/install.log" 2>&1 || {
    tail -n 5 "$VENV/install.log" >&2
    fail "$python cannot make a virtual environment; on Debian or Ubuntu: apt install python3-venv," \
      "elsewhere install the virtualenv package, or name another interpreter with PYTHON=..."
  }
}

pip_install() { # EXTRAS
  local target=$ROOT${1:+[$1]}
  # PIP_USER would be refused inside a virtual environment.
  PIP_USER=0 "$VENV/bin/python" -m pip install --quiet --no-input --disable-pip-version-check \
    -c "$CONSTRAINTS" -e "$target" >"$VENV/install.log" 2>&1
}

lock_venv() {
  if [ -d "$VENV" ] && [ ! -f "$VENV/pyvenv.cfg" ] &&
    [ -n "$(find "$VENV" -mindepth 1 -maxdepth 1 ! -name .lock ! -name install.log)" ]; then
    fail "VENV=$VENV is a folder with other things in it; name a new folder"
  fi
  mkdir -p "$VENV"
  exec 9>"$VENV/.lock"
  # Without flock (macOS) two shells that install at once are not kept apart.
  if command -v flock >/dev/null 2>&1 && ! flock -n 9; then
    say "waiting for another shell that installs into $VENV"
    flock 9
  fi
}

install_project() { # EXTRAS
  local extras=$1
  # What an earlier call asked for stays installed.
  if has_extras "$extras"; then
    extras=$(stamped_extras)
  else
    extras=$(stamped_extras),$extras
    extras=${extras#,}
  fi
  rm -f "$VENV/.installed"
  if [ "$(num_gpus)" = 0 ] && [ "$(uname -s)" = Linux ] &&
    [ -z "${PIP_INDEX_URL:-}${PIP_EXTRA_INDEX_URL:-}${PIP_FIND_LINKS:-}" ]; then
    say "no GPU here: pip may fetch a CUDA build of torch (several GB); the README says how to get the CPU build"
  fi
  with_clock "installing nemo_simplerl${extras:+ [$extras]} into ${VENV##*/} ..." \
    pip_install "$extras" || {
    tail -n 20 "$VENV/install.log" >&2
    fail "pip could not install the project; the whole log is $VENV/install.log"
  }
  printf '%s\n%s\n' "$(wanted_stamp)" "$extras" >"$VENV/.installed"
}

prepare_env() { # [EXTRAS]
  local extras=${1:-}
  if [ "$VENV" = system ]; then
    PY=${PYTHON:-python3}
    is_supported "$PY" || fail "VENV=system: $PY does not run or is not Python $SUPPORTED"
    "$PY" -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("torch") and u.find_spec("megatron")))' ||
      fail "VENV=system: $PY has no torch or no megatron-core; leave VENV unset to have them installed"
    export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
    return
  fi
  PY=$VENV/bin/python
  if is_installed "$extras"; then return; fi
  lock_venv
  if ! is_installed "$extras"; then
    ensure_venv
    install_project "$extras"
  fi
  exec 9>&-
}
