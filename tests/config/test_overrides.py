"""Values as people type them: paths that Hydra's grammar has no words for, and what is told of wrong ones."""

import pytest

from nemo_simplerl.config.build import keys_of
from nemo_simplerl.config.errors import ConfigErrors
from nemo_simplerl.config.load import compose, load
from nemo_simplerl.config.overrides import PATH_KEYS
from nemo_simplerl.config.schema import Config

QUICKSTART = "experiment=quickstart"


@pytest.mark.parametrize(
    "path",
    [
        "/x/José/train.jsonl",
        "/x/日本/train.jsonl",
        "/x/train (1).jsonl",
        "/x/level=3.jsonl",
        "/x/a,b.jsonl",
        "/x/{a}/[b].jsonl",
        "[x].jsonl",
        "/x/O'Brien/train.jsonl",
        '/x/6"/train.jsonl',
        "/x/a&b;c!#d|e<f>.jsonl",
        "/x/$5/100%/a+b@c?*.jsonl",
        "/x/~old/train.jsonl",
        "C:\\x\\train.jsonl",
        "2026",
        "1e3",
        "true",
    ],
)
def test_a_path_is_taken_as_it_is_written(path):
    assert compose([QUICKSTART, f"data.train_path={path}"]).data.train_path == path


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("'/x/a b'", "/x/a b"),
        ('"/x/a,b"', "/x/a,b"),
        ("/x/a\\,b", "/x/a,b"),
        ("${trainer.run_dir}/José (1)", "runs/quickstart/José (1)"),
        ("null", None),
    ],
)
def test_quotes_escapes_references_and_null_mean_what_they_meant(written, read):
    assert compose([QUICKSTART, f"data.eval_path={written}"]).data.eval_path == read


@pytest.mark.parametrize("key", PATH_KEYS)
def test_a_home_is_expanded_in_every_path(monkeypatch, key):
    monkeypatch.setenv("HOME", "/home/josé")
    section, name = key.split(".")
    assert getattr(getattr(compose([QUICKSTART, f"{key}=~/a"]), section), name) == "/home/josé/a"


def test_every_key_that_holds_a_path_is_known_as_one():
    named = {
        key
        for key in keys_of(Config)
        if key.endswith(("path", "_dir", ".output", ".tokenizer", ".function", ".examples"))
    }
    assert named == set(PATH_KEYS)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.path=~/none", "(~/none was expanded to /home/josé/none.)"),
        ("model.path=/none/$HOME", "($HOME was not expanded: in single quotes write ${oc.env:HOME}.)"),
        ("algo.gamma=é", "key='\"...\"'"),
        ("rollout.stop=é", "key='\"...\"'"),
        ("data.trainpath=/x/é", "Did you mean data.train_path?"),
        ("data.eval_path=${oc.env:SIMPLERL_NO}/é", "SIMPLERL_NO"),
    ],
)
def test_what_cannot_be_used_is_told_with_what_to_write(monkeypatch, override, told):
    monkeypatch.setenv("HOME", "/home/josé")
    with pytest.raises(ConfigErrors) as caught:
        load([QUICKSTART, "model.create=null", override], world_size=1)
    assert any(told in problem for problem in caught.value.problems), caught.value.problems


def test_a_list_of_choices_is_checked_item_by_item():
    with pytest.raises(ConfigErrors, match="trainer.export=.*accepted: a list in which each item is hf, nemo"):
        compose([QUICKSTART, "trainer.export=[gguf]"])
