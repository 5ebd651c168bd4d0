"""Folders that another version of transformers wrote than the one that is installed, read alike on either.

folders/transformers-N/NAME holds config.json of a small model as version N wrote it; the weights are made here.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from nemo_simplerl.config.families import check_hf_config, longest_sequence
from nemo_simplerl.config.load import compose
from nemo_simplerl.config.shape import read_shape
from nemo_simplerl.model.conversion import verify
from nemo_simplerl.model.conversion.convert import Target, convert
from nemo_simplerl.model.network.provider import read_hf_config
from nemo_simplerl.model.network.rope import rope_frequencies
from nemo_simplerl.model.source import open_source
from nemo_simplerl.rollout.expected_weights import ExpectedWeights
from nemo_simplerl.rollout.hf.weights import copy_weights
from nemo_simplerl.rollout.hf_model import empty_model, read_config

FOLDERS = Path(__file__).parent / "folders"
NAMES = ("qwen2", "qwen3", "llama3", "mistral")
INSTALLED = transformers.__version__.partition(".")[0]
OTHER = "5" if INSTALLED == "4" else "4"


def config_of(version: str, name: str) -> dict:
    return json.loads((FOLDERS / f"transformers-{version}" / name / "config.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_both_versions_configs_are_read_as_the_same_one(name):
    four, five = (check_hf_config(config_of(version, name), version) for version in "45")
    assert "rope_parameters" in config_of("5", name) and "rope_parameters" not in five
    keys = (four.keys() & five.keys()) - {"transformers_version", "head_dim"}
    assert {"rope_theta", "torch_dtype", "tie_word_embeddings", "rms_norm_eps"} <= keys
    assert {key: four[key] for key in keys} == {key: five[key] for key in keys}
    assert four.get("rope_scaling") == five.get("rope_scaling")
    assert torch.equal(rope_frequencies(four), rope_frequencies(five))


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_either_versions_folder_are_those_of_its_own_transformers(tmp_path, name):
    """The installed version reads its own folder; the trainer and the embedded engine read the other's."""
    torch.manual_seed(0)
    own, other = tmp_path / "own", tmp_path / "other"
    for folder, version in ((own, INSTALLED), (other, OTHER)):
        shutil.copytree(FOLDERS / f"transformers-{version}" / name, folder)
    made = AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(own))
    for parameter in made.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    made.save_pretrained(tmp_path / "made")
    for folder in (own, other):
        shutil.copy(tmp_path / "made/model.safetensors", folder)
    tokens_BS = torch.randint(331, (2, 100), generator=torch.Generator().manual_seed(1))
    expected = AutoModelForCausalLM.from_pretrained(own, dtype=torch.float32).eval()(tokens_BS).logits
    engine = empty_model(read_config(other), torch.device("cpu"))
    copy_weights(engine, [list(load_file(other / "model.safetensors").items())], digests=False)
    torch.testing.assert_close(engine.eval()(tokens_BS).logits, expected, atol=1e-5, rtol=0)
    assert ExpectedWeights(other).vocab_size == 331
    # As conversion checks itself: one side is transformers with our reading of the config, the other Megatron.
    convert(open_source(other), Target("nemo", tmp_path / "m.nemo"), lambda done, total: None)
    convert(open_source(tmp_path / "m.nemo"), Target("hf", tmp_path / "back"), lambda done, total: None)
    of_trainer = verify.outputs(open_source(tmp_path / "m.nemo"))
    for folder in (own, other, tmp_path / "back"):
        assert (verify.outputs(open_source(folder)) - of_trainer).abs().max() < 1e-4
    back = json.loads((tmp_path / "back/config.json").read_text())
    assert back["rope_theta"] == check_hf_config(config_of(OTHER, name), name)["rope_theta"] != 10000.0
    assert "rope_parameters" not in back  # the form that both versions read


def test_the_frequencies_that_the_engine_turns_by_are_the_trainers():
    for name in NAMES:
        model = empty_model(read_config(FOLDERS / f"transformers-{OTHER}" / name), torch.device("cpu"))
        expected = rope_frequencies(read_hf_config(FOLDERS / f"transformers-{INSTALLED}" / name))
        assert torch.equal(model.model.rotary_emb.inv_freq, expected), name


FULL = {"rope_type": "default", "rope_theta": 5e5}
LINEAR = {"rope_type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("changes", "theta", "scaling"),
    [
        ({"rope_parameters": FULL}, 5e5, None),
        ({"rope_parameters": {"type": "linear", "factor": 2.0, "rope_theta": 7.0}}, 7.0, LINEAR),
        ({"rope_parameters": {"full_attention": FULL, "sliding_attention": {"rope_theta": 1.0}}}, 5e5, None),
        ({"rope_parameters": {"full_attention": LINEAR | {"rope_theta": 3.0}, "sliding_attention": None}}, 3.0, LINEAR),
        ({"rope_parameters": LINEAR, "rope_theta": 9.0}, 9.0, LINEAR),
        ({"rope_parameters": FULL, "rope_theta": 5e5, "rope_scaling": {"rope_type": "default"}}, 5e5, None),
        ({"rope_parameters": None, "rope_theta": 9.0}, 9.0, None),
        ({"rope_parameters": FULL | {"partial_rotary_factor": 1.0}}, 5e5, None),
        ({}, None, None),
    ],
)
def test_every_form_of_rope_parameters_is_read(changes, theta, scaling):
    hf = {key: value for key, value in config_of("5", "llama3").items() if key != "rope_parameters"} | changes
    read = check_hf_config(hf, "config.json")
    assert (read.get("rope_theta"), read.get("rope_scaling")) == (theta, scaling)
    assert hf.keys() >= changes.keys()  # the file's own values are left alone


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"rope_parameters": FULL, "rope_theta": 1e4}, "rope_theta is 10000.0, and rope_parameters says 500000.0"),
        (
            {"rope_parameters": FULL, "rope_scaling": LINEAR},
            "rope_scaling is .*, and rope_parameters says None",
        ),
        ({"rope_parameters": {"sliding_attention": FULL}}, "parts sliding_attention; only one for full_attention"),
        ({"rope_parameters": {"full_attention": FULL, "rope_theta": 1.0}}, "only one for full_attention is read"),
        ({"rope_parameters": [1]}, r"rope_parameters is \[1\], not an object"),
        ({"rope_parameters": FULL | {"rope_type": "yarn"}}, "rope_scaling type 'yarn' is not supported"),
        ({"rope_parameters": FULL | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5 is not supported"),
        ({"rope_parameters": FULL | {"rope_theta": "1e6"}}, "rope_theta is '1e6', not a positive number"),
    ],
)
def test_what_cannot_be_had_of_rope_parameters_is_refused_by_name(changes, problem):
    with pytest.raises(ValueError, match=problem):
        check_hf_config(config_of("4", "qwen2") | {"rope_theta": None, "rope_scaling": None} | changes, "config.json")


@pytest.mark.parametrize(
    ("window", "positions", "longest"),
    [(64, 128, 64), ("absent", 8192, 4096), ("absent", 128, 128), (128, 128, 128), (None, 8192, 8192)],
)
def test_a_mistral_model_is_trained_on_what_lies_within_its_window(tmp_path, window, positions, longest):
    hf = config_of("5", "mistral") | {"sliding_window": window, "max_position_embeddings": positions}
    if window == "absent":
        del hf["sliding_window"]
    checked = check_hf_config(hf, "config.json")
    assert checked["sliding_window"] == (4096 if window == "absent" else window)  # and is written so
    (tmp_path / "config.json").write_text(json.dumps(hf))
    built = read_config(tmp_path)
    assert built.sliding_window is None and built.max_position_embeddings == longest
    shape = read_shape(compose([f"model.path={tmp_path}", "data.train_path=none.jsonl"]).model)
    assert longest_sequence(checked) == shape.longest_sequence == longest
    for other in ("wide", 0):
        with pytest.raises(ValueError, match=f"sliding_window is {other!r}, not a positive integer"):
            check_hf_config(hf | {"sliding_window": other}, "config.json")
