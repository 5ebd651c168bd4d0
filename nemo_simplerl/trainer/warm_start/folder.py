"""Where a warm start keeps its checkpoints. Imports no torch: the folder is held before that loads."""

from pathlib import Path


def checkpoints_of(output: str) -> Path:
    """The folder of the checkpoints of a warm start whose result is to be `output`."""
    return Path(output).with_name(f"{Path(output).name}.checkpoints")
