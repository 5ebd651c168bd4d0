"""New weights into engines, provably: buckets, digests, and one verdict of all ranks."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor

from nemo_simplerl.parallel.reductions import gather_objects
from nemo_simplerl.rollout.base import Bucket, RolloutEngine

# A block is hashed while the copy that made it is still in the cache: small enough for a share of it, large enough that
# Python's part of the work does not show.
_BLOCK_BYTES = 2**22
_DEVICE_WORDS = 2**22
_NAMED = 3  # tensors a message names


def bucketed(stream: Iterable[tuple[str, Tensor]], max_bytes: int) -> Iterator[Bucket]:
    """The stream in its order, cut before a bucket would pass `max_bytes`; a larger tensor travels alone."""
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


@torch.no_grad()
def digest(tensor: Tensor) -> int:
    """64 bits of the tensor's bytes in order. Two tensors compare where they are on the same kind of device.

    On the host XXH3 (two unlike tensors agree with odds of 2**-64); elsewhere `device_digest`.
    """
    if tensor.device.type != "cpu":
        return device_digest(tensor)
    hasher = xxhash.xxh3_64()
    hasher.update(_host_bytes(tensor))
    return hasher.intdigest()


@torch.no_grad()
def copy_and_digest(target: Tensor, source: Tensor) -> int:
    """Copy `source` into `target` of the same shape and dtype; `digest` of what `target` then holds."""
    if target.device.type != "cpu" or not (target.is_contiguous() and source.is_contiguous()):
        target.copy_(source)
        return digest(target)
    hasher = xxhash.xxh3_64()
    step = _BLOCK_BYTES // target.element_size()
    for to, origin in zip(target.view(-1).split(step), source.view(-1).split(step), strict=True):
        to.copy_(origin)
        hasher.update(_host_bytes(to))
    return hasher.intdigest()


@torch.no_grad()
def device_digest(tensor: Tensor) -> int:
    """A digest by tensor operations where the tensor lies: sum of w_i x_i modulo 2**64 over its 32-bit words x_i.

    The weights are pseudo-random and odd, so one flipped bit always shows; another change, such as two words swapped,
    goes unseen with odds of about 2**-32.
    """
    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if data.numel() % 4 or data.storage_offset() % 4:
        data = torch.nn.functional.pad(data, (0, -data.numel() % 4)).clone()
    weights = _word_weights(tensor.device)
    parts = [(words * weights[: len(words)]).sum() for words in data.view(torch.int32).split(_DEVICE_WORDS)]
    # Each part counts with a weight of its own, so that parts cannot change places; so does the length.
    parts.append(torch.full_like(weights[0], tensor.nbytes))
    return int((torch.stack(parts) * weights[: len(parts)]).sum())


@cache
def _word_weights(device: torch.device) -> Tensor:
    """Odd int64 [_DEVICE_WORDS], each a hash of its index: SplitMix64's finaliser, but with arithmetic shifts."""
    x = torch.arange(1, _DEVICE_WORDS + 1, device=device) * (0x9E3779B97F4A7C15 - 2**64)
    x = (x ^ (x >> 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ (x >> 27)) * (0x94D049BB133111EB - 2**64)
    return (x ^ (x >> 31)) | 1


def _host_bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data


class _Shipment:
    """The buckets on their way to an engine, and a record of what they held."""

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

    def _hash(self, bucket: Bucket) -> None:
        for name, tensor in bucket:
            self.digests[name] = digest(tensor)


@dataclass(frozen=True)
class _Report:
    """What one rank tells the others of its refit."""

    version: int
    problem: str | None
    fingerprint: int  # of all digests


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
        error, problem = caught, f"{type(caught).__name__}: {caught}"
    fingerprint = xxhash.xxh3_64_intdigest(repr(sorted(shipment.digests.items())).encode())
    reports = gather_objects(_Report(version, problem, fingerprint), group)
    problems = _failures(reports)
    if not problems and len({report.fingerprint for report in reports}) > 1:
        problems = _disagreements(gather_objects(shipment.digests, group))
    if problems:
        failure = f"refit to version {reports[0].version} failed on {'; '.join(problems)}"
        engine.invalidate(f"its {failure}")
        raise RuntimeError(f"{failure}.") from error
    return {
        "refit/version": float(version),
        "refit/buckets": float(shipment.num_buckets),
        "refit/bytes": float(shipment.num_bytes),
        "refit/verified": float(verify),
    }


def _ship(engine: RolloutEngine, shipment: _Shipment, version: int, verify: bool) -> str | None:
    """Refit the engine; what is wrong with the result in words, None where nothing is."""
    stream = iter(shipment)
    try:
        landed = engine.refit(stream, version, digests=verify)
        taken = shipment.num_buckets
    finally:
        for _ in stream:  # the other ranks are in the same collectives
            pass
    if taken < shipment.num_buckets:
        return f"the engine took {taken} of {shipment.num_buckets} buckets"
    if engine.weight_version != version:
        return f"the engine reports version {engine.weight_version}"
    return _difference(shipment, landed) if verify else None


def _difference(shipment: _Shipment, landed: dict[str, int]) -> str | None:
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
    problems = [f"rank {rank}: {report.problem}" for rank, report in enumerate(reports) if report.problem]
    version = reports[0].version
    return problems + [
        f"rank {rank}: was asked for version {report.version}, rank 0 for {version}"
        for rank, report in enumerate(reports)
        if report.version != version
    ]


def _disagreements(digests: list[dict[str, int]]) -> list[str]:
    """Each rank that sent other tensors than the first rank."""
    first = digests[0]
    return [
        f"rank {rank}: was sent other weights than rank 0: "
        + _few(sorted(name for name in first.keys() | other.keys() if first.get(name) != other.get(name)))
        for rank, other in enumerate(digests)
        if other != first
    ]


def _located(names: list[str], shipment: _Shipment) -> str:
    return _few([f"{name} (bucket {shipment.bucket_of[name]})" for name in names])


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
