"""Layouts of a small model that dry runs execute on eight pretended GPUs."""

import functools
from dataclasses import replace

from nemo_simplerl.config.shape import ModelShape
from nemo_simplerl.plan.gpus import gpu
from nemo_simplerl.plan.layout import Cluster, Layout
from nemo_simplerl.plan.plan import make_plan

SMALL = ModelShape(
    num_layers=2,
    hidden_size=1024,
    num_attention_heads=8,
    num_query_groups=4,
    ffn_hidden_size=4096,
    vocab_size=2048,
    max_position_embeddings=4096,
    tied=False,
    model_type="qwen2",
)
TIED_QWEN3 = replace(SMALL, tied=True, model_type="qwen3", head_dim=128)
_RECIPE = (
    "experiment=simplerl_zero_qwen2.5_math_7b",
    "model.path=absent",
    "data.train_path=absent.json",
    "rollout.max_prompt_tokens=16",
    "rollout.max_response_tokens=1008",
    *(f"{role}.{name}micro_batch_tokens=2048" for role in ("actor", "critic") for name in ("", "forward_")),
)
_PADDED = tuple(f"{role}.{name}micro_batch_tokens=null" for role in ("actor", "critic") for name in ("", "forward_"))
LAYOUTS: dict[str, tuple[tuple[str, ...], ModelShape]] = {
    "as the recipe": ((), SMALL),
    "TP4, nothing recomputed": (
        ("actor.tensor_model_parallel_size=4", "actor.recompute_granularity=null"),
        SMALL,
    ),
    "TP1, padded rows": (
        ("actor.tensor_model_parallel_size=1", "actor.sequence_parallel=false", *_PADDED),
        SMALL,
    ),
    "two stages": (
        ("actor.tensor_model_parallel_size=2", "actor.pipeline_model_parallel_size=2"),
        SMALL,
    ),
    "plain optimizer, nothing offloaded": (
        (
            "actor.use_distributed_optimizer=false",
            "actor.overlap_grad_reduce=false",
            "actor.offload_adam_states=false",
            "actor.recompute_granularity=selective",
        ),
        SMALL,
    ),
    "without a critic": (("algo.advantage=group",), SMALL),
    "tied qwen3, entropy bonus": (
        ("actor.tensor_model_parallel_size=2", "algo.entropy_bonus=0.001"),
        TIED_QWEN3,
    ),
}


@functools.cache
def planned(changes: tuple[str, ...], shape: ModelShape) -> tuple[list[str], Layout]:
    """Overrides of a run of the recipe with these changes, and its layout on eight H100."""
    overrides = [*_RECIPE, *changes]
    cluster = Cluster(nodes=1, gpus_per_node=8, gpu=gpu("h100-80g", 8))
    layout = make_plan(overrides, cluster, shape).layout
    assert layout is not None
    return overrides, layout
