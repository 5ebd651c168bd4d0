"""A run starts from any form of a model and ends in the forms asked for."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_simplerl.config.families import check_hf_config
from nemo_simplerl.config.load import compose
from nemo_simplerl.model.conversion.convert import Target, convert
from nemo_simplerl.model.conversion.verify import different_tensors
from nemo_simplerl.model.source import open_source
from nemo_simplerl.trainer.setup.prepare import create_model
from support.forms import companions, members, with_companions
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


@pytest.fixture(scope="module")
def two_models(tmp_path_factory, data) -> tuple[Path, Path]:
    """A model with every further file, and a smaller one of the same tokenizer, other rope_theta and tying."""
    folder = tmp_path_factory.mktemp("models")
    config = compose([*SMALL, *data])
    create, texts = config.model.create, ["Add 12 to 7, then halve it."] * 20
    smaller = replace(
        create, hidden_size=16, num_layers=1, share_embeddings_and_output_weights=not _is_tied(create), vocab_size=520
    )
    create_model(folder / "actor", create, texts, seed=1)
    create_model(folder / "critic", smaller, texts, seed=2)
    file = folder / "critic/config.json"
    hf = check_hf_config(json.loads(file.read_text()), file) | {"rope_theta": 500.0, "rms_norm_eps": 1e-5}
    file.write_text(json.dumps(hf))
    return with_companions(folder / "actor"), folder / "critic"


def _is_tied(create) -> bool:
    return create.share_embeddings_and_output_weights


@pytest.mark.slow
def test_a_critic_of_another_model_keeps_its_config_and_every_form_its_files(tmp_path, data, two_models):
    actor, critic = two_models
    run_dir = tmp_path / "run"
    started = [*data, f"model.path={actor}", f"critic.path={critic}", "model.create=null", "trainer.export=[hf,nemo]"]
    warm = [f"sft.output={run_dir}/sft", "sft.epochs=1", "sft.eval_every=0", "trainer.max_steps=2"]
    paths = [f"trainer.run_dir={run_dir}", *started, *warm]
    run_ranks(train_here, 1, [*SMALL, *paths, "trainer.stop_after_step=1"])
    run_ranks(train_here, 1, [*SMALL, *paths])
    expected = companions(actor)
    checkpoint = run_dir / "checkpoints/step_000002"
    folders = [run_dir / name for name in ("model", "sft", "hf/actor", "hf/critic")]
    unpacked = [checkpoint / role / "hf" for role in ("actor", "critic")]
    for folder in (*folders, *unpacked):
        assert companions(folder) == expected, folder
    packed = members(run_dir / "nemo/actor.nemo")
    assert {name: packed[f"hf/{name}"] for name in expected} == expected
    forms = [(checkpoint, True), (run_dir / "hf/critic", False), (run_dir / "nemo/critic.nemo", False)]
    hf = open_source(critic).hf
    keys = ("hidden_size", "num_hidden_layers", "rope_theta", "rms_norm_eps", "tie_word_embeddings", "vocab_size")
    for path, of_checkpoint in forms:
        source = open_source(path, critic=of_checkpoint)
        assert source.is_critic and {key: source.hf[key] for key in keys} == {key: hf[key] for key in keys}
    assert open_source(checkpoint).hf["hidden_size"] == 32


def test_a_model_without_a_tokenizer_is_refused_with_what_to_set(tmp_path, data):
    _train(tmp_path / "first", *data)
    folder = tmp_path / "first/hf/actor"
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(AssertionError, match=r"holds no tokenizer; set model\.tokenizer"):
        _train(tmp_path / "next", *data, f"model.path={folder}", "model.create=null")
