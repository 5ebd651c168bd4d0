"""`simplerl doctor`: what is installed, what the machine has, and whether TensorRT-LLM has the calls that we make."""

import argparse
import platform
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

# Distribution names, and whether no run starts without it.
PACKAGES = (
    ("torch", True),
    ("megatron-core", True),
    ("transformers", True),
    ("transformer-engine", False),
    ("apex", False),
    ("nemo-toolkit", False),
    ("tensorrt-llm", False),
    ("ray", False),
)


def run(argv: list[str]) -> int:
    """Exit status: 1 where something that the installed setup needs is missing or different, else 0."""
    argparse.ArgumentParser(
        prog="simplerl doctor",
        description="Versions, GPU and free space of this machine, and the installed TensorRT-LLM read against the "
        "calls that rollout.engine=trtllm makes. Ends with 1 where a run would not work.",
    ).parse_args(argv)
    rows = [("python", platform.python_version()), *((name, version(name) or "absent") for name, _ in PACKAGES)]
    gpu, problems = gpu_in_words()
    for name, text in [*rows, ("GPU", gpu), ("disk", free_space(Path.cwd())), ("shm", free_space(Path("/dev/shm")))]:
        print(f"{name:<20}{text}")
    problems += [f"{name} is required and not installed" for name, needed in PACKAGES if needed and not version(name)]
    problems += list(engine_problems())
    for problem in problems:
        print(f"problem: {problem}")
    return 1 if problems else 0


def version(name: str) -> str | None:
    """Of an installed distribution."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def gpu_in_words() -> tuple[str, list[str]]:
    """What torch sees, and what is wrong where it cannot look."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return "not known", [f"torch cannot be imported: {error}"] if version("torch") else []
    if not torch.cuda.is_available():
        return "none that torch can use", []
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return ", ".join(f"{device.name} ({device.total_memory / 2**30:.0f} GiB)" for device in devices), []


def free_space(folder: Path) -> str:
    if not folder.is_dir():
        return f"there is no {folder}"
    return f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB free in {folder}"


def engine_problems() -> Iterator[str]:
    """Of TensorRT-LLM; says on the way what was checked."""
    from nemo_simplerl.rollout.contract import CONTRACT, differences, installed_source

    source = installed_source()
    if source is None:
        print("tensorrt-llm is not installed: rollout.engine=hf works, rollout.engine=trtllm does not")
        return
    found = differences(source)
    print(f"tensorrt-llm in {source}: {len(CONTRACT)} things that the adapter uses, {len(found)} differences")
    yield from (f"tensorrt-llm {difference}" for difference in found)
    if version("ray") is None:
        yield "tensorrt-llm is installed and ray, which its refit works through, is not"
