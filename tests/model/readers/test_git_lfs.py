"""A model that was cloned without git-lfs: any of its files may be a pointer in place of the file."""

from types import SimpleNamespace

import pytest

from nemo_simplerl.config.shape import read_shape
from nemo_simplerl.data.tokenizer import load_tokenizer
from nemo_simplerl.model.formats.safetensors_io import INDEX, read_folder
from nemo_simplerl.model.readers.small_files import small_files, top_files
from nemo_simplerl.model.source import open_source

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{0:064}\nsize 3421816\n"
CALLS = {
    "model.safetensors": lambda path: read_folder(top_files(path.parent), path.parent),
    INDEX: lambda path: read_folder(top_files(path.parent), path.parent),
    "config.json": lambda path: open_source(path.parent),
    "tokenizer.json": lambda path: small_files(top_files(path.parent)),
    "tokenizer.model": lambda path: load_tokenizer(path.parent),
    "zero.nemo": open_source,
    "model_config.yaml": lambda path: open_source(path.parent),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_file_of_a_model_that_is_a_pointer_is_called_one(tmp_path, name):
    (tmp_path / name).write_text(POINTER)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match=f"{name} is a pointer of git-lfs.*git lfs pull"):
        CALLS[name](tmp_path / name)


@pytest.mark.parametrize("name", ["config.json", "zero.nemo", "model_config.yaml"])
def test_the_configuration_is_refused_before_anything_is_opened(tmp_path, name):
    (tmp_path / name).write_text(POINTER)
    path = tmp_path / name if name.endswith(".nemo") else tmp_path
    with pytest.raises(ValueError, match=f"model.path: .*{name}.* a pointer of git-lfs"):
        read_shape(SimpleNamespace(path=str(path), create=None))


def test_a_byte_order_mark_before_config_json_is_read(tmp_path):
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"model_type": "bloom"}')
    with pytest.raises(ValueError, match="model_type 'bloom'"):
        read_shape(SimpleNamespace(path=str(tmp_path), create=None))
