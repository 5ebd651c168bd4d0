"""Flat arrays sent between ranks whose sizes every rank knows: no pickles, and no rank in between."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist

from nemo_simplerl.parallel.waits import waiting

Sizes = Sequence[tuple[type, int]]  # dtype and number of elements of each array


def exchange(
    outgoing: Mapping[int, Callable[[], Sequence[np.ndarray]]],
    incoming: Mapping[int, Sizes],
    group: dist.ProcessGroup,
    what: str,
) -> dict[int, list[np.ndarray]]:
    """The arrays that other ranks of the group send to this one, by their rank. Collective.

    outgoing: makes the arrays for each rank that gets some. incoming: what each rank that sends something sends, in its
    order. A pair of ranks must agree on both. what: the name of this wait for the watchdog (waits.py).

    Arrays lie in host memory, so that gloo carries them where the group has NCCL too. All receives are posted before
    any send, and each array of a pair has a tag of its own: a receive that meets another size ends the process.
    """
    received = {rank: [np.empty(count, dtype) for dtype, count in sizes] for rank, sizes in incoming.items()}
    sent = []  # arrays must stay as they are until they are sent
    works = [
        dist.irecv(torch.from_numpy(array), dist.get_global_rank(group, rank), group, tag)
        for rank, arrays in received.items()
        for tag, array in enumerate(arrays)
        if len(array)
    ]
    for rank, arrays_of in outgoing.items():
        for tag, array in enumerate(arrays_of()):
            if len(array):
                sent.append(torch.from_numpy(array))
                works.append(dist.isend(sent[-1], dist.get_global_rank(group, rank), group, tag))
    with waiting(f"exchange.{what}"):
        for work in works:
            work.wait()
    return received
