"""The graded responses of a run directory or of one file, read one at a time."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class ResponseRow:
    """A response with its gold answer. `place` is file:line; `verdict` is None where it was not graded yet."""

    place: str
    gold: str
    response: str
    prompt: str
    verdict: str | None
    status: str


def response_files(path: Path | str) -> list[Path]:
    """The file itself, or the rollouts and evaluations of a run directory by step. FileNotFoundError without any."""
    path = Path(path)
    if path.is_file():
        return [path]
    files = [file for folder in ("rollouts", "eval") for file in sorted((path / folder).glob("*.jsonl"))]
    if not files:
        raise FileNotFoundError(
            f"{path} is neither a .jsonl file nor a run directory with rollouts/ or eval/; "
            "give a trainer.run_dir, or a file of objects with gold and response"
        )
    return files


def read_responses(files: list[Path]) -> Iterator[ResponseRow | None]:
    """Every row in order; None for an unreadable line, such as the torn last line of a run in progress."""
    for file in files:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _row(f"{file.parent.name}/{file.name}:{number}", line)


def _row(place: str, line: bytes) -> ResponseRow | None:
    try:
        values: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not isinstance(values.get("response"), str) or "gold" not in values:
        return None
    prompt, verdict, status = (values.get(name) for name in ("prompt", "verdict", "status"))
    return ResponseRow(
        place,
        str(values["gold"]),
        values["response"],
        prompt if isinstance(prompt, str) else "",
        verdict if isinstance(verdict, str) else None,
        status if isinstance(status, str) else "ok",
    )
