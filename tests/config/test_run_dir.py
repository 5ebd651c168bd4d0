"""A run directory is continued by its own settings, however it is spelled, wherever it lies, whoever wrote it."""

import os
from pathlib import Path

import pytest

from nemo_simplerl.config.errors import ConfigErrors
from nemo_simplerl.config.load import compose, to_yaml
from nemo_simplerl.config.run_dir import check_run_dir, read_begun, weight_affecting_settings
from nemo_simplerl.config.schema import Config


def _config(run_dir: object, *overrides: str) -> Config:
    return compose(["experiment=quickstart", f"trainer.run_dir='{run_dir}'", *overrides])


@pytest.fixture
def begun(tmp_path) -> Path:
    """The run directory of a quickstart, all of whose files lie in it."""
    run_dir = tmp_path / "runs é/a b(1)=x"
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(to_yaml(_config(run_dir)))
    return run_dir


def _edit(run_dir: Path, old: str, new: str) -> None:
    file = run_dir / "config.yaml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


@pytest.mark.parametrize("way", ["slash", "dots", "relative", "link", "home", "moved", "moved away from a link"])
def test_however_it_is_spelled_and_wherever_it_lies_it_is_the_same_run(begun, tmp_path, monkeypatch, way):
    before = weight_affecting_settings(_config(begun))
    (tmp_path / "link").symlink_to(begun)
    place: object = begun
    if way == "slash":
        place = f"{begun}/"
    elif way == "dots":
        place = f"{begun.parent}/./../{begun.parent.name}/{begun.name}"
    elif way == "relative":
        monkeypatch.chdir(begun.parent)
        place = begun.name
    elif way == "link":
        place = tmp_path / "link"
    elif way == "home":
        monkeypatch.setenv("HOME", str(begun.parent))
        place = f"~/{begun.name}"
    else:
        if way != "moved":
            (begun / "config.yaml").write_text(to_yaml(_config(tmp_path / "link")))
        place = begun.rename(tmp_path / "moved")
    config = _config(place)
    if way == "home":  # the file is looked for where the configuration's loader has put it
        monkeypatch.chdir(begun.parent)
        os.symlink(begun.parent, begun.parent / "~")
    check_run_dir(config)
    assert weight_affecting_settings(config) == before


def test_other_data_or_another_model_outside_is_still_another_run(begun, tmp_path):
    with pytest.raises(ConfigErrors, match=r"model.path=/other, but the run in .* was begun with .*/base"):
        check_run_dir(_config(begun, "model.path=/other"))
    relative = os.path.relpath(begun / "data/train.jsonl")
    check_run_dir(_config(begun, f"data.train_path='{relative}'"))


def test_keys_that_an_older_version_had_not_are_taken_as_conf_has_them_and_told(begun):
    _edit(begun, "  offload_adam_states: false\n", "")
    _edit(begun, "  old_logprobs: trainer\n", "")
    _edit(begun, "  cuda_graphs: true\n", "")
    _edit(begun, "  max_bad_updates: 10\n", "  save_evry: 7\n")
    check_run_dir(_config(begun))
    added, gone = read_begun(begun).notes
    assert "rollout.cuda_graphs=false" in added, "as that version decoded, not as conf/ has it now"
    assert "config.yaml is of a version without these keys" in added
    assert "actor.offload_adam_states=false" in added and "algo.old_logprobs=trainer" in added
    assert "trainer.save_evry=7 is no key of this version and is not compared. Did you mean" in gone
    _edit(begun, "  gamma: 1.0\n", "")
    with pytest.raises(ConfigErrors, match=r"algo.gamma=0.5, but .* begun with 1.0: .*config.yaml is of a version"):
        check_run_dir(_config(begun, "algo.gamma=0.5"))


def test_a_section_that_is_null_or_new_is_no_lack_of_its_keys(begun):
    config = _config(begun, "model.create=null")
    (begun / "config.yaml").write_text(to_yaml(config))
    assert read_begun(begun).notes == []
    check_run_dir(config)
    with pytest.raises(ConfigErrors, match="model.create.hidden_size=128"):
        check_run_dir(_config(begun))
    text = to_yaml(config)
    start, end = text.index("  wandb:\n"), text.index("  distributed_timeout_s")
    (begun / "config.yaml").write_text(text[:start] + text[end:])
    check_run_dir(config)
    (note,) = read_begun(begun).notes
    assert "trainer.wandb.enabled=false" in note


@pytest.mark.parametrize("content", [b"a: [", b"", b"\xff\xfe\x00", b"- 1\n", b"text"])
def test_a_file_that_cannot_be_read_is_named(begun, content):
    (begun / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigErrors, match=r"config.yaml (cannot be read|holds no settings).*remove it") as raised:
        check_run_dir(_config(begun))
    assert len(raised.value.problems) == 1 and "\n" not in raised.value.problems[0]


def test_a_folder_in_its_place_is_named_too(tmp_path):
    (tmp_path / "config.yaml").mkdir()
    with pytest.raises(ConfigErrors, match=r"config.yaml cannot be read \(.*Is a directory"):
        read_begun(tmp_path)
