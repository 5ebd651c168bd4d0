"""What a dry run found: memory beside the formula's, counts by phase, and what is wrong."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_simplerl.dry.collectives import Collective, differences, on_the_host
from nemo_simplerl.dry.sample import Sample, at_depth, sample_of
from nemo_simplerl.plan.engines.base import is_in_trainer
from nemo_simplerl.plan.layout import Layout
from nemo_simplerl.plan.memory import memory

TOLERANCE = 0.02  # of the formula's peak
# The phases of the trainer that a phase of the plan stands for. A dry run has no rollout.
_EXECUTED = {
    "start": ("start",),
    "log-probabilities": ("old_logprobs", "reference_logprobs", "values"),
    "critic update": ("critic_update",),
    "actor update": ("actor_update",),
    "refit": ("refit",),
}
_REFITS = ("start", "refit")  # of pipeline stages pretended: each knows its own weights alone
_NOT_EXECUTED = {"engine KV cache", "engine sampling", "digests"}


@dataclass(frozen=True)
class Row:
    """Peak bytes of a phase on the fullest GPU, for the samples that were executed: by the formula, and allocated."""

    phase: str
    formula: int
    executed: int

    @property
    def difference(self) -> float:
        """How far what was executed lies from the formula, as a share of the formula."""
        return round(self.executed / self.formula - 1, 6)

    @property
    def is_right(self) -> bool:
        """Whether the two agree. The formula of the start is an upper bound."""
        return self.difference <= TOLERANCE and (self.phase == "start" or self.difference >= -TOLERANCE)


@dataclass(frozen=True, kw_only=True)
class Execution:
    """A step that was executed. Counts and traffic are of rank 0 and, like the rows, of the model's whole depth."""

    sample: Sample
    ranks: list[int]
    depths: list[int]
    num_layers: int
    rows: list[Row]
    counts: dict[str, dict[str, int]]  # phase of the trainer -> count by name
    traffic: list[dict[str, Any]]  # a dict of Traffic each
    problems: list[str]
    seconds: float  # of the child process, and its most memory
    host_bytes: int


def execution_of(layout: Layout, results: Sequence[Mapping[str, Any]], seconds: float) -> Execution:
    """The findings of the child's results for one layout."""
    sample, small = sample_of(layout)
    whole = layout.shape.num_layers
    depths = sorted({result["num_layers"] for result in results})
    problems = list(dict.fromkeys(f"rank {one['rank']}: {one['error']}" for one in results if one["error"]))
    rows: list[Row] = []
    counts: dict[str, dict[str, int]] = {}
    traffic: list[dict[str, Any]] = []
    if not problems:
        stages = {rank: [one for one in results if one["rank"] == rank] for rank in _of_every_depth(results, depths)}
        rows = _rows(at_depth(small, whole), [_peaks(of_rank, whole) for of_rank in stages.values()])
        counts = _counts(stages[0], whole)
        traffic = _traffic(stages[0], whole)
        problems += [_words_of(row) for row in rows if not row.is_right]
        shallow = [one for one in results if one["num_layers"] == depths[0]]
        calls = {one["rank"]: [_collective(call) for call in one["collectives"]] for one in shallow}
        if layout.pipeline > 1:
            calls = {rank: [call for call in of_rank if call.phase not in _REFITS] for rank, of_rank in calls.items()}
        problems += [f"ranks do not make the same calls: {text}" for text in differences(calls)]
        problems += on_the_host(calls[0])
    return Execution(
        sample=sample,
        ranks=sorted({result["rank"] for result in results}),
        depths=depths,
        num_layers=whole,
        rows=rows,
        counts=counts,
        traffic=traffic,
        problems=problems,
        seconds=seconds,
        host_bytes=max((result["host_bytes"] for result in results), default=0),
    )


def extrapolated(values: Mapping[int, float], depth: int) -> int:
    """The value at `depth` of a straight line through those at two depths; of one depth, that one's."""
    (first, low), *others = sorted(values.items())
    if not others:
        return round(low)
    last, high = others[-1]
    return round(high + (high - low) * (depth - last) / (last - first))


def _of_every_depth(results: Iterable[Mapping[str, Any]], depths: Sequence[int]) -> list[int]:
    """The ranks that were executed at the largest depth, and so at every one."""
    return sorted({result["rank"] for result in results if result["num_layers"] == depths[-1]})


def _rows(layout: Layout, peaks: Sequence[Mapping[str, int]]) -> list[Row]:
    """The plan's phases: the formula of `layout`, and the most of all ranks."""
    found = []
    for phase in memory(layout).phases:
        names = _EXECUTED.get(phase.name, ())
        executed = max((of_rank[name] for of_rank in peaks for name in names if name in of_rank), default=None)
        is_pretended = layout.pipeline > 1 and phase.name in _REFITS
        if executed is not None and not is_pretended:
            formula = sum(size for name, size in phase.parts.items() if _is_executed(name, layout))
            found.append(Row(phase.name, formula, executed))
    return found


def _is_executed(part: str, layout: Layout) -> bool:
    """Whether a part of the formula is on the pretended GPU. An engine in another process is not."""
    return part not in _NOT_EXECUTED and (is_in_trainer(layout.engine.name) or not part.startswith("engine "))


def _peaks(of_rank: Sequence[Mapping[str, Any]], depth: int) -> dict[str, int]:
    phases = of_rank[0]["peaks"]
    return {
        phase: extrapolated({one["num_layers"]: one["peaks"].get(phase, 0) for one in of_rank}, depth)
        for phase in phases
    }


def _counts(of_rank: Sequence[Mapping[str, Any]], depth: int) -> dict[str, dict[str, int]]:
    return {
        phase: {
            name: extrapolated({one["num_layers"]: one["counts"].get(phase, counts)[name] for one in of_rank}, depth)
            for name in counts
        }
        for phase, counts in of_rank[0]["counts"].items()
    }


def _traffic(of_rank: Sequence[Mapping[str, Any]], depth: int) -> list[dict[str, Any]]:
    def key(one: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(value for name, value in one.items() if name not in ("calls", "bytes"))

    by_depth = {one["num_layers"]: {key(call): call for call in one["traffic"]} for one in of_rank}
    found = []
    for call in of_rank[-1]["traffic"]:
        same = {layers: calls.get(key(call), {"calls": 0, "bytes": 0}) for layers, calls in by_depth.items()}
        totals = {
            name: extrapolated({layers: one[name] for layers, one in same.items()}, depth)
            for name in ("calls", "bytes")
        }
        found.append({**call, **totals})
    return found


def _collective(call: Sequence[Any]) -> Collective:
    phase, operation, ranks, *others = call
    return Collective(phase, operation, tuple(ranks), *others)


def _words_of(row: Row) -> str:
    return (
        f"memory: {row.phase} allocates {row.executed / 2**30:.2f} GiB, the plan says {row.formula / 2**30:.2f} "
        f"({row.difference:+.1%}; at most {TOLERANCE:.0%} is right)."
    )
