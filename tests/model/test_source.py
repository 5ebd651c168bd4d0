"""The table of readers: which form a path has, and the error where it has none or several."""

import pytest

from nemo_simplerl.model.source import kind_of


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["config.json"], "hf"),
        (["model_config.yaml"], "nemo"),
        (["config.json", "model_config.yaml"], "nemo"),
        (["manifest.json"], "checkpoint"),
        (["context/io.json"], "nemo2"),
        (["context/model.yaml", "weights/.metadata"], "nemo2"),
        (["weights/__0_0.distcp"], "nemo2"),  # half of one
        (["io.json", ".metadata"], "nemo2"),  # as the first releases wrote it
        (["iter_0000000/run_config.yaml", "iter_0000000/.metadata", "latest_checkpointed_iteration.txt"], "bridge"),
        (["run_config.yaml", ".metadata"], "bridge"),
        (["train_state.pt"], "bridge"),
        (["iter_0000100/.metadata", "iter_0000100/common.pt"], "megatron"),
        (["release/.metadata", "latest_checkpointed_iteration.txt"], "megatron"),
        (["latest_checkpointed_iteration.txt"], "megatron"),
        (["__0_0.distcp"], "megatron"),
        (["mp_rank_00/model_optim_rng.pt"], "megatron"),
    ],
)
def test_a_folder_is_recognised_by_its_files(tmp_path, files, kind):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
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
        "(config.json), nor a training checkpoint (manifest.json), nor a GGUF file, nor a NeMo 2 folder (context/, "
        "weights/), nor a Megatron-Bridge checkpoint (run_config.yaml), nor a Megatron-LM checkpoint "
        "(iter_N or release, torch_dist)."
    )


def test_a_folder_that_could_be_two_forms_is_refused_with_both(tmp_path):
    for name in ("context/io.json", "config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"could be a Hugging Face folder .* and a NeMo 2 folder .*; move what"):
        kind_of(tmp_path)
