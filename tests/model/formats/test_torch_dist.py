"""torch.save files and distributed checkpoints read without running what their pickles ask for."""

import enum
import io
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from nemo_simplerl.model.conversion.nemo_writer import folder_writer
from nemo_simplerl.model.formats.archive import Extent, list_files
from nemo_simplerl.model.formats.torch_dist import RankFile, read_index, write_index
from nemo_simplerl.model.formats.torch_zip import StoredTensor, stored_objects


def stored(folder: Path, value: object):
    torch.save(value, folder / "x.pt")
    return stored_objects(Extent(folder / "x.pt", 0, (folder / "x.pt").stat().st_size), "x.pt")


def test_the_common_state_may_be_a_file_or_as_megatron_0_19_writes_it_an_object_among_the_tensors(tmp_path):
    found = {}
    for kind in ("file", "object"):
        create = folder_writer(tmp_path / kind)
        with create("__0_0.distcp") as stream:
            file = RankFile(stream, "__0_0.distcp")
            file.add("a.weight", torch.arange(6.0).view(2, 3), (2, 3), (0, 0))
            if kind == "object":
                file.add_object("common_state/shard_0_1", [{"args": 1}])
        write_index(create, file.written)
        if kind == "object":
            (tmp_path / kind / "common.pt").unlink()
        found[kind] = {key: tensor.read() for key, tensor in read_index(list_files(tmp_path / kind)).items()}
    assert found["file"].keys() == found["object"].keys() == {"a.weight"}
    assert torch.equal(found["file"]["a.weight"], found["object"]["a.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_a_tensor_is_found_with_its_shape_dtype_and_bytes(tmp_path, dtype):
    tensor = torch.arange(24).reshape(2, 3, 4).to(dtype)
    found = stored(tmp_path, {"a": tensor, "b": [torch.nn.Parameter(tensor.float())]})
    assert torch.equal(found["a"].read(), tensor) and found["a"].dtype == dtype
    assert torch.equal(found["b"][0].read(), tensor.float())
    part = torch.empty(4, dtype=dtype)
    found["a"].read_into(part, first=8)
    assert torch.equal(part, tensor.flatten()[8:12])


def test_views_are_read_as_what_they_show(tmp_path):
    base = torch.arange(60.0).reshape(6, 10)
    views = {"rows": base[2:4], "columns": base[:, 3:5], "turned": base.T, "scalar": base[1, 2], "none": base[:0]}
    found = stored(tmp_path, views)
    for name, view in views.items():
        assert torch.equal(found[name].read(), view), name
    part = torch.empty(2, 2)
    found["columns"].read_into(part, first=4)
    assert torch.equal(part, base[2:4, 3:5])


def test_what_modules_and_transformer_engine_save_beside_tensors_is_passed_over(tmp_path):
    state = torch.nn.Linear(3, 2).state_dict()
    state["layer._extra_state"] = io.BytesIO(b"\0\xff scales")
    param = torch.nn.Parameter(torch.ones(2))
    param.partition_dim = 0  # Megatron's attributes make torch pickle them too
    found = stored(tmp_path, {"state_dict": state, "param": param, "step": 7})
    assert isinstance(found["state_dict"], OrderedDict) and hasattr(state, "_metadata")
    assert torch.equal(found["state_dict"]["weight"].read(), state["weight"])
    assert not isinstance(found["state_dict"]["layer._extra_state"], StoredTensor)
    assert torch.equal(found["param"].read(), torch.ones(2)) and found["step"] == 7


def test_a_tensor_of_more_dimensions_than_any_has_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a tensor has 17 dimensions"):
        stored(tmp_path, torch.zeros([1] * 17))


def test_a_tensor_that_repeats_what_is_stored_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a tensor of shape \(1000, 1000\) repeats its 1 stored elements"):
        stored(tmp_path, torch.zeros(1).expand(1000, 1000))


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (eval, r"asks for __builtin__\.eval when it is loaded"),
        (Path("x"), "asks for pathlib.PosixPath when it is loaded"),
        (torch.nn.Linear(1, 1), "asks for torch.nn.modules.linear.Linear"),
        (OrderedDict([(((), ()), 1)]), "is damaged .*a key is a tuple"),
    ],
)
def test_other_objects_than_tensors_are_refused_by_name(tmp_path, value, match):
    with pytest.raises(ValueError, match=match):
        stored(tmp_path, value)


def _nested_key() -> bytes:
    """A pickled dict whose key is a pair of pairs of ... 60 deep: short to write, impossible to hash in any time."""
    return b"\x80\x02})" + b"q\1h\1\x86" * 60 + b"K\1s."


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "damaged"),
        (b"\x80\x02.", "damaged"),
        (b"cos\nsystem\n(S'true'\ntR.", "asks for os.system"),
        (b"\x80\x02c__builtin__\nexec\n.", "asks for __builtin__.exec"),
        (b"\x80\x02Nr\xff\xff\xff\x7f0N.", "damaged"),  # the reader in C would take 32 GB for its memo
        (b"\x80\x02\x8e\xff\xff\xff\xff\xff\xff\xff\x7fx.", "damaged"),  # bytes by the exabyte
        (_nested_key(), "a key is a tuple"),
        (b"\x80\x02]" + b"q\1h\1\x86" * 60 + b".", "damaged"),
        (pickle.dumps({1}), "damaged"),
        (pickle.dumps({"state_dict_metadata": {}}), "damaged"),
    ],
)
def test_a_hostile_index_is_refused_at_once(tmp_path, content, match):
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(ValueError, match=match):
        read_index(list_files(tmp_path))


def write_chunks(folder: Path, shape: tuple[int, ...], chunks: list[tuple[tuple[int, ...], torch.Tensor]]) -> None:
    create = folder_writer(folder)
    with create("__0_0.distcp") as stream:
        file = RankFile(stream, "__0_0.distcp")
        for offsets, tensor in chunks:
            file.add("w", tensor, shape, offsets)
        file.add_object("state", [None])
    write_index(create, file.written)


class _OldEnums(pickle.Pickler):
    """Pickles the members of enumerations as Python 3.11.0 to 3.11.3 do."""

    def reducer_override(self, value):
        return (getattr, (type(value), value.name)) if isinstance(value, enum.Enum) else NotImplemented


def test_an_index_of_an_early_python_3_11_is_read(tmp_path):
    write_chunks(tmp_path, (2, 3), [((0, 0), torch.arange(6.0).reshape(2, 3))])
    with open(tmp_path / ".metadata", "rb") as file:
        index = pickle.load(file)
    with open(tmp_path / ".metadata", "wb") as file:
        _OldEnums(file, protocol=4).dump(index)
    assert b"getattr" in (tmp_path / ".metadata").read_bytes()
    assert torch.equal(read_index(list_files(tmp_path))["w"].read(), torch.arange(6.0).reshape(2, 3))


def test_blocks_of_any_cut_make_the_tensor_and_each_of_its_rows(tmp_path):
    full = torch.arange(5 * 6 * 4.0).reshape(5, 6, 4)
    cuts = [
        (slice(0, 2), slice(0, 6), slice(0, 1)),
        (slice(0, 2), slice(0, 6), slice(1, 4)),
        (slice(2, 5), slice(0, 5), slice(0, 4)),
        (slice(2, 4), slice(5, 6), slice(0, 4)),
        (slice(4, 5), slice(5, 6), slice(0, 4)),
    ]
    write_chunks(tmp_path, (5, 6, 4), [(tuple(part.start for part in cut), full[cut]) for cut in cuts[::-1]])
    index = read_index(list_files(tmp_path))
    assert index.keys() == {"w"}
    assert torch.equal(index["w"].read(), full)
    for row in range(5):
        assert torch.equal(index["w"].read(row), full[row])


@pytest.mark.parametrize(
    ("chunks", "match"),
    [
        ([((0, 0), (2, 3))], "the checkpoint holds 6 of this tensor's 12 elements"),
        (
            [((0, 0), (2, 3)), ((0, 0), (2, 3))],
            r"parts of w overlap at \(0, 0\)",
        ),  # as many elements as there should be
        ([((0, 0), (3, 3)), ((2, 0), (1, 3))], r"parts of w overlap at \(2, 0\)"),
        ([((0, 0), (2, 3)), ((3, 0), (2, 3))], r"a part of w lies outside its shape \(4, 3\)"),
        ([((0, 0), (2, 3)), ((2, 1), (2, 3))], r"a part of w lies outside its shape \(4, 3\)"),
    ],
)
def test_blocks_that_do_not_tile_the_tensor_are_refused(tmp_path, chunks, match):
    write_chunks(tmp_path, (4, 3), [(offsets, torch.zeros(shape)) for offsets, shape in chunks])
    with pytest.raises(ValueError, match=match):
        index = pickle.loads((tmp_path / ".metadata").read_bytes())
        assert len(index.state_dict_metadata["w"].chunks) == len(chunks)
        read_index(list_files(tmp_path))


def test_a_record_that_is_not_what_the_index_says_is_refused(tmp_path):
    write_chunks(tmp_path, (4, 3), [((0, 0), torch.zeros(4, 3))])
    index = read_index(list_files(tmp_path))
    torch.save(torch.zeros(6, 2), tmp_path / "other.pt")
    (tmp_path / "__0_0.distcp").write_bytes((tmp_path / "other.pt").read_bytes() + bytes(4000))
    with pytest.raises(ValueError, match=r"__0_0.distcp"):
        index["w"].read()
