"""safetensors files, read and written by us and by the library."""

import json
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from nemo_simplerl.model.formats.archive import Extent, list_files
from nemo_simplerl.model.formats.safetensors_io import INDEX, Spec, read_folder, read_header, write_folder
from support.forms import same_bits

TENSORS = {
    "b": torch.randn(3, 5),
    "a": torch.randn(7).bfloat16(),
    "none": torch.empty(0, 4),
    "scalar": torch.tensor(3.0).half(),
    "é": torch.arange(6).reshape(2, 3),
}


def specs_of(tensors):
    return [Spec(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]


def read(file):
    found = read_header(Extent(file, 0, file.stat().st_size), file)
    return {name: tensor.read() for name, tensor in found.items()}


def test_the_library_reads_what_we_write_and_we_what_it_writes(tmp_path):
    write_folder(tmp_path, specs_of(TENSORS), TENSORS.items(), 10**9)
    assert same_bits(load_file(tmp_path / "model.safetensors"), TENSORS)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    content = (tmp_path / "model.safetensors").read_bytes()
    assert struct.unpack("<Q", content[:8])[0] % 8 == 0  # tensors begin where they can be mapped
    save_file(TENSORS, tmp_path / "theirs.safetensors")
    assert same_bits(read(tmp_path / "theirs.safetensors"), TENSORS)


def test_views_are_written_as_what_they_show(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    views = {"turned": base.T, "columns": base[:, 1:3]}
    write_folder(tmp_path, specs_of(views), views.items(), 10**9)
    assert same_bits(load_file(tmp_path / "model.safetensors"), {k: v.contiguous() for k, v in views.items()})


def test_a_shard_ends_before_the_tensor_that_would_be_too_much(tmp_path):
    tensors = {name: torch.zeros(size) for name, size in (("a", 10), ("b", 10), ("c", 30), ("d", 1), ("e", 19))}
    write_folder(tmp_path, specs_of(tensors), tensors.items(), 80)
    homes = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    assert [homes[name][6:11] for name in "abcde"] == ["00001", "00001", "00002", "00003", "00003"]
    assert read_folder(list_files(tmp_path), tmp_path).keys() == tensors.keys()


def test_the_file_that_transformers_would_load_is_read(tmp_path):
    single = {"w": torch.ones(2)}
    for name, value in (("model", 1), ("consolidated", 2), ("model-00001-of-00001", 3)):
        save_file({"w": torch.full((2,), value)}, tmp_path / f"{name}.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"w": "model-00001-of-00001.safetensors"}}))
    assert torch.equal(read_folder(list_files(tmp_path), tmp_path)["w"].read(), single["w"].long())
    (tmp_path / "model.safetensors").unlink()
    assert read_folder(list_files(tmp_path), tmp_path)["w"].read()[0] == 3
    (tmp_path / INDEX).unlink()
    with pytest.raises(ValueError, match=r"model-00001-of-00001.safetensors: w is in another file too"):
        read_folder(list_files(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("index", "match"),
    [
        ("{", "index.json is damaged"),
        ("[]", "index.json is damaged"),
        ('{"weight_map": ["a"]}', "index.json is damaged"),
        ('{"weight_map": {"w": "../x.safetensors"}}', r"are missing: \.\./x\.safetensors"),
        (
            '{"weight_map": {"w": "x.safetensors", "v": "x.safetensors"}}',
            "names v and 0 more tensors that no",
        ),
    ],
)
def test_an_index_that_cannot_be_followed_is_told(tmp_path, index, match):
    save_file({"w": torch.ones(2)}, tmp_path / "x.safetensors")
    (tmp_path / INDEX).write_text(index)
    with pytest.raises(ValueError, match=match):
        read_folder(list_files(tmp_path), tmp_path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_the_library_refuses_we_refuse(tmp_path, data):
    save_file({"w": torch.ones(2, 3), "v": torch.zeros(4)}, tmp_path / "x.safetensors")
    content = bytearray((tmp_path / "x.safetensors").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 41))] = data.draw(
            st.sampled_from(b'0123456789-{}[]",:.eFI \0\xff')
        )
    (tmp_path / "x.safetensors").write_bytes(content)
    try:
        found = read(tmp_path / "x.safetensors")
    except ValueError:
        return
    try:
        assert load_file(tmp_path / "x.safetensors").keys() == found.keys()
    except SafetensorError as error:
        # The library also minds how the header is written: keys twice or unknown, floats, escapes.
        assert "InvalidHeader" in str(error), (content, error)
