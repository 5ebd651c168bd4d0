"""What a run directory knows of the checkpoints it has had, so that no run starts over in silence."""

from pathlib import Path

from nemo_simplerl.files import atomic_write, read_jsonl
from nemo_simplerl.trainer.saving.position import TrainingPosition, position_of

SAVED = ".saved"  # in the run directory, not among the checkpoints: it is to outlive them


def remember_saved(run_dir: Path, position: TrainingPosition) -> None:
    """Write down that the checkpoint of `position` is complete."""
    atomic_write(run_dir / SAVED, position.name + "\n")


def check_history(run_dir: Path, found: TrainingPosition | None) -> list[str]:
    """What to know of a run that goes on from the checkpoint `found`, in words; None: it starts from step 1.

    Raises ValueError where it would start over although it had saved.
    """
    saved = _last_saved(run_dir)
    if found is not None:
        gone = f"the checkpoint of {saved.in_words}, which the run had saved, is gone or passed over" if saved else ""
        return [f"{gone}; it goes on from {found.in_words}"] if saved is not None and saved > found else []
    if saved is not None or (run_dir / "summary.json").is_file():
        what = "its end" if saved is None else saved.in_words
        raise ValueError(
            f"{run_dir} has no checkpoint any more, and the run there had saved {what}. Bring its folder checkpoints "
            "back to go on; choose another trainer.run_dir; or start over with trainer.resume=false, which replaces "
            "the metrics and samples that are there."
        )
    steps = max((row["step"] for row in read_jsonl(run_dir / "metrics.jsonl")), default=0)
    if steps == 0:
        return []
    return [
        f"{run_dir} has the metrics of {steps} steps and no checkpoint: the run starts over from step 1, and those "
        "steps are made again. A smaller trainer.save_every saves earlier."
    ]


def _last_saved(run_dir: Path) -> TrainingPosition | None:
    try:
        return position_of((run_dir / SAVED).read_text().strip())
    except (OSError, UnicodeDecodeError):
        return None
