#!/usr/bin/env bash
# Asks the run in a folder to save and stop, and returns when it has: for the preStop of a pod, a hook of SkyPilot's, a
# person.
#
# usage: scripts/stop.sh RUN_DIR [SECONDS]
#
# Ends with 0 when RUN_DIR/stopped.json says where the run stopped, or when no run is in RUN_DIR; with 1 when the run has
# not stopped after SECONDS (default 600), in which case it is still asked to.
set -euo pipefail
# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

case ${1:-} in
  -h | --help) usage "${BASH_SOURCE[0]}" && exit 0 ;;
  '') usage "${BASH_SOURCE[0]}" >&2 && exit 2 ;;
esac
run_dir=$1 limit=${2:-600}
check_count SECONDS "$limit"
[ -d "$run_dir" ] || fail "$run_dir is not a folder; name the run's trainer.run_dir"
SECONDS=0
while [ -e "$run_dir/running.json" ] && [ ! -e "$run_dir/stopped.json" ]; do
  if [ "$SECONDS" -ge "$limit" ]; then fail "the run in $run_dir has not stopped after $limit s; it is still asked to"; fi
  touch "$run_dir/stop" # again: a run that starts removes it
  sleep 1
done
rm -f "$run_dir/stop"
if [ -e "$run_dir/stopped.json" ]; then
  say "saved: $(cat "$run_dir/stopped.json")"
else
  say "no run is in $run_dir"
fi
