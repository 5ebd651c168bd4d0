"""The summary of a finished run, computed from its metrics.jsonl."""

from dataclasses import replace
from pathlib import Path

from nemo_simplerl.config.schema import Config
from nemo_simplerl.report.read import load_run, summary_so_far


def summary_of(run_dir: Path, config: Config, world_size: int) -> dict:
    """First and last evaluation, steps, seed and world size; seconds include the warm start and the evaluations."""
    run = replace(load_run(run_dir), summary=None)
    return summary_so_far(run) | {
        "train_seconds": sum(row["time/total"] for row in run.rows),
        "seed": config.trainer.seed,
        "world_size": world_size,
    }
