"""GGUF files that llama.cpp's own package writes, against the Hugging Face folders of the same models."""

import json
import random
import struct
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, dequantize, quantize
from safetensors.torch import load_file

from nemo_simplerl.config.forms.gguf import read_header
from nemo_simplerl.config.load import compose
from nemo_simplerl.config.shape import ModelShape, read_critic_shape, read_shape
from nemo_simplerl.data.tokenizer import build_tokenizer
from nemo_simplerl.model.conversion.convert import Target, convert
from nemo_simplerl.model.source import kind_of, open_source
from nemo_simplerl.trainer.setup.inputs import tokenizer_of
from nemo_simplerl.trainer.setup.prepare import model_folder, write_model_files
from support.forms import tensors_of
from support.gguf_files import F32, TOKENIZER, TOKENS, save_gguf
from support.tiny import save_hf_model

Q8_0, F16, BF16 = GGMLQuantizationType.Q8_0, GGMLQuantizationType.F16, GGMLQuantizationType.BF16
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# Name: family of save_hf_model, whether embeddings are tied, changes of config.json.
MODELS = {
    "llama": ("llama", False, {}),
    "llama tied": ("llama", True, {"rms_norm_eps": 1e-5}),
    "llama of large heads": ("llama", False, {}),
    "llama 3.2": ("llama", True, {"rope_scaling": LLAMA3, "rope_theta": 500000.0}),
    "llama, longer": ("llama", False, {"rope_scaling": {"rope_type": "linear", "factor": 2.5}}),
    "qwen2": ("qwen2", True, {"rope_theta": 1000000.0}),
    "qwen3": ("qwen3", False, {}),
}
KEYS = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
KEYS += ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta", "tie_word_embeddings")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    found = {}
    for name, (family, tied, changes) in MODELS.items():
        found[name] = save_hf_model(root / name, family, tied=tied, head_dim=24 if "large" in name else None)
        config = found[name] / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    return found


@pytest.fixture(scope="module")
def file(folders, tmp_path_factory) -> Path:
    return save_gguf(folders["llama"], tmp_path_factory.mktemp("file") / "llama.bin")


def shape_of(path: Path) -> ModelShape:
    return read_shape(compose([f"model.path={path}", "data.train_path=none.jsonl"]).model)


def converted(path: Path, target: Path, **target_options) -> Path:
    convert(open_source(path), Target("hf", target, **target_options), lambda done, total: None)
    return target


@pytest.mark.parametrize("name", MODELS)
def test_a_file_is_the_folder_that_it_was_made_of(folders, tmp_path, name):
    folder = folders[name]
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.5} if name == "llama, longer" else {}
    path = save_gguf(folder, tmp_path / "model.gguf", changes=linear)
    source, expected = open_source(path), open_source(folder)
    assert kind_of(path) == source.kind == "gguf"
    assert {key: source.hf.get(key) for key in KEYS} == {key: expected.hf.get(key) for key in KEYS}
    assert source.hf.get("head_dim", 16) == expected.hf.get("head_dim", 16)
    assert (source.hf["rope_scaling"] or None) == (expected.hf.get("rope_scaling") or None)
    assert source.specs == dict(expected.specs)
    assert all(torch.equal(source.read(key), expected.read(key)) for key in source.specs)
    assert tensors_of(converted(path, tmp_path / "back")).keys() == load_file(folder / "model.safetensors").keys()
    shape = shape_of(path)
    assert (shape.num_layers, shape.vocab_size, shape.num_query_groups) == (4, 131, 2)
    assert (shape.model_type, shape.tied, shape.head_dim) == (
        source.hf["model_type"],
        source.hf["tie_word_embeddings"],
        source.hf.get("head_dim"),
    )


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(F16, torch.float16), (BF16, torch.bfloat16), (Q8_0, torch.float32), (GGMLQuantizationType.Q4_1, torch.float32)],
)
def test_weights_are_those_that_the_package_dequantizes(folders, tmp_path, kind, dtype):
    path = save_gguf(folders["qwen2"], tmp_path / "model.gguf", kind)
    source = open_source(path)
    original = load_file(folders["qwen2"] / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    expected = torch.from_numpy(dequantize(quantize(original.numpy(), kind), kind))
    found = source.read("decoder.layers.1.mlp.linear_fc2.weight")
    assert source.dtype == found.dtype == dtype and torch.equal(found.float(), expected)
    assert source.read("decoder.layers.1.self_attention.linear_qkv.bias").dtype == torch.float32
    # Where matrices differ in kind, all are read in the widest.
    mixed = save_gguf(folders["qwen2"], tmp_path / "mixed", kind, kinds={"blk.0.attn_v.weight": F32})
    assert open_source(mixed).dtype == torch.float32
    cast = converted(path, tmp_path / "bf16", dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in tensors_of(cast).values()} == {torch.bfloat16}


def test_the_tokenizers_files_go_along_and_another_folder_may_replace_them(file, tmp_path):
    small = open_source(file).small_files
    assert json.loads(small["tokenizer.json"])["model"]["vocab"]["Ġab"] == TOKENS.index("Ġab")
    written = converted(file, tmp_path / "hf")
    assert json.loads((written / "tokenizer_config.json").read_text())["eos_token"] == "<|end|>"
    assert json.loads((written / "config.json").read_text())["eos_token_id"] == 0


def test_an_unknown_tokenizer_is_refused_by_name_unless_another_is_given(tmp_path):
    folder = save_hf_model(tmp_path / "model", vocab_size=300)
    path = save_gguf(folder, tmp_path / "model.gguf", tokenizer=TOKENIZER | {"pre": "default"})
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.pre is 'default'.*known: gpt-2, smollm.*--tokenizer DIR"):
        converted(path, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    build_tokenizer(["ab"], 259, tmp_path / "other")
    assert (converted(path, tmp_path / "hf", tokenizer=tmp_path / "other") / "tokenizer.json").is_file()
    run = [f"model.path={path}", "data.train_path=none.jsonl", f"trainer.run_dir={tmp_path / 'run'}"]
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.pre is 'default'.*model\.tokenizer=DIR"):
        write_model_files(compose(run))
    config = compose([*run, f"model.tokenizer={tmp_path / 'other'}"])
    write_model_files(config)
    assert tokenizer_of(model_folder(config)).eos_token == "<|endoftext|>"


def test_a_run_gets_the_files_tokenizer_and_config_in_its_model_folder(file, tmp_path):
    config = compose([f"model.path={file}", "data.train_path=none.jsonl", f"trainer.run_dir={tmp_path}"])
    write_model_files(config)
    tokenizer = tokenizer_of(model_folder(config))
    assert tokenizer.encode("ab 12") == [TOKENS.index(token) for token in ("ab", "Ġ", "1", "2")]
    assert tokenizer.eos_token_id == 0 and open_source(file).hf["num_hidden_layers"] == 4


@pytest.mark.parametrize("name", ["Q8_1", "Q8_K", "I32"])
def test_a_quantization_that_has_no_way_back_is_refused_by_name(file, tmp_path, name):
    other = tmp_path / "odd.gguf"
    content = bytearray(file.read_bytes())
    tensor = b"blk.2.ffn_up.weight"
    at = content.index(tensor) + len(tensor) + 4 + 16
    assert struct.unpack_from("<I", content, at) == (int(F32),)
    for number, called in ((int(GGMLQuantizationType[name]), name), (99, "99")):
        struct.pack_into("<I", content, at, number)
        other.write_bytes(content)
        for reader in (open_source, shape_of):
            with pytest.raises(ValueError, match=rf"quantization {called} \(blk\.2\.ffn_up\.weight\)"):
                reader(other)


REFUSED = {
    "another architecture": ({"general.architecture": "gemma2"}, (), "general.architecture is 'gemma2'; supported"),
    "experts": ({"llama.expert_count": 8}, (), "llama.expert_count is 8, which is not supported"),
    "a scale of logits": ({"llama.logit_scale": 0.5}, (), "llama.logit_scale is 0.5"),
    "a window": ({"llama.attention.sliding_window": 64}, (), "sliding_window is 64 of 128 positions"),
    "half a turn": ({"llama.rope.dimension_count": 8, "llama.attention.key_length": 16}, (), "heads of one size"),
    "yarn": ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, (), "type 'yarn' is not supported"),
    "no size": ({"llama.block_count": None, "llama.context_length": None}, (), "block_count, llama.context_length are"),
    "heads a layer": ({"llama.attention.head_count_kv": [2, 2, 2, 1]}, (), r"wrong kind|not a positive integer"),
    "a text for a number": ({"llama.context_length": "long"}, (), "max_position_embeddings is 'long'"),
    "one of parts": ({"split.count": 3}, (), "one of 3 parts; join them: llama-gguf-split --merge"),
    "a lost tensor": ({}, ("blk.1.ffn_up.weight",), "lacks model.layers.1.mlp.up_proj.weight"),
    "no embeddings": ({}, ("token_embd.weight",), "token_embd.weight is missing"),
}


@pytest.mark.parametrize(("changes", "without", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_trained_is_refused_with_what_differs(folders, tmp_path, changes, without, message):
    if "general.architecture" in changes:
        path = save_gguf(folders["llama"], tmp_path / "model.gguf", architecture=changes["general.architecture"])
    else:
        path = save_gguf(folders["llama"], tmp_path / "model.gguf", changes=changes, without=without)
    with pytest.raises(ValueError, match=message) as error:
        open_source(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_rotary_factors_that_llama_3_does_not_explain_are_refused(tmp_path):
    folder = save_hf_model(tmp_path / "model", "llama3_rope")  # stretches 32 positions and not 8192
    with pytest.raises(ValueError, match=r"rope_freqs\.weight holds other values than Llama 3's scaling by 4 over"):
        open_source(save_gguf(folder, tmp_path / "model.gguf"))


def test_a_cut_off_or_damaged_file_gives_one_clear_error(file, tmp_path):
    content, other = file.read_bytes(), tmp_path / "cut.gguf"
    start = min(entry.offset for entry in read_header(file).tensors.values())
    rng = random.Random(0)
    for size in [4, 12, 30, *(rng.randrange(4, start) for _ in range(20)), start, len(content) - 40]:
        other.write_bytes(content[:size])
        with pytest.raises(ValueError, match="cut off"):
            open_source(other)
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[rng.randrange(4, start)] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))
        other.write_bytes(damaged)
        try:
            source = open_source(other)
            for name in source.specs:
                source.read(name)
        except ValueError as error:
            assert str(other) in str(error)


def test_other_byte_orders_and_versions_are_refused_by_name(file, tmp_path):
    content, other = bytearray(file.read_bytes()), tmp_path / "other.gguf"
    for version, said in ((struct.pack(">I", 3), "big-endian"), (struct.pack("<I", 1), "of version 1")):
        other.write_bytes(content[:4] + version + content[8:])
        with pytest.raises(ValueError, match=f"is {said}; GGUF is read in versions 2 and 3"):
            open_source(other)


def test_a_folder_of_files_names_them_and_a_file_may_be_the_critics_origin(file, tmp_path):
    (tmp_path / "model.gguf").symlink_to(file)
    with pytest.raises(ValueError, match=r"is a folder of GGUF files; give one: .*model\.gguf"):
        open_source(tmp_path)
    critic = compose(["model.path=none", "data.train_path=none.jsonl", f"critic.path={file}"]).critic
    assert read_critic_shape(critic).num_layers == 4
    with pytest.raises(ValueError, match="is no critic"):
        open_source(file, critic=True)
