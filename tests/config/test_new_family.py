"""A family beside those of the table is one entry: configuration, plan, name tables and NeMo formats ask it."""

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
import yaml

from nemo_simplerl.config.families import FAMILIES, Family, check_hf_config
from nemo_simplerl.config.schema import ModelConfig
from nemo_simplerl.config.shape import read_shape
from nemo_simplerl.model import hf_map
from nemo_simplerl.model.formats.nemo_config import hf_config, nemo_config
from nemo_simplerl.plan.activations import Pass, saved_layer
from nemo_simplerl.plan.shapes import rank_parameters
from support.forms import num_parameters

HF = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}


def add(monkeypatch, name: str, **traits: bool) -> dict:
    """Puts an entry into the table. Returns the config.json of a small model of the family."""
    entry = Family(model_type=name, architecture=f"{name.capitalize()}ForCausalLM", **traits)
    monkeypatch.setitem(FAMILIES, name, entry)
    return HF | {"model_type": name}


@pytest.fixture
def toy(monkeypatch) -> dict:
    """A family with both traits, which none in the table has."""
    return add(monkeypatch, "toy", qkv_bias=True, qk_norm=True)


@pytest.fixture
def twin(monkeypatch) -> dict:
    """A family with the traits of qwen2."""
    return add(monkeypatch, "twin", qkv_bias=True)


def model_section(path: Path) -> ModelConfig:
    return ModelConfig(
        path=str(path),
        tokenizer=None,
        precision="bf16",
        transformer_engine=None,
        apply_rope_fusion=None,
        gradient_accumulation_fusion=False,
        fp8=None,
        fp8_recipe="tensorwise",
        create=None,
    )


def hf_folder(path: Path, hf: dict) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(hf))
    return path


def nemo_yaml(hf: dict) -> dict:
    return nemo_config(hf, dtype=torch.bfloat16, tokenizer=None, critic=False)


def test_the_configuration_reads_its_shape(toy, tmp_path):
    shape = read_shape(model_section(hf_folder(tmp_path / "model", toy)))
    assert shape.model_type == "toy"
    assert shape.family.qkv_bias and shape.family.qk_norm
    check_hf_config(toy, "config.json")


def test_the_plan_counts_its_parameters_and_activations(toy, tmp_path):
    shape = read_shape(model_section(hf_folder(tmp_path / "model", toy)))
    assert rank_parameters(shape) == num_parameters(toy)
    plain = read_shape(model_section(hf_folder(tmp_path / "llama", HF | {"model_type": "llama"})))
    # A layer more than llama's: the bias of query, key and value, and a norm each of query and key.
    head_dim, qkv = 8, (4 + 2 * 2) * 8
    assert rank_parameters(shape) - rank_parameters(plain) == 2 * (qkv + 2 * head_dim)
    sizes = {"tokens": 16, "tensor": 1, "sequence_parallel": False, "width": 2, "fused": True}
    own, others = (saved_layer(Pass(shape=each, **sizes), None) for each in (shape, plain))
    assert own - others == 16 * (4 + 2) * head_dim * 2  # the inputs of the two norms


def test_its_tensors_survive_the_way_to_megatron_and_back(toy):
    torch.manual_seed(0)
    heads = hf_map.heads_of(toy)
    names = hf_map.model_params(toy)
    assert "decoder.layers.1.self_attention.linear_qkv.bias" in names
    assert "decoder.layers.1.self_attention.q_layernorm.weight" in names
    for name in names:
        entry, shape = hf_map.mapping(name), hf_map.param_shape(name, toy)
        tensors = [torch.randn(size) for size in hf_map.split_shapes(entry.kind, shape, heads)]
        merged = hf_map.merge(entry.kind, tensors, heads)
        assert merged.shape == shape
        for tensor, back in zip(tensors, hf_map.split(entry.kind, merged, heads), strict=True):
            assert torch.equal(tensor, back)


def test_its_config_survives_the_nemo_yaml(toy, tmp_path):
    config = nemo_yaml(toy)
    back = hf_config(config, 0, "yaml")
    assert {key: back[key] for key in toy} == toy
    assert back["architectures"] == ["ToyForCausalLM"]
    (tmp_path / "model_config.yaml").write_text(yaml.safe_dump(config))
    assert read_shape(model_section(tmp_path)).model_type == "toy"


@pytest.mark.parametrize("as_tar", [False, True])
def test_a_nemo_config_that_fits_two_families_is_refused_with_what_to_do(twin, tmp_path, as_tar):
    config = nemo_yaml(twin)
    expected = (
        r"qkv_bias is true and qk_layernorm is false, which several families have \(qwen2, twin\)"
        ".*name one in the yaml as model_type"
    )
    with pytest.raises(ValueError, match=expected):
        hf_config(config, 0, "yaml")
    path = save_nemo(tmp_path, {"model_config.yaml": yaml.safe_dump(config)}, as_tar)
    with pytest.raises(ValueError, match=expected):
        read_shape(model_section(path))
    with pytest.raises(ValueError, match="model_type 'llama' is none of them"):
        hf_config(config | {"model_type": "llama"}, 0, "yaml")


@pytest.mark.parametrize("as_tar", [False, True])
def test_what_the_yaml_or_the_archive_says_of_the_family_decides_between_two(twin, tmp_path, as_tar):
    config = nemo_yaml(twin)
    for name in ("twin", "qwen2"):
        assert hf_config(config | {"model_type": name}, 0, "yaml")["model_type"] == name
        assert hf_config(config, 0, "yaml", lambda name=name: name)["model_type"] == name
        files = {"model_config.yaml": yaml.safe_dump(config), "hf/config.json": json.dumps(HF | {"model_type": name})}
        path = save_nemo(tmp_path / name, files, as_tar)
        assert read_shape(model_section(path)).model_type == name


def test_the_traits_alone_decide_where_one_family_has_them(twin):
    assert hf_config(nemo_yaml(HF | {"model_type": "llama"}), 0, "yaml")["model_type"] == "llama"
    with pytest.raises(ValueError, match="qkv_bias and qk_layernorm are both true, which no supported family has"):
        hf_config(nemo_yaml(twin) | {"qk_layernorm": True}, 0, "yaml")


def save_nemo(folder: Path, files: dict[str, str], as_tar: bool) -> Path:
    """The files as a `.nemo` archive, or in a folder."""
    folder.mkdir(exist_ok=True)
    if not as_tar:
        for name, text in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        return folder
    with tarfile.open(folder / "model.nemo", "w") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return folder / "model.nemo"
