"""Loading: a model's weights from disk into this rank's shards of a Megatron model."""

import torch
from megatron.core.models.gpt import GPTModel

from nemo_simplerl.model import hf_map
from nemo_simplerl.model.hf_map import EMBEDDING, OUTPUT_LAYER
from nemo_simplerl.model.readers.base import Source
from nemo_simplerl.parallel.mesh import Mesh


@torch.no_grad()
def load_weights(gpt: GPTModel, source: Source, mesh: Mesh) -> None:
    """Fill every parameter of this rank's pipeline stage with its tensor rank's shard.

    A critic's value head is taken from a source that holds one, and keeps its fresh values otherwise.
    Raises ValueError for an actor and the source of a critic, and for a source of other sizes.
    """
    if source.is_critic and not gpt.is_critic:
        raise ValueError(f"{source.path} is a critic, and an actor was to start from it.")
    offset = layer_offset(gpt)
    for name, param in gpt.named_parameters():
        full_name = hf_map.full_name(name, offset)
        if gpt.is_critic and name == OUTPUT_LAYER:
            if source.is_critic:
                param.copy_(source.read(OUTPUT_LAYER))
            continue
        if name == OUTPUT_LAYER and source.hf.get("tie_word_embeddings", False):
            full_name = EMBEDDING  # the last stage's copy of tied embeddings
        entry = hf_map.mapping(full_name)
        part = hf_map.shard(entry.kind, source.read(full_name), entry.tp_dim, mesh.tp_rank, mesh.tp_size)
        if part.shape != param.shape:
            role = "critic" if gpt.is_critic else "actor"
            raise ValueError(
                f"{source.path} is another model than the {role} of this run: {full_name} is {tuple(part.shape)} there "
                f"and {tuple(param.shape)} here; start from the model that the weights belong to."
            )
        param.copy_(part)


def layer_offset(gpt: GPTModel) -> int:
    """Index in the whole model of this pipeline stage's first layer."""
    return gpt.decoder.layers[0].layer_number - 1 if len(gpt.decoder.layers) else 0
