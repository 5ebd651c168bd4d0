"""Archives that look like those of other writers: other keys, other settings, other cuts of the tensors."""

import io
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from torch.distributed.checkpoint import FileSystemWriter
from transformers import AutoConfig, AutoModelForCausalLM

from nemo_simplerl.model.conversion.convert import Target, convert
from nemo_simplerl.model.conversion.nemo_writer import stacked_key
from nemo_simplerl.model.formats.nemo_config import nemo_config
from nemo_simplerl.model.source import open_source
from support.forms import converted, same_bits, save_model, tensors_of
from support.ranks import run_ranks


def state_of(folder: Path, *, prefix: str = "model.", stacked: bool = True, pad_to: int = 0) -> dict[str, torch.Tensor]:
    """The state that NeMo gives its checkpoint writer for the model in `folder`; vocabularies padded with rows of 7."""
    source = open_source(folder)
    layers: dict[str, list[torch.Tensor]] = {}
    for name in source.specs:
        tensor = source.read(name)
        if pad_to and tensor.shape[0] == source.hf["vocab_size"]:
            tensor = torch.cat([tensor, torch.full((pad_to - len(tensor), tensor.shape[1]), 7.0)])
        key, layer = stacked_key(name) if stacked else (f"model.{name}", None)
        layers.setdefault(prefix + key.removeprefix("model."), []).append(tensor if layer is None else tensor[None])
    return {key: torch.cat(tensors) for key, tensors in layers.items()}


def write_yaml(folder: Path, model: Path, **changes) -> None:
    """Write the model_config.yaml of `model` to `folder`, with keys changed, or (None) left out."""
    config = nemo_config(open_source(model).hf, dtype=torch.float32, tokenizer=None, critic=False) | changes
    folder.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in config.items() if value is not None or key == "kv_channels"}
    (folder / "model_config.yaml").write_text(yaml.safe_dump(kept))


def saved_by_torch(folder: Path, state: dict[str, torch.Tensor], files: int = 3) -> None:
    dcp.save(state, storage_writer=FileSystemWriter(folder / "model_weights", thread_count=files), no_dist=True)
    assert len(list(folder.glob("model_weights/*.distcp"))) == files


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("prefix", ["model.", "model.module.", ""])
def test_every_kind_of_key_is_understood(tmp_path, stacked, prefix):
    original = save_model(tmp_path / "hf", "qwen3_untied")
    write_yaml(tmp_path / "nemo", original)
    saved_by_torch(tmp_path / "nemo", state_of(original, prefix=prefix, stacked=stacked))
    assert same_bits(tensors_of(converted(tmp_path / "nemo", tmp_path / "back")), tensors_of(original))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_keep_their_dtype(tmp_path, dtype):
    original = save_model(tmp_path / "hf")
    write_yaml(tmp_path / "nemo", original)
    saved_by_torch(tmp_path / "nemo", {key: tensor.to(dtype) for key, tensor in state_of(original).items()})
    back = converted(tmp_path / "nemo", tmp_path / "back")
    assert same_bits(tensors_of(back), {name: tensor.to(dtype) for name, tensor in tensors_of(original).items()})
    assert AutoConfig.from_pretrained(back).dtype == dtype


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("qwen2_untied", {"kv_channels": None}),
        ("llama", {"qkv_bias": None, "qk_layernorm": None}),
        ("qwen2_tied", {"share_embeddings_and_output_weights": None}),  # true, where NeMo's yaml does not say
        ("llama", {"rotary_base": None, "rotary_percentage": None}),  # 10000, 1.0
        ("qwen2_untied", {"layernorm_epsilon": "1e-6", "max_position_embeddings": None}),
    ],
)
def test_settings_that_are_left_out_have_nemos_meaning(tmp_path, name, changes):
    original = save_model(tmp_path / "hf", name)
    write_yaml(tmp_path / "nemo", original, **changes)
    if "layernorm_epsilon" in changes:  # as OmegaConf reads it: a number
        file = tmp_path / "nemo/model_config.yaml"
        file.write_text(file.read_text().replace("'1e-6'", "1e-6"))
    saved_by_torch(tmp_path / "nemo", state_of(original))
    back = converted(tmp_path / "nemo", tmp_path / "back")
    assert same_bits(tensors_of(back), tensors_of(original))
    tokens = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        logits = [AutoModelForCausalLM.from_pretrained(path).eval()(tokens).logits for path in (original, back)]
    assert torch.equal(*logits)


def test_rows_that_pad_a_vocabulary_are_dropped_where_its_size_is_known(tmp_path):
    original = save_model(tmp_path / "hf")
    for name, size in (("noted", 331), ("unknown", None)):
        write_yaml(tmp_path / name, original, override_vocab_size=size)
        saved_by_torch(tmp_path / name, state_of(original, pad_to=384))
    assert same_bits(tensors_of(converted(tmp_path / "noted", tmp_path / "back")), tensors_of(original))
    padded = tensors_of(converted(tmp_path / "unknown", tmp_path / "padded"))
    assert len(padded["lm_head.weight"]) == len(padded["model.embed_tokens.weight"]) == 384
    assert open_source(tmp_path / "padded").hf["vocab_size"] == 384
    source = open_source(tmp_path / "unknown", tokenizer=original)
    convert(source, Target("hf", tmp_path / "known", tokenizer=original), lambda done, total: None)
    assert same_bits(tensors_of(tmp_path / "known"), tensors_of(original))


def test_a_copy_of_tied_embeddings_must_be_one(tmp_path):
    original = save_model(tmp_path / "hf", "qwen2_tied")
    state = state_of(original)
    write_yaml(tmp_path / "nemo", original)
    state["model.output_layer.weight"] = state["model.embedding.word_embeddings.weight"].clone()
    saved_by_torch(tmp_path / "nemo", state)
    assert same_bits(tensors_of(converted(tmp_path / "nemo", tmp_path / "back")), tensors_of(original))
    state["model.output_layer.weight"][3, 5] += 1
    saved_by_torch(tmp_path / "nemo", state)
    with pytest.raises(ValueError, match=r"output_layer\.weight differs from the embeddings"):
        open_source(tmp_path / "nemo")


def test_tensors_that_do_not_fit_the_config_are_named_together(tmp_path):
    original = save_model(tmp_path / "hf")
    state = state_of(original)
    state["model.decoder.layers.mlp.router.weight"] = torch.zeros(4, 2)
    state["model.decoder.layers.mlp.linear_fc2.weight"] = torch.zeros(4, 64, 95)
    state["model.embedding.word_embeddings.weight"] = torch.zeros(300, 64)
    state["model.output_layer.weight"] = torch.zeros(331, 64, dtype=torch.int32)
    del state["model.decoder.final_layernorm.weight"]
    write_yaml(tmp_path / "nemo", original)
    saved_by_torch(tmp_path / "nemo", state)
    with pytest.raises(ValueError) as error:
        open_source(tmp_path / "nemo")
    for told in (
        "decoder.layers.0.mlp.router.weight is unknown",
        "decoder.layers.3.mlp.linear_fc2.weight is (64, 95), by its config (64, 96)",
        "embedding.word_embeddings.weight is (300, 64), by its config (331, 64)",
        "output_layer.weight is torch.int32: quantized weights are not supported",
        "decoder.final_layernorm.weight is missing",
    ):
        assert told in str(error.value)


def test_the_tokenizer_of_an_archive_that_packs_one_comes_along(tmp_path):
    original = save_model(tmp_path / "hf")
    tokenizer = {"library": "sentencepiece", "type": None, "model": "nemo:0f_tokenizer.model"}
    write_yaml(tmp_path / "nemo", original, tokenizer=tokenizer)
    (tmp_path / "nemo/0f_tokenizer.model").write_bytes(b"pieces")
    saved_by_torch(tmp_path / "nemo", state_of(original))
    assert (converted(tmp_path / "nemo", tmp_path / "back") / "tokenizer.model").read_bytes() == b"pieces"


def _save_sharded(content: bytes, folders: list[str]) -> None:
    """Save the state in `content` from three ranks into each folder. The cuts (layers 2, 2 and 0; columns; replicated)
    take turns over tensors and folders."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    state, mesh = torch.load(io.BytesIO(content)), init_device_mesh("cpu", (3,))
    cuts = [Shard(0), Shard(1), Replicate()]
    for turn, folder in enumerate(folders):
        sharded = {
            key: distribute_tensor(tensor, mesh, [Shard(0) if tensor.ndim == 1 else cuts[(number + turn) % 3]])
            for number, (key, tensor) in enumerate(state.items())
        }
        dcp.save(sharded, storage_writer=FileSystemWriter(folder, thread_count=2))


@pytest.mark.slow
def test_tensors_cut_unevenly_by_layers_or_columns_are_put_together(tmp_path):
    original = save_model(tmp_path / "hf")
    state, content = state_of(original), io.BytesIO()
    torch.save(state, content)
    folders = [tmp_path / f"nemo{turn}" for turn in range(3)]
    run_ranks(_save_sharded, 3, content.getvalue(), [str(folder / "model_weights") for folder in folders])
    for folder in folders:
        write_yaml(folder, original)
        index = pickle.loads((folder / "model_weights/.metadata").read_bytes())
        assert len(index.storage_data) > len(state)
        assert same_bits(tensors_of(converted(folder, tmp_path / f"{folder.name}-hf")), tensors_of(original))
