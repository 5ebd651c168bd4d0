"""Archives of older NeMo: one torch.save file a rank, and zarr."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from nemo_simplerl.model import hf_map
from nemo_simplerl.model.formats.nemo_config import nemo_config
from nemo_simplerl.model.hf_map import OUTPUT_LAYER
from nemo_simplerl.model.source import open_source
from support.forms import FAMILIES, converted, same_bits, save_critic, save_model, tensors_of


def write_yaml(folder: Path, model: Path, **changes) -> None:
    source = open_source(model)
    config = nemo_config(source.hf, dtype=torch.float32, tokenizer=None, critic=source.is_critic) | changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_config.yaml").write_text(yaml.safe_dump(config))


def rank_state(model: Path, stage: int, stages: int, rank: int, size: int) -> dict[str, Tensor]:
    """The state that one rank of NeMo saves: its stage's layers counted from 0, its shards under NeMo's names."""
    source = open_source(model)
    per_stage = source.hf["num_hidden_layers"] // stages
    first, state = stage * per_stage, {}
    for name in source.specs:
        parts = name.split(".")
        is_layer = name.startswith("decoder.layers.")
        if is_layer and not first <= int(parts[2]) < first + per_stage:
            continue
        if not is_layer and stage != (0 if name.startswith("embedding") else stages - 1):
            continue
        local = ".".join([*parts[:2], str(int(parts[2]) - first), *parts[3:]]) if is_layer else name
        is_head = source.is_critic and name == OUTPUT_LAYER
        entry = hf_map.Mapping((), "plain", 1) if is_head else hf_map.mapping(name)
        part = hf_map.shard(entry.kind, source.read(name), entry.tp_dim, rank, size).clone()
        state[f"model.{'rm_head.weight' if is_head else local}"] = part
    is_tied = source.hf["tie_word_embeddings"] and not source.is_critic
    if is_tied and stages > 1 and stage == stages - 1:
        embedding = source.read("embedding.word_embeddings.weight")
        state["model.output_layer.weight"] = hf_map.shard("vocab", embedding, 0, rank, size).clone()
    if source.is_critic and stage == stages - 1:
        state["model.rm_head.bias"] = torch.zeros(1)
    return state


def save_ranks(folder: Path, model: Path, stages: int, size: int) -> Path:
    write_yaml(folder, model)
    for stage, rank in itertools.product(range(stages), range(size)):
        name = f"mp_rank_{rank:02d}" if stages == 1 else f"tp_rank_{rank:02d}_pp_rank_{stage:03d}"
        file = folder / ("" if stages == size == 1 else name) / "model_weights.ckpt"
        file.parent.mkdir(exist_ok=True)
        torch.save(rank_state(model, stage, stages, rank, size), file)
    return folder


@pytest.mark.parametrize(("stages", "size"), [(1, 1), (1, 2), (2, 1), (4, 2)])
@pytest.mark.parametrize("name", ["qwen2_tied", "qwen3_untied", "llama"])
def test_the_files_of_all_ranks_make_the_model(tmp_path, name, stages, size):
    original = save_model(tmp_path / "hf", name)
    ranks = save_ranks(tmp_path / "nemo", original, stages, size)
    assert same_bits(tensors_of(converted(ranks, tmp_path / "back")), tensors_of(original))


def test_a_critic_of_nemo_aligners_is_read(tmp_path):
    original = save_critic(tmp_path / "hf")
    ranks = save_ranks(tmp_path / "nemo", original, 2, 2)
    assert same_bits(tensors_of(converted(ranks, tmp_path / "back", critic=True)), tensors_of(original))
    file = ranks / "tp_rank_00_pp_rank_001/model_weights.ckpt"
    torch.save(torch.load(file) | {"model.rm_head.bias": torch.ones(1)}, file)
    with pytest.raises(ValueError, match="rm_head.bias is not zero, and our value head has no bias"):
        open_source(ranks)


def test_ranks_that_are_missing_or_do_not_fit_are_named(tmp_path):
    original = save_model(tmp_path / "hf")
    ranks = save_ranks(tmp_path / "nemo", original, 2, 2)
    file = ranks / "tp_rank_01_pp_rank_000/model_weights.ckpt"
    state = torch.load(file)
    norm = state.pop("model.decoder.layers.1.mlp.linear_fc1.layer_norm_weight")
    for changed in (state, state | {"model.decoder.layers.1.mlp.linear_fc1.layer_norm_weight": norm.half()}):
        torch.save(changed, file)
        with pytest.raises(ValueError, match=r"layers.1.mlp.linear_fc1.layer_norm_weight is not on all 2 tensor ranks"):
            open_source(ranks)
    file.unlink()
    with pytest.raises(ValueError, match="not of 2 pipeline stages x 2 tensor ranks: those of stage 0, tensor rank 1"):
        open_source(ranks)
    file.parent.rename(ranks / f"tp_rank_{10**15}_pp_rank_000")
    torch.save(state, ranks / f"tp_rank_{10**15}_pp_rank_000/model_weights.ckpt")
    with pytest.raises(ValueError, match="are missing"):
        open_source(ranks)


DTYPES = {torch.float32: "<f4", torch.float16: "<f2", torch.bfloat16: "bfloat16"}


def write_zarr(folder: Path, tensor: Tensor, chunk: tuple[int, ...], separator: str = ".") -> None:
    """Write an uncompressed zarr array of version 2: all chunks have the full size, so the last ones are padded."""
    array = {"zarr_format": 2, "shape": list(tensor.shape), "chunks": list(chunk), "dtype": DTYPES[tensor.dtype]}
    array |= {"compressor": None, "fill_value": None, "filters": None, "order": "C", "dimension_separator": separator}
    folder.mkdir(parents=True)
    (folder / ".zarray").write_text(json.dumps(array))
    counts = [math.ceil(length / part) for length, part in zip(tensor.shape, chunk, strict=True)]
    for index in itertools.product(*map(range, counts)):
        block = torch.full(chunk, 9.0, dtype=tensor.dtype)
        place = [slice(i * part, (i + 1) * part) for i, part in zip(index, chunk, strict=True)]
        inside = tensor[tuple(place)]
        block[tuple(slice(length) for length in inside.shape)] = inside
        file = folder / separator.join(map(str, index))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(block.view(-1).view(torch.uint8).numpy().tobytes())


def save_zarr(folder: Path, model: Path, chunk_of, dtype=torch.float32, separator: str = ".") -> Path:
    """Write the model with its layers stacked as zarr, each array cut into chunks of `chunk_of(shape)`."""
    write_yaml(folder, model)
    source = open_source(model)
    layers: dict[str, list[Tensor]] = {}
    for name in source.specs:
        parts = name.split(".")
        key = ".".join(parts[:2] + parts[3:]) if name.startswith("decoder.layers.") else name
        layers.setdefault(key, []).append(source.read(name).to(dtype))
    for key, tensors in layers.items():
        tensor = torch.stack(tensors) if len(tensors) > 1 else tensors[0]
        write_zarr(folder / "model_weights" / f"model.{key}", tensor, chunk_of(tuple(tensor.shape)), separator)
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_zarr_cut_by_layer_and_tensor_rank_makes_the_model(tmp_path, name):
    original = save_model(tmp_path / "hf", name)
    zarr = save_zarr(tmp_path / "nemo", original, lambda shape: (1, *shape[1:]) if shape[0] == 4 else shape)
    assert same_bits(tensors_of(converted(zarr, tmp_path / "back")), tensors_of(original))


@pytest.mark.parametrize(("dtype", "separator"), [(torch.float32, "."), (torch.float16, "/"), (torch.bfloat16, ".")])
def test_zarr_whose_chunks_stick_out_makes_the_model(tmp_path, dtype, separator):
    original = save_model(tmp_path / "hf")
    chunks = lambda shape: tuple(-(-length // parts) + 1 for length, parts in zip(shape, (2, 3, 1), strict=False))  # noqa: E731
    zarr = save_zarr(tmp_path / "nemo", original, chunks, dtype, separator)
    expected = {name: tensor.to(dtype) for name, tensor in tensors_of(original).items()}
    assert same_bits(tensors_of(converted(zarr, tmp_path / "back")), expected)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"compressor": {"id": "blosc"}}, "norm.weight is compressed zarr, which is not read"),
        ({"filters": [{"id": "delta"}]}, "norm.weight is compressed zarr"),
        ({"dtype": "<i4"}, "norm.weight is zarr of dtype '<i4'; supported: <f4"),
        ({"dtype": ["<f4"]}, "norm.weight is zarr of dtype"),
        ({"order": "F"}, "norm.weight is zarr of dtype '<f4'; supported: .* in C order"),
        ({"shape": [-64]}, r"shape is \[-64\], not a row of sizes"),
        ({"chunks": [0]}, r"chunks is \[0\], not a row of sizes"),
        ({"chunks": [8, 8]}, r"chunks \(8, 8\) do not fit shape \(64,\)"),
        ({"shape": [10**18]}, "norm.weight lacks some of its"),
        ({"chunks": [32]}, r"norm.weight/0 is missing, or has not the 128 bytes of a chunk"),
        ("[", r"\.zarray is not JSON"),
    ],
)
def test_zarr_that_cannot_be_read_is_told(tmp_path, change, match):
    original = save_model(tmp_path / "hf")
    zarr = save_zarr(tmp_path / "nemo", original, lambda shape: shape)
    file = zarr / "model_weights/model.decoder.final_layernorm.weight/.zarray"
    file.write_text(change if isinstance(change, str) else json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=match):
        open_source(zarr)
