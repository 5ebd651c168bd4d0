"""Hugging Face folders through `.nemo` archives and checkpoints and back, and what other libraries read of them."""

import json
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from nemo_simplerl.model.conversion import verify
from nemo_simplerl.model.conversion.convert import Target, convert, small_files_of
from nemo_simplerl.model.conversion.nemo_writer import stacked_key
from nemo_simplerl.model.formats.nemo_config import parse_yaml
from nemo_simplerl.model.source import open_source
from support.forms import (
    FAMILIES,
    SHARED,
    VARIANTS,
    companions,
    converted,
    members,
    questions,
    repacked,
    same_bits,
    save_critic,
    save_model,
    tensors_of,
)
from support.ranks import run_ranks

REFERENCES = SHARED / "nemo-reference"
needs_references = pytest.mark.skipif(
    not REFERENCES.is_dir(), reason="no archives of NeMo's in ../shared/nemo-reference"
)


def config_of(folder: Path) -> dict:
    config = AutoConfig.from_pretrained(folder).to_dict()
    return {key: value for key, value in config.items() if key not in ("transformers_version", "_name_or_path")}


def logits_of(folder: Path) -> torch.Tensor:
    tokens = torch.arange(60).reshape(2, 30)
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder).eval()(tokens).logits


@pytest.mark.parametrize("name", FAMILIES | VARIANTS)
def test_a_model_comes_back_from_nemo_bit_for_bit_with_its_config_and_tokenizer(tmp_path, name):
    original = save_model(tmp_path / "hf", name)
    back = converted(converted(original, tmp_path / "m.nemo", "nemo"), tmp_path / "back")
    assert same_bits(tensors_of(back), tensors_of(original))
    assert config_of(back) == config_of(original)
    assert (back / "generation_config.json").read_bytes() == (original / "generation_config.json").read_bytes()
    before, after = AutoTokenizer.from_pretrained(original), AutoTokenizer.from_pretrained(back)
    texts = questions(tmp_path)
    assert len(texts) == 200 and before(list(texts)).input_ids == after(list(texts)).input_ids
    assert (before.eos_token, before.pad_token) == (after.eos_token, after.pad_token)
    assert torch.equal(logits_of(original), logits_of(back))


def test_an_unpacked_archive_and_one_that_was_moved_are_read_alike(tmp_path):
    original = save_model(tmp_path / "hf")
    archive = converted(original, tmp_path / "m.nemo", "nemo")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    archive = archive.rename(tmp_path / "moved.nemo")
    for number, source in enumerate((tmp_path / "unpacked", archive)):
        assert same_bits(tensors_of(converted(source, tmp_path / f"back{number}")), tensors_of(original))


def test_the_same_model_gives_the_same_archive(tmp_path):
    original = save_model(tmp_path / "hf")
    one, other = (converted(original, tmp_path / f"{name}.nemo", "nemo") for name in "ab")
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(("dtype", "word"), [(torch.bfloat16, "bf16"), (torch.float16, "16")])
def test_a_cast_is_torchs_and_is_noted_in_both_configs(tmp_path, dtype, word):
    original = save_model(tmp_path / "hf", "qwen2_tied")
    archive = converted(original, tmp_path / "m.nemo", "nemo", dtype=dtype)
    assert parse_yaml(members(archive)["model_config.yaml"], "")["precision"] == word
    back = converted(archive, tmp_path / "back")
    assert same_bits(tensors_of(back), {name: tensor.to(dtype) for name, tensor in tensors_of(original).items()})
    assert AutoConfig.from_pretrained(back).dtype == dtype


def test_each_tensor_keeps_its_own_dtype_where_none_is_asked_for(tmp_path):
    from safetensors.torch import save_file

    original = save_model(tmp_path / "hf")
    mixed = {name: tensor if "norm" in name else tensor.bfloat16() for name, tensor in tensors_of(original).items()}
    save_file(mixed, original / "model.safetensors")
    back = converted(converted(original, tmp_path / "m.nemo", "nemo"), tmp_path / "back")
    assert same_bits(tensors_of(back), mixed)


def test_shards_are_listed_in_an_index_that_transformers_follows(tmp_path):
    original = save_model(tmp_path / "hf")
    sharded = converted(original, tmp_path / "sharded", shard_bytes=100_000)
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    files = sorted(sharded.glob("*.safetensors"))
    assert len(files) > 3 and {file.name for file in files} == set(index["weight_map"].values())
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    for file in files:
        with safe_open(file, "pt") as opened:
            assert {name for name, home in index["weight_map"].items() if home == file.name} == set(opened.keys())
            sizes = [opened.get_tensor(name).nbytes for name in opened.keys()]  # noqa: SIM118
            assert sum(sizes) <= 100_000 or len(sizes) == 1
    tensors = tensors_of(sharded)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert same_bits(tensors, tensors_of(original))
    assert torch.equal(logits_of(sharded), logits_of(original))
    again = converted(converted(sharded, tmp_path / "m.nemo", "nemo"), tmp_path / "back")
    assert same_bits(tensors_of(again), tensors)


def test_a_critic_keeps_its_tensors_and_values_in_every_form(tmp_path):
    critic = save_critic(tmp_path / "hf")
    forms = {
        "nemo": converted(critic, tmp_path / "c.nemo", "nemo", critic=True),
        "checkpoint": converted(critic, tmp_path / "step", "checkpoint", critic=True),
    }
    values = verify.outputs(open_source(critic))
    assert values.shape == (2, 32) and values.std() > 0.1
    for name, form in forms.items():
        assert torch.equal(verify.outputs(open_source(form, critic=True)), values)
        back = converted(form, tmp_path / name, critic=True)
        assert same_bits(tensors_of(back), tensors_of(critic))
        model, info = AutoModelForSequenceClassification.from_pretrained(back, output_loading_info=True)
        assert model.num_labels == 1 and not any(info.values())


def test_an_actor_is_refused_as_a_critic(tmp_path):
    actor = save_model(tmp_path / "hf")
    for kind in ("nemo", "checkpoint"):
        converted(actor, tmp_path / kind, kind)
    for form in ("hf", "nemo"):
        with pytest.raises(ValueError, match=rf"{form} is no critic: it holds no value head \(score\.weight, rm_head"):
            open_source(tmp_path / form, critic=True)
    with pytest.raises(ValueError, match="checkpoint holds no critic, an actor alone"):
        open_source(tmp_path / "checkpoint", critic=True)


def _keys_of_libraries(folder: str) -> dict[str, dict[str, torch.Tensor]]:
    """Every tensor of a checkpoint folder, by torch.distributed.checkpoint and by Megatron-core."""
    from megatron.core.dist_checkpointing import load_plain_tensors, load_tensors_metadata

    from nemo_simplerl.parallel.mesh import build_mesh

    build_mesh(tensor_model_parallel_size=1, pipeline_model_parallel_size=1, context_parallel_size=1, timeout_s=60)
    by_torch = _load_state_dict_from_keys(storage_reader=FileSystemReader(folder))
    by_megatron = load_plain_tensors(folder)
    assert load_tensors_metadata(folder).keys() == by_megatron.keys()
    return {
        "torch": {key: value for key, value in by_torch.items() if isinstance(value, torch.Tensor)},
        "megatron": by_megatron,
    }


def test_torch_and_megatron_read_the_checkpoint_in_an_archive_of_ours(tmp_path):
    original = save_model(tmp_path / "hf")
    step = converted(original, tmp_path / "step", "checkpoint")
    (read,) = run_ranks(_keys_of_libraries, 1, str(step / "actor/model_weights"))
    source = open_source(original)
    for tensors in read.values():
        assert len(tensors) == 10  # those of a layer are stacked
        for name in source.specs:
            key, layer = stacked_key(name)
            found = tensors[key] if layer is None else tensors[key][layer]
            assert torch.equal(found, source.read(name)), name


def test_a_tokenizer_that_is_given_replaces_the_whole_of_the_old_one(tmp_path):
    original, other = save_model(tmp_path / "hf"), save_model(tmp_path / "other")
    (original / "added_tokens.json").write_text("{}")
    config = json.loads((other / "config.json").read_text()) | {"eos_token_id": 7, "vocab_size": 999}
    (other / "config.json").write_text(json.dumps(config))
    files = small_files_of(open_source(original), tokenizer=other)
    assert files.keys() == {"config.json", *companions(other)}
    written = json.loads(files["config.json"])
    assert (written["eos_token_id"], written["vocab_size"]) == (7, 331)


def test_only_files_of_the_model_and_its_tokenizer_go_along(tmp_path):
    original = save_model(tmp_path / "hf")
    for name in ("modeling_odd.py", "adapter_config.json", "pytorch_model.bin", "train.json"):
        (original / name).write_text("{}")
    archive = converted(original, tmp_path / "m.nemo", "nemo")

    def smuggle(files: dict[str, bytes]) -> None:
        files["hf/adapter_config.json"] = files["hf/sub/tokenizer.json"] = files["hf/model-1.safetensors"] = b"{}"

    back = converted(repacked(archive, tmp_path / "odd.nemo", smuggle), tmp_path / "back")
    kept = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    assert {path.name for path in back.iterdir()} - {"special_tokens_map.json"} == kept  # which version 4 alone makes


@needs_references
@pytest.mark.parametrize("name", ["qwen2_untied", "llama"])
@pytest.mark.parametrize("form", ["archive", "folder", "with a tokenizer"])
def test_archives_that_nemo_wrote_become_the_folders_they_came_from(tmp_path, name, form):
    source, original = REFERENCES / name / "model.nemo", REFERENCES / name / "hf"
    if form == "folder":
        with tarfile.open(source) as tar:
            tar.extractall(tmp_path / "unpacked", filter="data")
        source = tmp_path / "unpacked"
    tokenizer = original if form == "with a tokenizer" else None
    convert(open_source(source), Target("hf", tmp_path / "hf", tokenizer=tokenizer), lambda done, total: None)
    assert same_bits(tensors_of(tmp_path / "hf"), tensors_of(original))
    if tokenizer:
        assert config_of(tmp_path / "hf") == config_of(original)
        before, after = AutoTokenizer.from_pretrained(original), AutoTokenizer.from_pretrained(tmp_path / "hf")
        assert before("7 and 12").input_ids == after("7 and 12").input_ids
    again = converted(tmp_path / "hf", tmp_path / "again.nemo", "nemo")
    assert same_bits(tensors_of(converted(again, tmp_path / "back")), tensors_of(original))


def test_outputs_tell_models_apart_that_differ_in_a_setting_alone(tmp_path):
    original = save_model(tmp_path / "hf")
    archive = converted(original, tmp_path / "m.nemo", "nemo")

    def other_base(files: dict[str, bytes]) -> None:
        files["hf/config.json"] = files["hf/config.json"].replace(b'"rope_theta": 10000.0', b'"rope_theta": 500.0')
        files["model_config.yaml"] = files["model_config.yaml"].replace(b"rotary_base: 10000.0", b"rotary_base: 500.0")

    expected = verify.outputs(open_source(original))
    assert (verify.outputs(open_source(archive)) - expected).abs().max() < 1e-5
    changed = open_source(repacked(archive, tmp_path / "odd.nemo", other_base))
    assert (verify.outputs(changed) - expected).abs().max() > 0.1
