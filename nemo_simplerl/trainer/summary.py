"""What a finished run comes to, from its metrics.jsonl."""

import json
from pathlib import Path

from nemo_simplerl.config.schema import Config

_EVALUATED = {
    "accuracy": "eval/accuracy",
    "sampled_accuracy": "eval/sampled_accuracy",
    "format_rate": "eval/format_rate",
    "length": "eval/length_mean",
}


def summary_of(run_dir: Path, config: Config, world_size: int) -> dict:
    """First and last evaluation side by side; seconds include the warm start and the evaluations."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in lines if "eval/accuracy" in line]
    summary: dict = {}
    for name, key in _EVALUATED.items():
        for when, line in (("before", evaluated[0]), ("after", evaluated[-1])) if evaluated else ():
            if key in line:
                summary[f"{name}_{when}"] = line[key]
    return summary | {
        "steps": lines[-1]["step"],
        "train_seconds": sum(line["time/total"] for line in lines),
        "seed": config.trainer.seed,
        "world_size": world_size,
    }
