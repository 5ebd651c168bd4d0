"""What a vLLM model holds, by Hugging Face name. Knows vLLM's layers by class name alone.

vLLM fuses some layers (query, key and value; gate and up) and gives each worker a part of most. In the same order, the
whole tensors that were sent are put together again.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

Gather = Callable[[Tensor], list[Tensor]]  # a worker's part -> the parts of all workers, in rank order


def held_tensors(model: nn.Module, gather: Gather) -> Iterator[tuple[str, Tensor]]:
    """Each parameter once, whole and in the shape of a checkpoint. Collective over the workers.

    Raises RuntimeError naming a parameter that vLLM keeps in another form, or where workers' copies are unequal.
    """
    fused = model.packed_modules_mapping
    seen: set[int] = set()  # a tied head is the embedding
    for path, module in model.named_modules():
        for kind, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if not parameter.numel():
                raise RuntimeError(f"vLLM keeps {path}.{kind} in a form of its own, which cannot be read back.")
            above, _, last = path.rpartition(".")
            parts = _whole(module, kind, parameter.detach(), gather)
            for name, tensor in zip(fused.get(last, [last]), parts, strict=True):
                yield f"{above}.{name}.{kind}".removeprefix("."), tensor


def _whole(module: nn.Module, kind: str, mine: Tensor, gather: Gather) -> list[Tensor]:
    """The whole tensors of one parameter: several where it is fused."""
    classes = {base.__name__ for base in type(module).__mro__}
    if "VocabParallelEmbedding" in classes:
        return [_joined(gather(mine))[: module.org_vocab_size]]  # the rest pads it to a multiple of 64
    if "RowParallelLinear" in classes:
        return [_joined(gather(mine), dim=1) if kind == "weight" else mine]
    if "ColumnParallelLinear" in classes:
        of_workers = [part.split(module.output_partition_sizes) for part in gather(mine)]
        query, *others = zip(*of_workers, strict=True)
        # Where there are more workers than key-value heads, neighbours hold the same head.
        copies = getattr(module, "num_kv_head_replicas", 1)
        return [_joined(query), *(_joined(_without_copies(parts, copies)) for parts in others)]
    return [mine]


def _joined(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def _without_copies(parts: Sequence[Tensor], copies: int) -> Sequence[Tensor]:
    for index, part in enumerate(parts):
        if not torch.equal(part, parts[index - index % copies]):
            raise RuntimeError("workers that should hold the same key-value head hold unequal ones.")
    return parts[::copies]
