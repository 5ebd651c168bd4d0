"""A run starts from any form of a model and ends in the forms asked for."""

from pathlib import Path

import pytest

from nemo_simplerl.model.conversion.convert import Target, convert
from nemo_simplerl.model.conversion.verify import different_tensors
from nemo_simplerl.model.source import open_source
from support.ranks import run_ranks
from support.small_run import SMALL, books, train_here


def _train(run_dir: Path, *overrides: str, world_size: int = 1) -> None:
    run_ranks(train_here, world_size, [*SMALL, f"trainer.run_dir={run_dir}", "trainer.max_steps=1", *overrides])


def _same(one: Path, other: Path, *, critic: bool = False) -> bool:
    sources = (open_source(one, critic=critic), open_source(other, critic=critic))
    return different_tensors(*sources, None) == []


@pytest.mark.slow
def test_a_run_starts_alike_from_a_folder_an_archive_and_a_checkpoint(tmp_path, data):
    first = tmp_path / "first"
    _train(first, *data, "trainer.export=[hf,nemo]", "actor.tensor_model_parallel_size=2", world_size=2)
    checkpoint = first / "checkpoints/step_000001"
    for role, is_critic in (("actor", False), ("critic", True)):
        for form in (f"hf/{role}", f"nemo/{role}.nemo"):
            assert _same(checkpoint / role, first / form, critic=is_critic)
    forms = {
        "folder": (first / "hf/actor", first / "hf/critic"),
        "archive": (first / "nemo/actor.nemo", first / "nemo/critic.nemo"),
        "checkpoint": (checkpoint, checkpoint),
    }
    for name, (actor, critic) in forms.items():
        paths = [f"model.path={actor}", f"critic.path={critic}", "model.create=null"]
        _train(tmp_path / name, *data, *paths)
    expected = books(tmp_path / "folder")
    assert books(tmp_path / "archive") == expected
    assert books(tmp_path / "checkpoint") == expected


@pytest.mark.slow
def test_a_checkpoint_of_weights_alone_can_be_started_from_and_not_resumed(tmp_path, data):
    first = tmp_path / "first"
    _train(first, *data)
    made = tmp_path / "next/checkpoints/step_000000"
    convert(open_source(first / "hf/actor"), Target("checkpoint", made), lambda done, total: None)
    _train(tmp_path / "other", *data, f"model.path={made}", "model.create=null")
    with pytest.raises(AssertionError, match="holds weights alone, nothing to resume"):
        _train(tmp_path / "next", *data, f"model.path={first / 'hf/actor'}", "model.create=null")


def test_a_model_without_a_tokenizer_is_refused_with_what_to_set(tmp_path, data):
    _train(tmp_path / "first", *data)
    folder = tmp_path / "first/hf/actor"
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(AssertionError, match=r"holds no tokenizer; set model\.tokenizer"):
        _train(tmp_path / "next", *data, f"model.path={folder}", "model.create=null")
