"""Which iteration a folder of Megatron's checkpoints stands for, and what is refused by name."""

import json
from pathlib import Path

import pytest

from nemo_simplerl.config.forms.iterations import TRACKER, check_torch_dist, iteration_of


def made(folder: Path, *names: str, tracker: str | None = None) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / ".metadata").touch()
    if tracker is not None:
        (folder / TRACKER).write_text(tracker)
    return folder


@pytest.mark.parametrize(
    ("names", "tracker", "taken"),
    [
        (["iter_0000000"], None, "iter_0000000"),
        (["iter_0000000"], "0", "iter_0000000"),
        (["iter_0000100", "iter_0000200"], "200\n", "iter_0000200"),
        (["release"], "release", "release"),
        (["iter_0000005"], "5", "iter_0000005"),
    ],
)
def test_the_last_iteration_is_taken(tmp_path, names, tracker, taken):
    folder = made(tmp_path, *names, tracker=tracker)
    assert iteration_of(folder) == iteration_of(folder / taken) == folder / taken


@pytest.mark.parametrize(
    ("names", "tracker", "match"),
    [
        (
            ["iter_0000100", "iter_0000200"],
            None,
            "lacks latest_checkpointed_iteration.txt and holds iter_0000100",
        ),
        (
            ["iter_0000100", "iter_0000200"],
            "100",
            "names iter_0000100, and iter_0000200 is there too: .* give",
        ),
        (["release", "iter_0000200"], "release", "names release, and iter_0000200 is there too"),
        (["iter_0000100"], "200", "incomplete: latest_checkpointed_iteration.txt names '200', and no folder of that"),
        (["iter_0000100"], "x", "names 'x', and no folder"),
        ([], None, "holds no iteration of a checkpoint"),
    ],
)
def test_a_folder_in_which_the_last_iteration_cannot_be_told_is_refused(tmp_path, names, tracker, match):
    with pytest.raises(ValueError, match=match):
        iteration_of(made(tmp_path / "x", *names, tracker=tracker))


@pytest.mark.parametrize(
    ("files", "match"),
    [
        (
            {"mp_rank_00/model_optim_rng.pt": ""},
            r"of ckpt-format torch \(mp_rank_00\), .* --ckpt-convert-format",
        ),
        (
            {"metadata.json": '{"sharded_backend": "torch_dist"}'},
            r"lacks \.metadata: the checkpoint is incomplete",
        ),
        ({"run_config.yaml": "", "hf/config.json": ""}, "lacks .metadata: .* in Hugging Face's form: give .*hf"),
        ({".metadata": ""}, "lacks metadata.json: it is incomplete, or of ckpt-format torch_dcp or fsdp_dtensor"),
        (
            {".metadata": "", "metadata.json": json.dumps({"sharded_backend": "zarr"})},
            "of kind 'zarr', which is",
        ),
        ({".metadata": "", "metadata.json": "[1]"}, "metadata.json holds no settings"),
    ],
)
def test_other_kinds_of_checkpoints_are_refused_by_name(tmp_path, files, match):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=match):
        check_torch_dist(tmp_path)
