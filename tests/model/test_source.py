"""The table of readers: which form a path has, and the error where it has none."""

import pytest

from nemo_simplerl.model.source import kind_of


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["config.json"], "hf"),
        (["model_config.yaml"], "nemo"),
        (["config.json", "model_config.yaml"], "nemo"),
        (["manifest.json"], "checkpoint"),
    ],
)
def test_a_folder_is_recognised_by_its_files(tmp_path, files, kind):
    for name in files:
        (tmp_path / name).touch()
    assert kind_of(tmp_path) == kind


def test_any_file_is_taken_for_a_nemo(tmp_path):
    (tmp_path / "model.bin").touch()
    assert kind_of(tmp_path / "model.bin") == "nemo"


def test_a_path_that_no_reader_recognises_is_refused_with_every_form(tmp_path):
    with pytest.raises(ValueError) as error:
        kind_of(tmp_path)
    assert str(error.value) == (
        f"{tmp_path} is no model: neither a .nemo file or folder (model_config.yaml), nor a Hugging Face folder "
        "(config.json), nor a training checkpoint (manifest.json)."
    )
