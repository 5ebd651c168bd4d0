#!/usr/bin/env bash
# Installs the project into the Python of an image, and of its requirements those that the image lacks.
#
# usage: docker/install.sh
#
# Environment: PYTHON (default python3), PIP_* (pip's own).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case ${1:-} in -h | --help) sed -n '2,/^[^#]*$/s/^# \{0,1\}//p' "docker/install.sh" && exit 0 ;; esac
PYTHON=${PYTHON:-python3}
# NVIDIA's images constrain pip by a file of their own, down to the build of a source tree; docker/lacking.py constrains
# it to all that is installed. Some of their environments are marked as the system's.
export PIP_CONSTRAINT="" PIP_BREAK_SYSTEM_PACKAGES=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
lists=$(mktemp -d)
trap 'rm -rf "$lists"' EXIT

"$PYTHON" -m pip --version >/dev/null 2>&1 || "$PYTHON" -m ensurepip
"$PYTHON" -m pip install --no-deps -e .
"$PYTHON" docker/lacking.py "$lists"
"$PYTHON" -m pip install --no-deps -r "$lists/replaced.txt"
"$PYTHON" -m pip install -c "$lists/installed.txt" -r "$lists/lacking.txt"
