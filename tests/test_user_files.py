"""Digests of what a user's files hold."""

import os

import pytest

from nemo_simplerl.user_files import content_digest

MIB = 1 << 20


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text('{"rope_theta": 10000}')
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def test_a_digest_is_of_contents_and_names_and_not_of_times_notes_and_hidden_files(model):
    before = content_digest(model)
    (model / "README.md").write_text("changed")
    (model / ".cache").mkdir()
    (model / ".cache" / "model.safetensors").write_bytes(b"x")
    os.utime(model / "config.json", (0, 0))
    assert content_digest(model) == before


@pytest.mark.parametrize("change", ["content", "size", "name"])
def test_another_content_size_or_name_is_another_digest(model, change):
    before, file = content_digest(model), model / "model.safetensors"
    {
        "content": lambda: file.write_bytes(b"Weights"),
        "size": lambda: file.write_bytes(b"weights\0"),
        "name": lambda: file.rename(model / "other.safetensors"),
    }[change]()
    assert content_digest(model) != before


@pytest.mark.parametrize(
    ("name", "place"),
    [("large.nemo", 0), ("large.nemo", 4 * MIB + 100), ("large.nemo", 20 * MIB - 1), ("large.jsonl", 5 * MIB)],
)
def test_of_large_weights_blocks_from_start_to_end_count_and_of_other_files_every_byte(tmp_path, name, place):
    file = tmp_path / name
    with open(file, "wb") as stream:
        stream.truncate(20 * MIB)
    before = content_digest(file)
    with open(file, "r+b") as stream:
        stream.seek(place)
        stream.write(b"x")
    assert content_digest(file) != before


def test_of_a_folder_only_what_belongs_to_a_form_of_model_counts_and_large_files_are_sampled(model):
    before = content_digest(model)
    for name in ("eval/results.json", "original/consolidated.00.pth", "onnx/model.onnx"):
        (model / name).parent.mkdir()
        (model / name).write_bytes(b"x")
    assert content_digest(model) == before
    for name in ("context/model.yaml", "iter_0000010/common.pt", "actor/model_weights/metadata.json"):
        (model / name).parent.mkdir(parents=True)
        (model / name).write_bytes(b"x")
        before, now = content_digest(model), before
        assert before != now
    with open(model / "model.gguf", "wb") as stream:
        stream.truncate(20 * MIB)
    before = content_digest(model)
    with open(model / "model.gguf", "r+b") as stream:
        stream.seek(MIB)  # between the blocks
        stream.write(b"x")
    assert content_digest(model) == before
