"""Training checkpoints, `checkpoints/step_NNNNNN` of a run: an unpacked `.nemo` for the actor, one for its critic."""

from pathlib import Path

from nemo_simplerl.model.readers import nemo
from nemo_simplerl.model.readers.base import Reader, Source

_MANIFEST = "manifest.json"


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a folder with a manifest.json."""
    return (path / _MANIFEST).is_file()


def open_checkpoint(path: Path, critic: bool = False, tokenizer: Path | None = None) -> Source:
    """The actor of a training checkpoint, or with `critic` its critic. Raises ValueError as `nemo.open_nemo`."""
    inner = path / ("critic" if critic else "actor")
    if critic and is_checkpoint(path) and (path / "actor").is_dir() and not inner.exists():
        raise ValueError(f"{path} holds no critic, an actor alone. Give a checkpoint of a run that trains one.")
    if not is_checkpoint(path) or not inner.is_dir():
        raise ValueError(
            f"{path} is no complete training checkpoint: it lacks manifest.json or {inner.name}/; "
            "give a run's checkpoints/step_NNNNNN."
        )
    return nemo.open_nemo(inner, tokenizer=tokenizer, kind="checkpoint")


READER = Reader(f"a training checkpoint ({_MANIFEST})", is_checkpoint, open_checkpoint)
