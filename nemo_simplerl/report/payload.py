"""Packs the samples for the page: columns of JSON, gzip, base64; as many rows as the page has room for."""

import base64
import gzip
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from nemo_simplerl.report.mathml import PATTERN, TAGS, Tree, fragments, is_available, tree_of
from nemo_simplerl.report.samples import ReportSample, SampleSelection, thin

_MAX_FORMULAS = 8_000  # of a millisecond each
_ROWS_SHARE = 0.75  # of the room; formulas have the rest

_tree_of = lru_cache(maxsize=4 * _MAX_FORMULAS)(tree_of)  # the same formulas come again when the page is made anew


@dataclass(frozen=True)
class Payload:
    """The packed samples: base64 `text` with `num_kept` of the `num_written` samples."""

    text: str
    num_kept: int
    num_written: int
    num_formulas: int


def pack_samples(samples: Sequence[SampleSelection], labels: Sequence[str], max_chars: int) -> Payload:
    """Pack the samples of the runs `labels` into at most `max_chars` of base64, but at least one sample a run."""
    max_bytes = max_chars // 4 * 3
    share = 1.0
    while True:
        kept = [thin(of_run.rows, share) for of_run in samples]
        content = _content(kept, labels)
        size = len(_compressed(content))
        if size <= max_bytes * _ROWS_SHARE or sum(map(len, kept)) <= len(samples):
            break
        share *= min(0.9, 0.95 * max_bytes * _ROWS_SHARE / size)
    formulas = _formulas(kept) if is_available() else {}
    while True:
        data = _compressed(content | {"math": formulas})
        if len(data) <= max_bytes or not formulas:
            break
        formulas = dict(list(formulas.items())[: len(formulas) * 2 // 3])
    return Payload(
        base64.b64encode(data).decode(),
        sum(map(len, kept)),
        sum(of_run.num_written for of_run in samples),
        len(formulas),
    )


def _content(kept: Sequence[Sequence[ReportSample]], labels: Sequence[str]) -> dict[str, Any]:
    """One column for each field. Each prompt is stored once: a problem recurs in every evaluation and epoch."""
    prompts: dict[str, int] = {}
    rows = [_row(run, sample, prompts) for run, of_run in enumerate(kept) for sample in of_run]
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    return {
        "runs": list(labels),
        "prompts": list(prompts),
        "columns": columns,
        "pattern": PATTERN,
        "tags": sorted(TAGS),
    }


def _row(run: int, sample: ReportSample, prompts: dict[str, int]) -> dict[str, Any]:
    row = sample.row
    return {
        "run": run,
        "source": sample.source,
        "step": sample.step,
        "id": str(row.get("id", "")),
        "prompt": prompts.setdefault(str(row.get("prompt", "")), len(prompts)),
        "gold": str(row.get("gold", "")),
        "verdict": str(row.get("verdict", "")),
        "status": str(row.get("status", "")),
        "reward": _finite(row.get("reward")),
        "length": _finite(row.get("length")),
        "truncated": int(row.get("finish_reason") == "length"),
        "level": sample.level,
        "subject": sample.subject,
        "answer": sample.answer,
        "response": sample.response,
    }


def _finite(value: Any) -> float | int | None:
    """The number; None where it is NaN or infinite, which JSON in a browser cannot hold."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _formulas(kept: Sequence[Sequence[ReportSample]]) -> dict[str, Tree]:
    prompts = {str(sample.row.get("prompt", "")) for of_run in kept for sample in of_run}
    texts = [*sorted(prompts), *(sample.response for of_run in kept for sample in of_run)]
    trees = {latex: _tree_of(latex) for latex in fragments(texts)[:_MAX_FORMULAS]}
    return {latex: tree for latex, tree in trees.items() if tree is not None}


def _compressed(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    # Lone surrogates, which a byte-level tokenizer can leave, are no UTF-8.
    return gzip.compress(text.encode("utf-8", "replace"), mtime=0)
