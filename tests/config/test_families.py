"""The table of families: what is refused and why, the shapes of published models, rotary frequencies."""

import json
import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from nemo_simplerl.config.families import FAMILIES, check_hf_config, family_of, for_transformers
from nemo_simplerl.model import hf_map
from nemo_simplerl.model.network.provider import build_gpt_model, read_hf_config
from nemo_simplerl.model.network.rope import rope_frequencies
from nemo_simplerl.parallel.mesh import build_mesh
from support.forms import num_parameters
from support.tiny import layout, save_hf_model

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
QWEN25 = {"model_type": "qwen2", "rope_theta": 1000000.0, "use_sliding_window": False, "sliding_window": 131072}
QWEN3 = {"model_type": "qwen3", "rope_theta": 1000000, "head_dim": 128, "attention_bias": False, "rope_scaling": None}
LLAMA3 = {"model_type": "llama", "rope_theta": 500000.0, "attention_bias": False, "mlp_bias": False}
KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
# What sets a model apart, KEYS, vocabulary, tied embeddings, parameters.
PUBLISHED = {
    "Qwen2.5-0.5B": (QWEN25, (896, 4864, 24, 14, 2), 151936, True, 494_032_768),
    "Qwen2.5-1.5B": (QWEN25, (1536, 8960, 28, 12, 2), 151936, True, 1_543_714_304),
    "Qwen2.5-3B": (QWEN25, (2048, 11008, 36, 16, 2), 151936, True, 3_085_938_688),
    "Qwen2.5-7B": (QWEN25, (3584, 18944, 28, 28, 4), 152064, False, 7_615_616_512),
    "Qwen2.5-14B": (QWEN25, (5120, 13824, 48, 40, 8), 152064, False, 14_770_033_664),
    "Qwen2.5-32B": (QWEN25, (5120, 27648, 64, 40, 8), 152064, False, 32_763_876_352),
    "Qwen2.5-72B": (QWEN25, (8192, 29568, 80, 64, 8), 152064, False, 72_706_203_648),
    "Qwen3-0.6B": (QWEN3, (1024, 3072, 28, 16, 8), 151936, True, 596_049_920),
    "Qwen3-1.7B": (QWEN3, (2048, 6144, 28, 16, 8), 151936, True, 1_720_574_976),
    "Qwen3-4B": (QWEN3, (2560, 9728, 36, 32, 8), 151936, True, 4_022_468_096),
    "Qwen3-8B": (QWEN3, (4096, 12288, 36, 32, 8), 151936, False, 8_190_735_360),
    "Qwen3-14B": (QWEN3, (5120, 17408, 40, 40, 8), 151936, False, 14_768_307_200),
    "Qwen3-32B": (QWEN3, (5120, 25600, 64, 64, 8), 151936, False, 32_762_123_264),
    "Mistral-7B-v0.3": (
        {"model_type": "mistral", "rope_theta": 1000000.0, "sliding_window": None},
        (4096, 14336, 32, 32, 8),
        32768,
        False,
        7_248_023_552,
    ),
    "Llama-2-7B": (
        {"model_type": "llama", "pretraining_tp": 1},
        (4096, 11008, 32, 32, 32),
        32000,
        False,
        6_738_415_616,
    ),
    "Llama-3.1-8B": (LLAMA3 | {"rope_scaling": LLAMA3_ROPE}, (4096, 14336, 32, 32, 8), 128256, False, 8_030_261_248),
    "Llama-3.2-1B": (
        LLAMA3 | {"rope_scaling": LLAMA3_ROPE | {"factor": 32.0}, "head_dim": 64},
        (2048, 8192, 16, 32, 8),
        128256,
        True,
        1_235_814_400,
    ),
}
COMMON = {"max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "hidden_act": "silu"}


def config_of(name: str) -> dict:
    own, sizes, vocab_size, tied, _ = PUBLISHED[name]
    shape = dict(zip(KEYS, sizes, strict=True))
    return COMMON | own | shape | {"vocab_size": vocab_size, "tie_word_embeddings": tied}


def transformers_config(hf: dict):
    return AutoConfig.for_model(**for_transformers(hf))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_pass_with_the_tensors_and_parameters_of_transformers(name):
    hf = config_of(name)
    check_hf_config(hf, name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(transformers_config(hf))
    assert type(model).__name__ == family_of(hf).architecture
    tensors = dict(model.named_parameters())
    assert set(hf_map.expected_names(hf)) == tensors.keys()
    assert num_parameters(hf) == sum(tensor.numel() for tensor in tensors.values()) == PUBLISHED[name][-1]
    head = 0 if hf["tie_word_embeddings"] else hf["vocab_size"] * hf["hidden_size"]
    assert num_parameters(hf, critic=True) == PUBLISHED[name][-1] - head


@pytest.mark.parametrize(
    ("family", "tied", "critic_seed"),
    [("qwen2", False, None), ("qwen2", True, 0), ("qwen3", True, None), ("qwen3", False, 0), ("llama", False, None)],
)
def test_the_canonical_names_and_shapes_are_those_of_the_model_that_is_built(tmp_path, family, tied, critic_seed):
    hf = read_hf_config(save_hf_model(tmp_path / "model", family, tied=tied))
    mesh = build_mesh(
        tensor_model_parallel_size=1, pipeline_model_parallel_size=1, context_parallel_size=1, timeout_s=60
    )
    gpt = build_gpt_model(hf, layout(), mesh, dtype=torch.float32, transformer_engine=False, critic_seed=critic_seed)
    built = {hf_map.canonical(name): tuple(param.shape) for name, param in gpt.named_parameters()}
    is_critic = critic_seed is not None
    if is_critic:
        assert built.pop("output_layer.weight") == (1, 64)
    names = hf_map.model_params(hf, critic=is_critic)
    assert built == {name: hf_map.param_shape(name, hf) for name in names}
    assert gpt.is_critic == is_critic


def test_names_of_the_local_norms_become_those_of_transformer_engine():
    for local, fused in {
        "decoder.layers.12.input_layernorm.weight": "decoder.layers.12.self_attention.linear_qkv.layer_norm_weight",
        "decoder.layers.0.pre_mlp_layernorm.weight": "decoder.layers.0.mlp.linear_fc1.layer_norm_weight",
    }.items():
        assert hf_map.canonical(local) == hf_map.canonical(fused) == fused
        assert hf_map.mapping(local, 3) == hf_map.mapping(fused, 3)
    assert hf_map.mapping("decoder.layers.1.self_attention.q_layernorm.weight", 4) == hf_map.Mapping(
        ("model.layers.5.self_attn.q_norm.weight",), "plain", None
    )
    with pytest.raises(ValueError, match=r"decoder\.layers\.0\.mlp\.router\.weight"):
        hf_map.param_shape("decoder.layers.0.mlp.router.weight", config_of("Qwen3-0.6B"))


REFUSED = [
    ({"model_type": "gemma"}, "model_type is 'gemma'; supported: llama, mistral, qwen2, qwen3"),
    ({"use_sliding_window": True}, "use_sliding_window is true; set it to false to train with full attention"),
    (
        {"layer_types": ["full_attention", "sliding_attention"]},
        "layer_types holds sliding_attention; only full_attention is supported",
    ),
    ({"mlp_bias": True}, "mlp_bias is not supported"),
    ({"attention_bias": True}, "attention_bias is not supported for qwen3"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported; only silu is"),
    (
        {"quantization_config": {"bits": 4}},
        "quantization_config: quantized weights are not supported; take the original model",
    ),
    ({"num_key_value_heads": 3}, "16 num_attention_heads are not divisible by 3 num_key_value_heads"),
    ({"head_dim": None, "hidden_size": 1000}, "hidden_size 1000 is not divisible by 16 num_attention_heads"),
    ({"hidden_size": 0}, "hidden_size is 0, not a positive integer"),
    ({"num_hidden_layers": "28"}, "num_hidden_layers is '28', not a positive integer"),
    ({"rms_norm_eps": None}, "rms_norm_eps is None, not a positive number"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported; only 1.0 is"),
    (
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        "rope_scaling type 'yarn' is not supported; supported: default, linear, llama3",
    ),
    (
        {"rope_scaling": {"factor": 4.0}},
        "rope_scaling type None is not supported; supported: default, linear, llama3",
    ),
    ({"rope_scaling": "linear"}, "rope_scaling is 'linear', not an object"),
    ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling of type 'linear': factor is missing"),
    (
        {"rope_scaling": LLAMA3_ROPE | {"factor": True}},
        "rope_scaling of type 'llama3': factor is True, not a positive number",
    ),
]


@pytest.mark.parametrize(("changes", "problem"), REFUSED)
def test_a_config_that_would_not_be_honoured_is_refused_with_the_reason(changes, problem):
    with pytest.raises(ValueError) as error:
        check_hf_config(config_of("Qwen3-0.6B") | changes, "folder/config.json")
    assert str(error.value) == f"folder/config.json: {problem}."


@pytest.mark.parametrize(
    ("name", "key"),
    [("Qwen3-0.6B", "head_dim"), ("Qwen3-0.6B", "num_key_value_heads"), ("Qwen2.5-7B", "num_key_value_heads")],
)
def test_a_size_for_which_transformers_would_assume_its_own_must_be_given(name, key):
    hf = config_of(name)
    del hf[key]
    with pytest.raises(ValueError, match=f"{key} is missing"):
        check_hf_config(hf, name)


def test_everything_wrong_with_a_config_is_listed_at_once(tmp_path):
    hf = config_of("Llama-2-7B") | {"mlp_bias": True, "attention_bias": True, "rope_scaling": {"type": "dynamic"}}
    del hf["vocab_size"]
    (tmp_path / "config.json").write_text(json.dumps(hf))
    with pytest.raises(ValueError) as error:
        read_hf_config(tmp_path)
    for part in ("mlp_bias", "attention_bias", "vocab_size is missing", "'dynamic'", str(tmp_path / "config.json")):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="no JSON object"):
        check_hf_config([], "config.json")


def test_a_llama_without_groups_and_a_qwen2_with_an_unread_bias_key_pass():
    hf = config_of("Llama-2-7B")
    del hf["num_key_value_heads"]
    check_hf_config(hf, "llama")
    assert num_parameters(hf) == PUBLISHED["Llama-2-7B"][-1]
    check_hf_config(config_of("Qwen2.5-7B") | {"attention_bias": True}, "qwen2")


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 2.5},
        {"type": "linear", "factor": 4},
        LLAMA3_ROPE,
        LLAMA3_ROPE | {"factor": 32.0, "low_freq_factor": 2.0, "original_max_position_embeddings": 512},
    ],
)
@pytest.mark.parametrize("name", ["Qwen2.5-0.5B", "Qwen3-4B", "Llama-3.1-8B"])
def test_rotary_frequencies_are_those_of_transformers_bit_for_bit(name, scaling):
    hf = config_of(name) | {"rope_scaling": scaling}
    check_hf_config(hf, name)
    config = transformers_config(hf)
    rotary = LlamaRotaryEmbedding(config)  # all families turn as Llama does
    assert rotary.attention_scaling == 1.0
    assert torch.equal(rope_frequencies(hf), rotary.inv_freq)


def test_llama3_rope_keeps_short_waves_slows_long_ones_and_interpolates_between():
    # Waves of 2 pi, 20 pi, 200 pi and 2000 pi tokens. Original context 256: up to 64 kept, from 256 on slowed.
    hf = config_of("Llama-3.1-8B") | {"head_dim": 8, "rope_theta": 10000.0}
    hf["rope_scaling"] = LLAMA3_ROPE | {"original_max_position_embeddings": 256}
    assert rope_frequencies(hf).tolist() == pytest.approx([1.0, 0.1, 0.01 / 8, 0.001 / 8])
    # Context 128: 32 and 128 are the ends, and 20 pi = 62.8 lies between them.
    hf["rope_scaling"] = LLAMA3_ROPE | {"original_max_position_embeddings": 128}
    share = (128 / (20 * math.pi) - 1) / 3
    assert rope_frequencies(hf)[1].item() == pytest.approx(share * 0.1 + (1 - share) * 0.1 / 8)


def test_the_built_model_turns_by_the_frequencies_of_its_config(tmp_path):
    hf = read_hf_config(save_hf_model(tmp_path / "model", "llama3_rope"))
    mesh = build_mesh(
        tensor_model_parallel_size=1, pipeline_model_parallel_size=1, context_parallel_size=1, timeout_s=60
    )
    gpt = build_gpt_model(hf, layout(), mesh, dtype=torch.bfloat16, transformer_engine=False)
    assert torch.equal(gpt.rotary_pos_emb.inv_freq, rope_frequencies(hf))
    assert not torch.equal(rope_frequencies(hf), rope_frequencies(hf | {"rope_scaling": None}))


def test_every_family_has_a_published_model_in_this_file():
    assert {own["model_type"] for own, *_ in PUBLISHED.values()} == FAMILIES.keys()
