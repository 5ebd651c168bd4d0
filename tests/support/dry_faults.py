"""A dry run's child process that plants a fault in each case whose `fault` names one, before it executes it."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemo_simplerl.dry import shim


@contextmanager
def changed(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def packing(change: Callable[[Any], Any]) -> Any:
    """A fault in the bounds of packed sequences, which `change` makes of the right ones."""
    from nemo_simplerl.model.network import pipeline

    original = pipeline._packing
    return changed(pipeline, "_packing", lambda *args, **kwargs: change(original(*args, **kwargs)))


def bounds(change: Callable[[Any], Any]) -> Any:
    return packing(
        lambda right: replace(right, cu_seqlens_q=change(right.cu_seqlens_q), cu_seqlens_kv=change(right.cu_seqlens_kv))
    )


def state_stays_on_the_host() -> Any:
    from nemo_simplerl.trainer.learners.offload import Offload

    def gradients_alone(self: Any) -> None:
        for gradients, size in zip(self._gradients, self._sizes, strict=True):
            gradients.untyped_storage().resize_(size)

    return changed(Offload, "_to_device", gradients_alone)


def gradients_stay() -> Any:
    import torch

    original = torch.UntypedStorage.resize_
    return changed(torch.UntypedStorage, "resize_", lambda self, size: original(self, size) if size else self)


def head_reads_the_host() -> Any:
    from nemo_simplerl.model.network import head

    original = head.linear_logprob_entropy
    return changed(
        head,
        "linear_logprob_entropy",
        lambda hidden, weight, targets, **options: original(hidden, weight, targets.cpu(), **options),
    )


def flag_on_the_host() -> Any:
    import torch

    from nemo_simplerl.trainer.learners import learner

    original = learner.any_rank
    return changed(learner, "any_rank", lambda is_true, device, group: original(is_true, torch.device("cpu"), group))


def one_rank_reduces_once_more() -> Any:
    import torch
    import torch.distributed as dist

    from nemo_simplerl.trainer.learners import learner

    original = learner.any_rank

    def any_rank(is_true: bool, device: Any, group: Any) -> bool:
        if dist.get_rank() == 1:
            dist.all_reduce(torch.zeros(1, device=device))
        return original(is_true, device, group)

    return changed(learner, "any_rank", any_rank)


FAULTS: dict[str, Callable[[], Any]] = {
    "bounds of int64": lambda: bounds(lambda tensor: tensor.long()),
    "longest a tensor": lambda: packing(lambda right: replace(right, max_seqlen_q=right.cu_seqlens_q.diff().max())),
    "bounds on the host": lambda: bounds(lambda tensor: tensor.cpu()),
    "last sequence missing": lambda: bounds(lambda tensor: tensor[:-1]),
    "optimizer state on the host": state_stays_on_the_host,
    "targets of the head on the host": head_reads_the_host,
    "flag on the host": flag_on_the_host,
    "gradients stay": gradients_stay,
    "one rank reduces once more": one_rank_reduces_once_more,
}


def main(request_file: str, result_file: str) -> None:
    request = json.loads(Path(request_file).read_text())
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    shim.load(Path(request["library"]))
    from nemo_simplerl.dry.steps import Session

    session, found = Session(), []
    for case in request["cases"]:
        fault = case["fault"]
        with nullcontext() if fault is None else FAULTS[fault]():
            found.append(session.run(case) | {"fault": fault})
    Path(result_file).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
