"""A refit of engines on ranks of their own: the actor's first rank sends, every rank with an engine receives.

The ranks of its group first agree on what each bucket will hold. From then on all of them begin the same broadcasts,
one a bucket, whatever fails on one of them: what follows an error is sent and received all the same, and at the end all
ranks learn of it and no engine samples from what it holds. So an error ends a refit as soon as a success would.

Two buckets are in memory at each end. While one is on its way the sender gathers the next one, and the engine of a
receiver loads the one before.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_simplerl.parallel.reductions import gather_objects
from nemo_simplerl.parallel.waits import waiting
from nemo_simplerl.rollout.base import Bucket, RolloutEngine
from nemo_simplerl.rollout.digest import digest
from nemo_simplerl.rollout.refit import agree, in_words, refit_metrics, verified_refit

_ALIGNMENT = 16  # of tensors in a buffer: every dtype can view its part
_DEPTH = 2  # buckets in memory

Form = tuple[str, tuple[int, ...], torch.dtype]  # of a tensor: its name, shape and dtype


class Export(Protocol):
    """The weights that are sent, bucket by bucket. All it does is collective over the ranks of the sender's replica."""

    has_buffer: bool  # whether the tensors of a bucket lie in a buffer of its own, which the next bucket overwrites
    device: torch.device

    @property
    def contents(self) -> Sequence[Bucket]:
        """Each bucket, of tensors without bytes."""

    def __iter__(self) -> Iterator[Iterable[tuple[str, Tensor]]]:
        """Each bucket in turn, gathered, whose tensors are made as they are asked for."""


class _Route:
    """This rank's buffers, and the broadcasts from the group's first rank through them, which every rank begins in the
    same order. Each must begin one for every bucket.

    A buffer is written or read again only after the wait for its broadcast; NCCL's wait orders streams, so the tensors
    that it reads must stay as they are until then, as the buffers do. The sender alone is at work in two groups, its
    replica's and this one, so that no circle of ranks can wait for each other.
    """

    def __init__(self, forms: Sequence[Sequence[Form]], depth: int, device: torch.device, group: dist.ProcessGroup):
        self._forms, self._group = forms, group
        self._ends = [_offsets(bucket)[-1] for bucket in forms]
        self._buffers = [torch.empty(max(self._ends), dtype=torch.uint8, device=device) for _ in range(depth)]
        self._works: list[dist.Work | None] = [None] * depth
        self._num_begun = 0

    def bucket(self, number: int) -> Bucket:
        """The tensors of a bucket, views of the buffer that it takes; what was on its way there has arrived."""
        slot = number % len(self._buffers)
        self._wait(slot)
        return _views(self._forms[number], self._buffers[slot])

    def begin(self) -> bool:
        """Begin the broadcast of the next bucket; returns False where there is none."""
        if self._num_begun == len(self._forms):
            return False
        slot = self._num_begun % len(self._buffers)
        self._wait(slot)
        tensor = self._buffers[slot][: self._ends[self._num_begun]]
        self._num_begun += 1
        first = dist.get_global_rank(self._group, 0)
        self._works[slot] = dist.broadcast(tensor, first, group=self._group, async_op=True)
        return True

    def finish(self) -> None:
        """Begin what is left, and wait for all."""
        while self.begin():
            pass
        for slot in range(len(self._works)):
            self._wait(slot)

    def arriving(self) -> Iterator[Bucket]:
        """The buckets as they arrive, at a receiver. One is overwritten when the one after it is asked for."""
        for _ in self._buffers:
            self.begin()
        for number in range(len(self._forms)):
            yield self.bucket(number)
            self.begin()

    def _wait(self, slot: int) -> None:
        work, self._works[slot] = self._works[slot], None
        if work is not None:
            with waiting("refit.broadcast"):
                work.wait()


class _Sent:
    """What a sender has sent."""

    def __init__(self) -> None:
        self.num_buckets = self.num_bytes = 0
        self.digests: dict[str, int] = {}

    def send(self, buckets: Iterator[Iterable[tuple[str, Tensor]]], route: _Route, *, verify: bool) -> None:
        """Send all buckets, or after an error whatever is in the buffers, and then raise it."""
        try:
            for tensors in buckets:  # gathered while the one before is on its way
                target = route.bucket(self.num_buckets)
                _pack(target, tensors)
                route.begin()
                self.num_buckets += 1
                self.num_bytes += sum(view.nbytes for _, view in target)
                if verify:
                    self.digests |= {name: digest(view) for name, view in target}
        finally:
            route.finish()


def send(
    export: Export,
    version: int,
    *,
    verify: bool,
    group: dist.ProcessGroup | None,
    replica: dist.ProcessGroup | None,
) -> dict[str, float]:
    """Send the actor's weights to the engines of `group`, whose ranks call `receive`; agree with them as in
    verified_refit. Returns metrics, on the rank that sends.

    Every rank of the actor's first replica calls. Its first rank is the first of `group`; on the others `group` is
    None, and they help to gather. Collective over both. Raises RuntimeError on every rank of both when a rank failed or
    disagrees.
    """
    sent, error, problem = _Sent(), None, None
    buckets = iter(export)
    try:
        if group is not None:
            route = _opened(group, export.device, lambda: (export.contents, 1 if export.has_buffer else _DEPTH))
            if route is not None:
                sent.send(buckets, route, verify=verify)
    except Exception as caught:
        error, problem = caught, in_words(caught)
    try:
        for _ in buckets:  # the other ranks of the replica are in the same collectives
            pass
    except Exception as caught:
        error, problem = error or caught, problem or in_words(caught)
    failure = _verdict(version, problem, sent.digests, group, replica)
    if failure is not None:
        raise RuntimeError(f"{failure}.") from error
    return {} if group is None else refit_metrics(version, sent.num_buckets, sent.num_bytes, verify)


def receive(
    engine: RolloutEngine, version: int, *, verify: bool, group: dist.ProcessGroup, device: torch.device
) -> dict[str, float]:
    """Wake this rank's engine and refit it with what the first rank of `group` sends, which calls `send`; agree with
    all of them as in verified_refit. device: of the buffers. Returns metrics. Collective.

    Raises RuntimeError on every rank when a rank failed or disagrees; all engines then refuse to generate.
    """

    def ready() -> tuple[Sequence[Bucket], int]:
        engine.wake()
        return [], _DEPTH

    error: Exception | None = None
    try:
        route = _opened(group, device, ready)
    except Exception as caught:
        error, route = caught, None
    if route is not None:
        return verified_refit(engine, route.arriving(), version, verify=verify, group=group)
    failure = agree(version, None if error is None else in_words(error), {}, group)
    engine.invalidate(f"its {failure}")
    raise RuntimeError(f"{failure}.") from error


def _verdict(
    version: int,
    problem: str | None,
    digests: dict[str, int],
    group: dist.ProcessGroup | None,
    replica: dist.ProcessGroup | None,
) -> str | None:
    """What went wrong on any rank of the replica or of `group`, the same on all; None where all went well."""
    problems = gather_objects(problem, replica, "refit")
    failure = None
    if group is not None:
        helpers = (
            f"rank {dist.get_global_rank(replica, index)} of its replica: {text}"
            for index, text in enumerate(problems)
            if replica is not None and text is not None
        )
        try:
            failure = agree(version, problem or next(helpers, None), digests, group)
        except Exception as caught:  # a rank is gone, and the replica waits to hear of it
            failure = f"refit to version {version} failed on rank {dist.get_rank()}: {in_words(caught)}"
    return gather_objects(failure, replica, "refit")[0]


def _opened(
    group: dist.ProcessGroup, device: torch.device, prepare: Callable[[], tuple[Sequence[Bucket], int]]
) -> _Route | None:
    """The route of a refit on every rank of the group, or None on every rank where it cannot be on some. Collective.

    prepare: makes this rank ready, and returns what the buckets hold (the first rank's counts) and how many buffers
    this rank needs. Raises its error, or that of making the buffers, once all ranks have heard of it.
    """
    buckets: Sequence[Bucket] = []
    depth, route, error = _DEPTH, None, None
    try:
        buckets, depth = prepare()
    except Exception as caught:
        error = caught
    forms = _of_first([[(name, tuple(one.shape), one.dtype) for name, one in bucket] for bucket in buckets], group)
    try:
        route = _Route(forms, depth, device, group) if error is None and forms else None
    except Exception as caught:
        error = caught
    all_ready = all(gather_objects(route is not None, group, "refit"))
    if error is not None:
        raise error
    return route if all_ready else None


def _of_first(forms: list[list[Form]], group: dist.ProcessGroup) -> list[list[Form]]:
    """The forms of the group's first rank, on every rank. Collective."""
    box = [forms]
    with waiting("refit.contents"):
        dist.broadcast_object_list(box, dist.get_global_rank(group, 0), group=group)
    return box[0]


def _pack(target: Bucket, tensors: Iterable[tuple[str, Tensor]]) -> None:
    for (name, view), (sent_name, tensor) in zip(target, tensors, strict=True):
        assert name == sent_name, f"{sent_name} comes where {name} was announced"
        view.copy_(tensor)


def _offsets(bucket: Sequence[Form]) -> list[int]:
    """Byte offset of each tensor when they are packed one after the other, and the end of the last."""
    sizes = (_num_bytes(shape, dtype) for _, shape, dtype in bucket)
    return list(accumulate((-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes), initial=0))


def _views(bucket: Sequence[Form], buffer: Tensor) -> Bucket:
    return [
        (name, buffer[offset : offset + _num_bytes(shape, dtype)].view(dtype).view(shape))
        for (name, shape, dtype), offset in zip(bucket, _offsets(bucket), strict=False)
    ]


def _num_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return math.prod(shape) * dtype.itemsize
