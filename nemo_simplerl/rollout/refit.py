"""Sending new weights to engines in buckets, and the check of all ranks that every engine holds them."""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch.distributed as dist
import xxhash
from torch import Tensor

from nemo_simplerl.parallel.reductions import gather_objects
from nemo_simplerl.rollout.base import Bucket, RolloutEngine
from nemo_simplerl.rollout.digest import digest

_NAMED = 3  # tensors a message names


def bucketed(stream: Iterable[tuple[str, Tensor]], max_bytes: int) -> Iterator[Bucket]:
    """The named tensors in their order, in buckets of at most `max_bytes`; a larger tensor has a bucket of its own."""
    bucket: Bucket = []
    size = 0
    for name, tensor in stream:
        if bucket and size + tensor.nbytes > max_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, tensor))
        size += tensor.nbytes
    if bucket:
        yield bucket


class _Shipment:
    """The buckets sent to an engine, with a record of what they held."""

    def __init__(self, buckets: Iterable[Bucket], with_digests: bool):
        self._buckets, self._with_digests = iter(buckets), with_digests
        self.bucket_of: dict[str, int] = {}
        self.digests: dict[str, int] = {}
        self.num_buckets = self.num_bytes = 0

    def __iter__(self) -> Iterator[Bucket]:
        # Hashing lets go of the interpreter: host tensors are hashed while the engine copies them.
        with ThreadPoolExecutor(1) as beside:
            for bucket in self._buckets:
                self.bucket_of |= dict.fromkeys((name for name, _ in bucket), self.num_buckets)
                self.num_bytes += sum(tensor.nbytes for _, tensor in bucket)
                self.num_buckets += 1
                hashed = beside.submit(self._hash, list(bucket)) if self._with_digests else None
                yield bucket
                if hashed is not None:
                    hashed.result()
                del bucket  # the sender makes the next one now

    def drain(self) -> None:
        """Make and drop what was not sent, of which there is some where hashing has failed."""
        for _ in self._buckets:
            pass

    def _hash(self, bucket: Bucket) -> None:
        for name, tensor in bucket:
            self.digests[name] = digest(tensor)


@dataclass(frozen=True)
class _Report:
    """The result of one rank's part in a refit, which all ranks compare."""

    rank: int  # of the world
    version: int
    problem: str | None
    digest: int  # of the digests of all tensors that were sent


def verified_refit(
    engine: RolloutEngine,
    buckets: Iterable[Bucket],
    version: int,
    *,
    verify: bool,
    group: dist.ProcessGroup | None,
) -> dict[str, float]:
    """Refit this rank's engine, then agree with every rank of `group` (None: alone) that all hold `version`.

    With `verify`, each engine must hold what was sent to it, tensor by tensor, and all ranks must have sent the same;
    without, only names, shapes and versions are compared. Returns metrics. Collective. Raises RuntimeError on every
    rank when a rank failed or disagrees; all engines then refuse to generate until a refit succeeds.
    """
    shipment = _Shipment(buckets, verify)
    error: Exception | None = None
    try:
        problem = _ship(engine, shipment, version, verify)
    except Exception as caught:  # raised below on every rank: the others have engines to stop
        error, problem = caught, in_words(caught)
    if (failure := agree(version, problem, shipment.digests, group)) is not None:
        engine.invalidate(f"its {failure}")
        raise RuntimeError(f"{failure}.") from error
    return refit_metrics(version, shipment.num_buckets, shipment.num_bytes, verify)


def agree(version: int, problem: str | None, digests: Mapping[str, int], group: dist.ProcessGroup | None) -> str | None:
    """What went wrong with the refit to `version` on any rank of `group`, the same words on each; None where all hold
    it. Collective.

    problem: what went wrong on this rank. digests: of the tensors that this rank sent, or was sent, by name.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    digest_of_all = xxhash.xxh3_64_intdigest(repr(sorted(digests.items())).encode())
    reports = gather_objects(_Report(rank, version, problem, digest_of_all), group)
    problems = _failures(reports)
    if not problems and len({report.digest for report in reports}) > 1:
        problems = _disagreements([report.rank for report in reports], gather_objects(digests, group))
    return f"refit to version {reports[0].version} failed on {'; '.join(problems)}" if problems else None


def refit_metrics(version: int, num_buckets: int, num_bytes: int, verify: bool) -> dict[str, float]:
    """The metrics of a refit that succeeded."""
    return {
        "refit/version": float(version),
        "refit/buckets": float(num_buckets),
        "refit/bytes": float(num_bytes),
        "refit/verified": float(verify),
    }


def in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _ship(engine: RolloutEngine, shipment: _Shipment, version: int, verify: bool) -> str | None:
    """Refit the engine; returns what is wrong with the result in words, None where nothing is."""
    stream = iter(shipment)
    try:
        landed = engine.refit(stream, version, digests=verify)
        taken = shipment.num_buckets
    finally:
        try:
            for _ in stream:  # the other ranks are in the same collectives
                pass
        finally:
            shipment.drain()
    if taken < shipment.num_buckets:
        return f"the engine took {taken} of {shipment.num_buckets} buckets"
    if engine.weight_version != version:
        return f"the engine reports version {engine.weight_version}"
    return _difference(shipment, landed) if verify else None


def _difference(shipment: _Shipment, landed: dict[str, int]) -> str | None:
    """How the digests of what landed in the engine differ from those that were sent, in words; None if they agree."""
    sent = shipment.digests
    changed = [name for name in sent if name in landed and landed[name] != sent[name]]
    lost = [name for name in sent if name not in landed]
    surplus = [name for name in landed if name not in sent]
    parts = []
    if changed:
        parts.append(f"the engine holds other values than were sent: {_located(changed, shipment)}")
    if lost:
        parts.append(f"the engine does not report {_located(lost, shipment)}")
    if surplus:
        parts.append(f"the engine reports what was not sent: {_few(surplus)}")
    return "; ".join(parts) or None


def _failures(reports: list[_Report]) -> list[str]:
    """Each rank whose part failed, or which was called with another version than the first rank."""
    first = reports[0]
    return [f"rank {report.rank}: {report.problem}" for report in reports if report.problem] + [
        f"rank {report.rank}: was asked for version {report.version}, rank {first.rank} for {first.version}"
        for report in reports
        if report.version != first.version
    ]


def _disagreements(ranks: list[int], digests: list[Mapping[str, int]]) -> list[str]:
    """Each rank that sent, or was sent, other tensors than the first rank sent."""
    first = digests[0]
    return [
        f"rank {rank}: was sent other weights than rank {ranks[0]}: "
        + _few(sorted(name for name in first.keys() | other.keys() if first.get(name) != other.get(name)))
        for rank, other in zip(ranks, digests, strict=True)
        if other != first
    ]


def _located(names: list[str], shipment: _Shipment) -> str:
    return _few([f"{name} (bucket {shipment.bucket_of[name]})" for name in names])


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
