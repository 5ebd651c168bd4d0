"""config.json as model_config.yaml and back; yaml is read as OmegaConf reads it, and unsafe parts are refused."""

import json

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from nemo_simplerl.model.formats.nemo_config import hf_config, nemo_config, parse_yaml, precision_of, vocab_divisor
from nemo_simplerl.model.hf_map import heads_of

BASE = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def there_and_back(hf: dict) -> dict:
    config = nemo_config(hf, dtype=torch.bfloat16, tokenizer="somewhere", critic=False)
    return hf_config(parse_yaml(yaml.safe_dump(config).encode(), "yaml"), 0, "yaml")


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "qwen2"},
        {"model_type": "qwen2", "tie_word_embeddings": True, "rope_theta": 1000000},
        {"model_type": "qwen3", "head_dim": 128},
        {"model_type": "qwen3", "head_dim": 64},
        {"model_type": "llama", "rope_scaling": LLAMA3},
        {"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"model_type": "llama", "head_dim": 96},
        {"model_type": "llama", "rms_norm_eps": 1e-5},
    ],
)
def test_every_setting_that_matters_survives_the_yaml(changes):
    hf = BASE | changes
    back = there_and_back(hf)
    assert {key: back[key] for key in hf if key != "head_dim"} == {k: v for k, v in hf.items() if k != "head_dim"}
    assert heads_of(back) == heads_of(hf)


def test_a_head_size_is_named_only_where_it_is_not_the_usual_one():
    assert "head_dim" not in there_and_back(BASE | {"model_type": "qwen2"})
    assert there_and_back(BASE | {"model_type": "llama", "head_dim": 96})["head_dim"] == 96
    assert there_and_back(BASE | {"model_type": "qwen3", "head_dim": 128})["head_dim"] == 128


def test_the_yaml_is_nemos():
    config = nemo_config(BASE | {"model_type": "qwen2"}, dtype=torch.bfloat16, tokenizer="t", critic=False)
    expected = {
        "mcore_gpt": True,
        "num_layers": 28,
        "ffn_hidden_size": 18944,
        "num_query_groups": 4,
        "kv_channels": 128,
        "bias": False,
        "qkv_bias": True,
        "normalization": "rmsnorm",
        "activation": "fast-swiglu",
        "share_embeddings_and_output_weights": False,
        "override_vocab_size": 152064,
        "make_vocab_size_divisible_by": 128,
        "precision": "bf16",
        "target": "nemo.collections.nlp.models.language_modeling.megatron_gpt_model.MegatronGPTModel",
    }
    assert {key: config[key] for key in expected} == expected
    critic = nemo_config(BASE | {"model_type": "qwen2"}, dtype=torch.float32, tokenizer="t", critic=True)
    assert critic["target"].endswith("MegatronGPTCriticModel")
    assert critic["share_embeddings_and_output_weights"] and critic["precision"] == "32"


def test_what_would_be_computed_otherwise_is_listed_in_one_error():
    config = nemo_config(BASE | {"model_type": "qwen2"}, dtype=torch.bfloat16, tokenizer=None, critic=False)
    config |= {"normalization": "layernorm1p", "bias": True, "rotary_percentage": 0.5, "num_layers": None}
    config |= {"num_moe_experts": 8, "window_size": [4096, 0], "qk_layernorm": True}
    with pytest.raises(ValueError) as error:
        hf_config(config, 0, "model.nemo")
    assert str(error.value) == (
        "model.nemo: normalization is 'layernorm1p', only 'rmsnorm' is supported; "
        "bias is True, only False is supported; rotary_percentage is 0.5, only 1.0 is supported; "
        "num_moe_experts is 8, only None or 0 or 1 is supported; "
        "window_size is [4096, 0], only None is supported; num_layers is missing; "
        "qkv_bias and qk_layernorm are both true, which no supported family has."
    )


def test_a_window_is_kept_in_the_family_that_has_one():
    hf = BASE | {"model_type": "mistral", "sliding_window": 4096, "max_position_embeddings": 32768}
    config = nemo_config(hf, dtype=torch.bfloat16, tokenizer=None, critic=False)
    assert config["window_size"] == [4095, 0]  # counts the tokens before one
    assert hf_config(config, 0, "yaml", lambda: "mistral")["sliding_window"] == 4096
    with pytest.raises(ValueError, match=r"window_size is \[4095, 0\], only None is supported"):
        hf_config(config, 0, "yaml")  # nothing says that it is no Llama
    full = nemo_config(hf | {"max_position_embeddings": 4096}, dtype=torch.bfloat16, tokenizer=None, critic=False)
    assert "window_size" not in full


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads is 0, not a positive integer"),
        ({"hidden_size": "64"}, "hidden_size is '64', not a positive integer"),
        ({"num_layers": [2]}, r"num_hidden_layers is \[2\], not a positive integer"),
        ({"num_layers": 10**9}, "num_hidden_layers is 1000000000, more than any model has"),
        ({"layernorm_epsilon": float("nan")}, "rms_norm_eps is nan, not a positive number"),
        ({"rotary_base": "much"}, "rope_theta is 'much', not a positive number"),
        ({"scale_positional_embedding": True, "scale_factor": "x"}, "factor is 'x', not a positive number"),
        ({"encoder_seq_length": None, "max_position_embeddings": None}, "max_position_embeddings is None"),
        ({"num_query_groups": 3}, "28 num_attention_heads are not divisible by 3"),
        ({"kv_channels": -1}, "head_dim is -1"),
        ({"override_vocab_size": None}, "vocab_size is 0"),
    ],
)
def test_values_that_are_none_are_told(changes, match):
    config = nemo_config(BASE | {"model_type": "qwen2"}, dtype=torch.bfloat16, tokenizer=None, critic=False)
    with pytest.raises(ValueError, match=f"^yaml: .*{match}"):
        hf_config(config | changes, 0, "yaml")


def test_the_defaults_of_llama_31_stand_in_for_its_keys():
    config = nemo_config(BASE | {"model_type": "llama"}, dtype=torch.bfloat16, tokenizer=None, critic=False)
    expected = LLAMA3 | {"factor": 8.0}
    assert hf_config(config | {"scale_positional_embedding": True}, 0, "")["rope_scaling"] == expected


def test_yaml_is_read_as_omegaconf_reads_it():
    text = "a: 1e-6\nb: 1.0e-06\nc: 1_000\nd: '1e-6'\ne: 5e5\nf: .5e1\ng: the 1e5th\nh: null\ni: [1, 2.5]\nj: -2E+3\n"
    assert parse_yaml(text.encode(), "") == OmegaConf.to_container(OmegaConf.create(text))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"- 1",
        b"x",
        b"a: *b",
        b"\xff\xfe\x00",
        b"a: !!python/object/apply:os.system [ls]",
        b"{" * 5000,
        b"? [a]\n: 1",
    ]
    + [b"a: !!int ''", b"a: !!timestamp x", b"a: !!bool x", b"a: " + b"9" * 5000, b"a: &x [*x]", b"<<: *x"],
)
def test_what_is_no_settings_raises_valueerror(content):
    with pytest.raises(ValueError, match="file is no YAML|file holds no settings"):
        parse_yaml(content, "file")


def test_vocabularies_are_padded_no_further_than_they_must():
    assert [vocab_divisor(size) for size in (152064, 151936, 331, 32000, 50258)] == [128, 128, 1, 128, 2]


def test_a_dtype_that_nemo_has_no_word_for_is_refused():
    assert [precision_of(dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32)] == ["bf16", "16", "32"]
    with pytest.raises(ValueError, match="float64, which NeMo has no word for"):
        precision_of(torch.float64)


def test_the_yaml_holds_nothing_that_json_could_not():
    config = nemo_config(BASE | {"model_type": "qwen2"}, dtype=torch.bfloat16, tokenizer="t", critic=False)
    assert json.loads(json.dumps(config)) == parse_yaml(yaml.safe_dump(config).encode(), "")
