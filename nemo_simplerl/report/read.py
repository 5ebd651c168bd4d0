"""Reads a run directory: the metrics and the summary that the trainer wrote, also of an unfinished or killed run."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from nemo_simplerl.config.placement import ROLES
from nemo_simplerl.files import read_jsonl

# In summary.json each stands with `_before` and `_after`; in metrics.jsonl under the key on the right.
BEFORE_AFTER = {
    "accuracy": "eval/accuracy",
    "sampled_accuracy": "eval/sampled_accuracy",
    "format_rate": "eval/format_rate",
    "length": "eval/length_mean",
}

_OTHERS = "the other ranks"
# Prefixes of metric names: what earlier versions wrote -> today's.
RENAMED_PREFIXES = {"policy/": "actor/"}


@dataclass(frozen=True)
class RunData:
    """The rows of metrics.jsonl by step, under today's keys, and summary.json: None until the run is over.

    `engine` is the rollout engine that config.yaml names, None where that says nothing of one. `placement` has the
    ranks of each role as config.yaml names them, empty where all roles live on all ranks.
    """

    path: Path
    rows: tuple[dict[str, Any], ...]
    summary: dict[str, Any] | None
    engine: str | None = None
    placement: Mapping[str, str] = field(default_factory=dict)

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """The steps at which `key` was measured as a finite number, and its values."""
        points = [(row["step"], row[key]) for row in self.rows if row.get(key) is not None]
        return [step for step, _ in points], [value for _, value in points]

    @property
    def last_step(self) -> int:
        """The step of the last row; 0 before the first."""
        return self.rows[-1]["step"] if self.rows else 0


def load_run(run_dir: Path | str) -> RunData:
    """The data of a run directory. FileNotFoundError where it is none, ValueError where a file of it is damaged."""
    path = Path(run_dir)
    metrics = path / "metrics.jsonl"
    if not metrics.is_file():
        raise FileNotFoundError(
            f"{path} is not a run directory: it has no metrics.jsonl; give the run's trainer.run_dir"
        )
    rows = read_jsonl(metrics)
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("step"), int):
            raise ValueError(f"{metrics}, line {number} has no step")
    engine = settings_of(path, "rollout").get("engine")
    summary = _summary(path / "summary.json")
    return RunData(path, tuple(map(with_current_keys, rows)), summary, engine, _placement(path))


def _placement(run_dir: Path) -> dict[str, str]:
    """The ranks of each role as config.yaml names them; empty where it names none."""
    named = settings_of(run_dir, "placement")
    if all(ranks is None for ranks in named.values()):
        return {}
    has_critic = settings_of(run_dir, "algo").get("advantage", "gae") == "gae"
    roles = ROLES if has_critic else ("actor", "engine")
    return {role: _OTHERS if named.get(role) is None else f"ranks {named[role]}" for role in roles}


def settings_of(run_dir: Path, section: str) -> dict[str, Any]:
    """A section of RUN_DIR/config.yaml; empty where there is none. Raises ValueError where the file is damaged."""
    file = run_dir / "config.yaml"
    try:
        return dict((yaml.safe_load(file.read_text()) or {}).get(section) or {}) if file.is_file() else {}
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged: bring it back from a copy, or delete it") from error


def _summary(file: Path) -> dict[str, Any] | None:
    """The content of summary.json, None before the run's end. Raises ValueError where it is damaged."""
    if not file.is_file():
        return None
    try:
        summary = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}): bring it back from a copy, or delete it") from error
    if not isinstance(summary, dict):
        raise ValueError(f"{file} is no JSON object: bring it back from a copy, or delete it")
    return summary


def warnings_of(run_dir: Path) -> list[str]:
    """The run's warnings so far, each with its time, in order. Lines of the file that are none of ours are left out."""
    file = run_dir / "messages.jsonl"
    rows = []
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        with suppress(ValueError):
            rows.append(json.loads(line))
    rows = [row for row in rows if isinstance(row, dict)]
    return [f"{row.get('time')} {row.get('text')}" for row in rows if row.get("level") in ("WARNING", "ERROR")]


def with_current_keys(row: dict[str, Any]) -> dict[str, Any]:
    """A row of metrics.jsonl under today's keys: `policy/kl_ref` of an earlier version becomes `actor/kl_ref`."""
    return {_current_key(key): value for key, value in row.items()}


def _current_key(key: str) -> str:
    for old, new in RENAMED_PREFIXES.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def summary_so_far(run: RunData) -> dict[str, Any]:
    """The contents of summary.json; what it lacks so far comes from the first and the latest evaluation."""
    so_far: dict[str, Any] = {"steps": run.last_step} | ({} if run.engine is None else {"engine": run.engine})
    if run.placement:
        so_far["placement"] = ", ".join(f"{role} on {ranks}" for role, ranks in run.placement.items())
    for name, key in BEFORE_AFTER.items():
        _, values = run.series(key)
        if values:
            so_far |= {f"{name}_before": values[0], f"{name}_after": values[-1]}
    return so_far | (run.summary or {})
