#!/usr/bin/env bash
# Fills a folder with the wheels that scripts/gpu_first_hour.sh needs on a machine with torch and transformers and no
# network: what this project imports beyond those two, in the versions of constraints-newest.txt.
#
# usage: scripts/gpu_wheels.sh FOLDER [PYTHON_VERSION]     (of the GPU's machine, default 3.12; x86-64 Linux)
#        scripts/gpu_wheels.sh --list                      (what it would fetch)
#
# Environment: EXCEPT (names that the machine has too, for a smaller folder: "matplotlib pillow grpcio"), PYTHON (an
# interpreter with pip, default python3), PIP_* (pip's own).
set -euo pipefail
# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

# torch, transformers and what they bring; then packages of tests, engines and logging that the first hour does without.
LEFT_OUT=" torch cuda-bindings cuda-pathfinder cuda-toolkit filelock fsspec jinja2 networkx sympy typing-extensions \
 transformers huggingface-hub tokenizers safetensors regex tqdm hf-xet httpcore2 httpx2 truststore typer shellingham numpy \
 hypothesis sortedcontainers pytest-xdist execnet ray msgpack jsonschema jsonschema-specifications referencing rpds-py \
 attrs wandb sentry-sdk platformdirs pyarrow opentelemetry-api tzdata ${EXCEPT:-} "

wanted() { # NAME==VERSION, a line each
  local pin
  sed -n 's/^\([A-Za-z0-9._-]*==[^ ;]*\).*/\1/p' "$ROOT/constraints-newest.txt" | while read -r pin; do
    case $LEFT_OUT in *" ${pin%%==*} "*) ;; *) printf '%s\n' "$pin" ;; esac
  done
}

case "$#:$*" in
  1:-h | 1:--help) usage "${BASH_SOURCE[0]}" && exit 0 ;;
  1:--list) wanted && exit 0 ;;
  [12]:-* | 2:*" "-* | 0:* | [!12]:*)
    usage "${BASH_SOURCE[0]}" >&2
    exit 2
    ;;
esac
FOLDER=$1 VERSION=${2:-3.12}
case $VERSION in
  3.[0-9] | 3.[0-9][0-9]) ;;
  *) fail "'$VERSION' is no Python version; write one as 3.12" ;;
esac
PY=${PYTHON:-python3}
mkdir -p "$FOLDER"
platforms=()
for glibc in 39 34 31 28 27 24 17 12 5; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64)
for pin in $(wanted); do
  case $pin in
    # It is published as source alone, of pure Python.
    antlr4-python3-runtime==*)
      "$PY" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$FOLDER" "$pin"
      ;;
    *)
      "$PY" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --python-version "$VERSION" --implementation cp "${platforms[@]}" --dest "$FOLDER" "$pin"
      ;;
  esac || fail "no wheel of $pin for Python $VERSION"
done
count=$(find "$FOLDER" -name '*.whl' | wc -l)
say "$count wheels, $(du -sm "$FOLDER" | cut -f1) MB: scripts/gpu_first_hour.sh --wheels $FOLDER"
