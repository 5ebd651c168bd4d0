"""The plan's parameter counts against the published ones, hf_map's and the model that Megatron builds."""

from dataclasses import replace

import pytest
import torch
from torch.testing._internal.distributed.fake_pg import FakeStore

from nemo_simplerl.config.families import check_hf_config, rope_type
from nemo_simplerl.config.shape import ModelShape
from nemo_simplerl.model.network.provider import build_gpt_model
from nemo_simplerl.parallel.mesh import build_mesh, destroy_mesh
from nemo_simplerl.plan.known import KNOWN_MODELS, known_configs
from nemo_simplerl.plan.shapes import rank_parameters
from support.forms import num_parameters
from support.tiny import layout

# As their model cards and safetensors indices say; tied embeddings once.
PUBLISHED = {
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-72B": 72_706_203_648,
    "Qwen3-8B": 8_190_735_360,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.1-70B": 70_553_706_496,
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824,
    "Mistral-7B-v0.1": 7_241_732_096,
    "Mistral-7B-v0.3": 7_248_023_552,
    "Mistral-Nemo-Base-2407": 12_247_782_400,
    "Mistral-Small-24B-Base-2501": 23_572_403_200,
    "deepseek-math-7b-base": 6_910_365_696,
    "SmolLM2-135M": 134_515_008,
    "SmolLM2-1.7B": 1_711_376_384,
}


def hf_of(shape: ModelShape) -> dict:
    return {
        "model_type": shape.model_type,
        "num_hidden_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_query_groups,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.ffn_hidden_size,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": 128,
        "tie_word_embeddings": shape.tied,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
    }


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_a_known_model_has_as_many_parameters_as_published(name, count):
    assert rank_parameters(KNOWN_MODELS[name]) == count


def test_a_known_model_keeps_the_rules_of_its_family_and_has_a_name_of_its_own():
    configs = known_configs()
    for name, hf in configs.items():
        assert check_hf_config(hf | {"rms_norm_eps": 1e-6, "rope_theta": 1e4}, name)
        assert rope_type(hf) == ("llama3" if "Llama-3." in name else "default"), name
    assert len(KNOWN_MODELS) == len(configs), "the last part of the name tells them apart"
    owners = {name.split("/")[0] for name in configs}
    assert owners == {"Qwen", "meta-llama", "mistralai", "deepseek-ai", "HuggingFaceTB"}


def test_the_whole_model_has_as_many_parameters_as_the_name_tables_say():
    for shape in {replace(shape, max_position_embeddings=128) for shape in KNOWN_MODELS.values()}:
        assert rank_parameters(shape) == num_parameters(hf_of(shape)), shape
        # hf_map leaves the value head out, one weight a hidden dimension.
        assert rank_parameters(shape, critic=True) == num_parameters(hf_of(shape), critic=True) + shape.hidden_size


@pytest.mark.parametrize(
    ("name", "tensor", "pipeline"),
    [
        ("Qwen2.5-0.5B", 1, 1),
        ("Qwen2.5-0.5B", 2, 2),
        ("Qwen2.5-1.5B", 2, 4),
        ("Qwen2.5-7B", 4, 1),
        ("Qwen2.5-14B", 1, 4),
        ("Qwen2.5-32B", 8, 2),
        ("Qwen2.5-72B", 8, 4),
        ("Qwen3-0.6B", 1, 2),
        ("Qwen3-32B", 8, 1),
        ("Llama-3.1-8B", 2, 2),
        ("Llama-3.1-70B", 8, 8),
    ],
)
def test_every_stage_has_as_many_parameters_as_the_model_that_megatron_builds(name, tensor, pipeline):
    shape = KNOWN_MODELS[name]
    for stage in range(pipeline):
        for critic_seed in (None, 0):
            built = built_parameters(shape, tensor, pipeline, stage, critic_seed)
            assert rank_parameters(shape, tensor, pipeline, stage, critic=critic_seed is not None) == built


def built_parameters(shape: ModelShape, tensor: int, pipeline: int, stage: int, critic_seed: int | None) -> int:
    """Parameters of a stage's GPTModel, built on a device without memory and in a world without other ranks."""
    world_size = tensor * pipeline
    destroy_mesh()  # what another test may have left in this process
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=stage * tensor, world_size=world_size)
    try:
        mesh = build_mesh(
            tensor_model_parallel_size=tensor,
            pipeline_model_parallel_size=pipeline,
            context_parallel_size=1,
            timeout_s=60,
        )
        assert mesh.pp_rank == stage
        # Two layers a stage: what a layer holds is counted, not how many there are.
        hf = hf_of(shape) | {"num_hidden_layers": 2 * pipeline}
        meta = torch.device("meta")
        with meta:
            gpt = build_gpt_model(
                hf,
                layout(tensor, pipeline),
                replace(mesh, device=meta),
                dtype=torch.bfloat16,
                transformer_engine=False,
                critic_seed=critic_seed,
            )
        one_layer = sum(param.numel() for param in gpt.decoder.layers[0].parameters())
        total = sum(param.numel() for param in gpt.parameters())
        return total + one_layer * (shape.num_layers // pipeline - 2)
    finally:
        destroy_mesh()
