"""Reads the samples of a run for the page: thinned evenly, each with what explains its verdict."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_simplerl.data.problems import levels_and_subjects
from nemo_simplerl.report.read import settings_of
from nemo_simplerl.reward.extract import final_answers

MAX_RESPONSE_CHARS = 12_000  # of one response; the middle of a longer one is left out
_MAX_BYTES = 64 * 2**20  # of the files, that are read into memory


@dataclass(frozen=True)
class ReportSample:
    """A response of a run. `source` is training or, in an evaluation, greedy or sampled."""

    source: str
    step: int
    row: Mapping[str, Any]
    level: str
    subject: str
    answer: str | None
    response: str


@dataclass(frozen=True)
class SampleSelection:
    """The samples of a run that were read: an even choice of the `num_written` ones."""

    rows: tuple[ReportSample, ...]
    num_written: int


def load_samples(run_dir: Path, max_bytes: int = _MAX_BYTES) -> SampleSelection:
    """The samples of a run directory; an even choice of each step's where the files are larger than `max_bytes`.

    ValueError where a file is damaged.
    """
    labels = _labels(run_dir)
    files = [
        (folder, path) for folder in ("rollouts", "eval") for path in sorted((run_dir / folder).glob("step_*.jsonl"))
    ]
    total = sum(path.stat().st_size for _, path in files)
    share = min(1.0, max_bytes / max(total, 1))
    rows: list[ReportSample] = []
    num_written = 0
    for folder, path in files:
        chosen, count = _read(path, share)
        num_written += count
        rows += [_sample(folder, path, row, labels[folder]) for row in chosen]
    return SampleSelection(tuple(rows), num_written)


def thin(samples: Sequence[ReportSample], share: float) -> list[ReportSample]:
    """About `share` of each step's rows, evenly. The first row of every step stays, so that its prompt is in every
    evaluation. Below one row a step, steps are left out evenly."""
    by_step: dict[tuple[str, int], list[ReportSample]] = {}
    for sample in samples:
        by_step.setdefault((sample.source, sample.step), []).append(sample)
    longest = max(map(len, by_step.values()), default=0)
    groups = list(by_step.values())
    if share * longest < 1:
        groups = [group for number, group in enumerate(groups) if is_kept(number, share * longest)]
    return [sample for group in groups for number, sample in enumerate(group) if is_kept(number, share)]


def is_kept(number: int, share: float) -> bool:
    """Whether row `number`, counted from 0, belongs to an even choice of `share` of the rows. Row 0 always does."""
    return number == 0 or int(number * share) > int((number - 1) * share)


def _read(path: Path, share: float) -> tuple[list[dict[str, Any]], int]:
    rows, count = [], 0
    with path.open("rb") as lines:
        for line in lines:
            if is_kept(count, share):
                rows.append(_parse(path, count + 1, line))
            count += 1
    return rows, count


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("response"), str):
        raise ValueError(f"{path}, line {number} is no sample: it has no response")
    return row


def _sample(folder: str, path: Path, row: dict[str, Any], labels: Mapping[str, tuple[str, str]]) -> ReportSample:
    response = row["response"]
    level, subject = labels.get(str(row.get("id", "")), ("", ""))
    return ReportSample(
        source="training" if folder == "rollouts" else str(row.get("mode", "greedy")),
        step=int(path.stem.removeprefix("step_")),
        row=row,
        level=str(row.get("level", level)),
        subject=str(row.get("subject", subject)),
        answer=row["answer"] if "answer" in row else ", ".join(final_answers(response)) or None,
        response=_shortened(response),
    )


def _shortened(text: str) -> str:
    if len(text) <= MAX_RESPONSE_CHARS:
        return text
    half = MAX_RESPONSE_CHARS // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"


def _labels(run_dir: Path) -> dict[str, dict[str, tuple[str, str]]]:
    """Level and subject by problem id, for rollouts and for eval; empty where the problems are not on this machine."""
    data = settings_of(run_dir, "data")
    return {
        folder: _labels_of(run_dir, data.get(key))
        for folder, key in (("rollouts", "train_path"), ("eval", "eval_path"))
    }


def _labels_of(run_dir: Path, named: str | None) -> dict[str, tuple[str, str]]:
    # A run directory that was moved took its own data along.
    paths = [Path(named), run_dir / "data" / Path(named).name] if named else []
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return {}
    try:
        found = levels_and_subjects(path)
    except ValueError:  # the file is not the one the run read, and a report has little need of it
        return {}
    return {id_: ("" if level is None else str(level), subject or "") for id_, (level, subject) in found.items()}
