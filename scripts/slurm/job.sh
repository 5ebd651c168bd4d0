# Sourced in the batch shell of a job by ppo.sbatch, sft.sbatch and eval.sbatch, and by NeMo-Run's (see
# scripts/launch_nemo_run.py), never run. Defines:
#   run_job COMMAND OVERRIDE...   `simplerl COMMAND OVERRIDE...` on every node of the allocation, stopped in time
#   run_eval MODEL OPTION...      `simplerl eval MODEL OPTION...` likewise; its answers are on disk as they come
#   take_srun RUN_DIR NPROC       from then on `srun` in this shell starts a step that is stopped in time as run_job's is
#
# The ranks are told to stop by the file RUN_DIR/stop alone: a signal would reach torchrun, which passes on only some and
# kills its ranks half a minute later.
#
# Environment, all optional:
#   NPROC                      ranks on each node (default: its GPUs, or 1)
#   MASTER_ADDR, MASTER_PORT   where the ranks meet (default: the first node, and a port by the job's number)
#   CONTAINER                  image for pyxis: a .sqsh file or a registry's name; without it the nodes' own Python is used
#   CONTAINER_MOUNTS           more folders for the container, as pyxis takes them: FROM:TO,FROM:TO
#   VENV, PYTHON               see scripts/env.sh
# shellcheck shell=bash

# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/../env.sh"

ASKED=""  # the signal by which this shell was told to stop
KEEPER="" # the process that then keeps the file there

run_job() { # COMMAND OVERRIDE...
  local command=$1
  shift
  RUN_DIR=$(run_dir_of "$@")
  choose_world
  supervise start_nodes "$command" "$@" "trainer.run_dir=$RUN_DIR"
}

take_srun() { # RUN_DIR NPROC
  set +evx # NeMo-Run's script shows every line of its own
  RUN_DIR=$1 NPROC=$2
  choose_world
  # shellcheck disable=SC2329  # NeMo-Run's script calls it
  srun() { supervise command srun "$@"; }
}

supervise() { # COMMAND...: the step that trains in RUN_DIR. Requeues the job, or ends it with 0 or 1.
  local status=0
  mkdir -p "$RUN_DIR/logs"
  # Kept for wants_more, and out of the way: what is there at the end was written by this allocation.
  if [ -f "$RUN_DIR/stopped.json" ]; then mv -f "$RUN_DIR/stopped.json" "$RUN_DIR/logs/resumed_from.json"; fi
  say "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): $NNODES nodes x $NPROC ranks meet at" \
    "$MASTER_ADDR:$MASTER_PORT; run directory $RUN_DIR, logs in $RUN_DIR/logs/node_*.log"
  trap 'ask_to_stop USR1' USR1
  trap 'ask_to_stop TERM' TERM
  "$@" &
  wait_for $! || status=$?
  trap '' USR1 TERM
  if [ -n "$KEEPER" ]; then
    kill "$KEEPER" 2>/dev/null || true
    wait "$KEEPER" || true
  fi
  rm -f "$RUN_DIR/stop"
  conclude "$status"
}

run_eval() { # MODEL OPTION...
  local status=0
  RUN_DIR=$(out_of "$@")
  mkdir -p "$RUN_DIR/logs"
  choose_world
  say "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): $NNODES nodes x $NPROC ranks, logs in $RUN_DIR/logs"
  trap 'scontrol requeue "$SLURM_JOB_ID"' USR1 # ends what runs; what is answered stays
  start_nodes eval "$@" &
  wait_for $! || status=$?
  return "$status"
}

out_of() { # OPTION...: what follows the last --out
  local option before="" found=""
  for option in "$@"; do
    case $option in --out=*) found=${option#*=} ;; esac
    if [ "$before" = --out ]; then found=$option; fi
    before=$option
  done
  if [ -z "$found" ]; then fail "name the folder for the answers: --out DIR"; fi
  printf '%s\n' "$found"
}

run_dir_of() { # OVERRIDE...: the last trainer.run_dir, or a folder named for the job
  local override found=runs/slurm_$SLURM_JOB_ID
  for override in "$@"; do
    case $override in trainer.run_dir=*) found=${override#*=} ;; esac
  done
  case $found in \~ | \~/*) found=$HOME${found#\~} ;; esac
  case $found in
    '' | *[\'\"\$\{\,%:]*) fail "trainer.run_dir=$found: a job needs a plain path, without quotes, references or , % :" ;;
  esac
  printf '%s\n' "$found"
}

choose_world() {
  export NNODES=$SLURM_JOB_NUM_NODES NPROC=${NPROC:-${SLURM_GPUS_ON_NODE:-$(num_gpus)}}
  if [ "$NPROC" = 0 ]; then NPROC=1; fi
  check_count NPROC "$NPROC"
  export MASTER_ADDR=${MASTER_ADDR:-$(first_node)}
  export MASTER_PORT=${MASTER_PORT:-$(free_port $((20000 + SLURM_JOB_ID % 10000)))}
}

first_node() { # its name, or its address where the name is known to Slurm alone
  local name
  name=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  if getent hosts "$name" >/dev/null; then
    printf '%s\n' "$name"
  else
    scontrol show node "$name" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p'
  fi
}

free_port() { # FIRST: it or the next one that nobody listens on; the batch shell runs on the first node
  local port=$1
  while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
  printf '%s\n' "$port"
}

start_nodes() { # COMMAND OVERRIDE...
  local container=()
  if [ -n "${CONTAINER:-}" ]; then
    export VENV=system PYTHON=${CONTAINER_PYTHON:-python3}
    container=(--container-image="$CONTAINER" --container-mounts="$(mounts)" --container-workdir="$PWD")
  fi
  # --mpi=none: nothing here speaks MPI, and TensorRT-LLM must not join Slurm's. --cpu-bind=none: one task is all ranks of
  # a node, and Slurm would bind it to one core.
  exec srun --ntasks="$NNODES" --ntasks-per-node=1 --kill-on-bad-exit=1 --mpi=none --cpu-bind=none --export=ALL \
    --open-mode=append --output="$RUN_DIR/logs/node_%n.log" ${container[@]+"${container[@]}"} \
    "$ROOT/scripts/slurm/node.sh" "$@"
}

mounts() { # what the run reads and writes, at the same places inside
  local folder list=$ROOT:$ROOT
  for folder in "$PWD" "$(realpath "$RUN_DIR")" "${SIMPLERL_MODEL_DIR:-}" "${SIMPLERL_DATA_DIR:-}"; do
    if [ -n "$folder" ] && [ "$folder" != "$ROOT" ]; then list+=,$folder:$folder; fi
  done
  printf '%s\n' "$list${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS}"
}

ask_to_stop() { # SIGNAL
  if [ -n "$ASKED" ]; then return; fi
  ASKED=$1
  say "$1: asking the run to save and stop"
  keep_asking &
  KEEPER=$!
}

keep_asking() { # a run that starts removes the file: one that was told too early is told again
  while [ ! -e "$RUN_DIR/stopped.json" ]; do
    touch "$RUN_DIR/stop"
    sleep 2
  done
}

wait_for() { # PID: its exit status. A trap ends `wait` early.
  local status
  while true; do
    status=0
    wait "$1" || status=$?
    if ! kill -0 "$1" 2>/dev/null; then break; fi
  done
  if [ "$status" -gt 128 ]; then
    status=0
    wait "$1" || status=$?
  fi
  return "$status"
}

conclude() { # STATUS: of srun. Requeues the job, or ends it with 0 or 1.
  if [ "$1" -eq 0 ]; then
    say "the run is finished: $RUN_DIR"
  elif [ "$1" -eq 2 ]; then
    say "$(tail -qn 20 "$RUN_DIR"/logs/node_*.log | grep -E '^(config|error): ' | sort -u)"
    fail "the settings or the input cannot be used. Mend what is named above, and submit the job again"
  elif [ ! -f "$RUN_DIR/stopped.json" ]; then
    fail "the run failed (srun ended with $1); the first error is in $RUN_DIR/logs/node_*.log." \
      "The same job starts again from the last checkpoint."
  elif ! wants_more; then
    say "the run was stopped and saved: $(cat "$RUN_DIR/stopped.json"). To go on, submit the same job with" \
      "trainer.run_dir=$RUN_DIR"
  elif [ -f "$RUN_DIR/logs/resumed_from.json" ] &&
    [ "$(progress "$RUN_DIR/stopped.json")" = "$(progress "$RUN_DIR/logs/resumed_from.json")" ]; then
    fail "this allocation got no further than the last one ($(cat "$RUN_DIR/stopped.json")): not queued again." \
      "Give the job more time (--time), or stop it later (--signal=B:USR1@SECONDS)."
  else
    say "saved; the job goes on in its next allocation"
    scontrol requeue "$SLURM_JOB_ID"
  fi
}

wants_more() { # the time was up, ours or trainer.max_time; a stop that somebody else asked for is meant to last
  [ "$ASKED" = USR1 ] || { [ -z "$ASKED" ] && grep -q max_time "$RUN_DIR/stopped.json"; }
}

progress() { # STOPPED.JSON: what was done
  grep -oE '"(step|updates_in_step)": *[0-9]+' "$1"
}
