"""The tensors of a checkpoint are put together from what one worker, or several, hold of vLLM's fused layers."""

import pytest
import torch
from torch import nn

from nemo_simplerl.rollout.vllm.held import held_tensors

HIDDEN, HEAD, VOCAB = 8, 4, 10


class Layer(nn.Module):
    def __init__(self, **parameters):
        super().__init__()
        for name, tensor in parameters.items():
            setattr(self, name, nn.Parameter(tensor, requires_grad=False))


class VocabParallelEmbedding(Layer):
    org_vocab_size = VOCAB


class ColumnParallelLinear(Layer):
    pass


class QKVParallelLinear(ColumnParallelLinear):
    pass


class MergedColumnParallelLinear(ColumnParallelLinear):
    pass


class RowParallelLinear(Layer):
    pass


class RMSNorm(Layer):
    pass


def whole(groups: int) -> dict[str, torch.Tensor]:
    """A checkpoint of one layer with two heads."""
    draw = torch.Generator().manual_seed(0)
    shapes = {
        "embed_tokens.weight": (VOCAB, HIDDEN),
        "layer.q_proj.weight": (2 * HEAD, HIDDEN),
        "layer.k_proj.weight": (groups * HEAD, HIDDEN),
        "layer.v_proj.weight": (groups * HEAD, HIDDEN),
        "layer.q_proj.bias": (2 * HEAD,),
        "layer.k_proj.bias": (groups * HEAD,),
        "layer.v_proj.bias": (groups * HEAD,),
        "layer.o_proj.weight": (HIDDEN, 2 * HEAD),
        "layer.gate_proj.weight": (6, HIDDEN),
        "layer.up_proj.weight": (6, HIDDEN),
        "layer.norm.weight": (HIDDEN,),
    }
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def worker(tensors: dict[str, torch.Tensor], rank: int, size: int, groups: int, tied: bool = True) -> nn.Module:
    """What vLLM's worker `rank` of `size` holds of them."""

    def part(name: str, dim: int = 0) -> torch.Tensor:
        return tensors[name].chunk(size, dim)[rank]

    def key_value(name: str) -> torch.Tensor:
        return tensors[name] if groups < size else part(name)

    padded = torch.cat([tensors["embed_tokens.weight"], torch.zeros(16 - VOCAB, HIDDEN)])
    qkv = QKVParallelLinear(
        **{
            kind: torch.cat(
                [part(f"layer.q_proj.{kind}"), *(key_value(f"layer.{x}_proj.{kind}") for x in "kv")]
            ).contiguous()
            for kind in ("weight", "bias")
        }
    )
    per_rank = max(1, groups // size) * HEAD
    qkv.output_partition_sizes, qkv.num_kv_head_replicas = (
        [2 * HEAD // size, per_rank, per_rank],
        max(1, size // groups),
    )
    both = MergedColumnParallelLinear(weight=torch.cat([part("layer.gate_proj.weight"), part("layer.up_proj.weight")]))
    both.output_partition_sizes = [6 // size, 6 // size]
    model = nn.Module()
    model.embed_tokens = VocabParallelEmbedding(weight=padded.chunk(size)[rank])
    model.layer = nn.Module()
    model.layer.qkv_proj, model.layer.gate_up_proj = qkv, both
    model.layer.o_proj = RowParallelLinear(weight=part("layer.o_proj.weight", 1))
    model.layer.norm = RMSNorm(weight=tensors["layer.norm.weight"].clone())
    model.lm_head = VocabParallelEmbedding()
    model.lm_head.weight = model.embed_tokens.weight
    model.packed_modules_mapping = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    return model


def gatherer(models: list[nn.Module]):
    """Every worker's part of the parameter that is the next to be gathered."""
    lists = [[parameter.data for parameter in model.parameters()] for model in models]

    def gather(mine: torch.Tensor) -> list[torch.Tensor]:
        index = next(i for i, tensor in enumerate(lists[0]) if tensor.data_ptr() == mine.data_ptr())
        return [parameters[index] for parameters in lists]

    return gather


@pytest.mark.parametrize(("size", "groups"), [(1, 2), (2, 2), (2, 1)])
def test_a_checkpoint_comes_back_by_name_and_to_the_bit(size, groups):
    tensors = whole(groups)
    models = [worker(tensors, rank, size, groups) for rank in range(size)]
    found = dict(held_tensors(models[0], gatherer(models)))
    assert found.keys() == tensors.keys(), "a tied head is the embedding"
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor), name


def test_copies_of_a_head_that_differ_are_refused():
    models = [worker(whole(1), rank, 2, 1) for rank in range(2)]
    models[1].layer.qkv_proj.weight.data[-1, 0] += 1
    with pytest.raises(RuntimeError, match="unequal"):
        dict(held_tensors(models[0], gatherer(models)))


def test_weights_that_vllm_has_packed_away_are_refused_by_name():
    model = worker(whole(2), 0, 1, 2)
    model.layer.o_proj.weight = nn.Parameter(torch.empty(0), requires_grad=False)
    with pytest.raises(RuntimeError, match=r"layer\.o_proj\.weight in a form of its own"):
        dict(held_tensors(model, gatherer([model])))
