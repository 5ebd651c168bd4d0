"""What a run that goes on says where the contents of its inputs are others than when it began."""

import logging

import pytest

from nemo_simplerl.config.errors import ConfigErrors
from nemo_simplerl.config.load import compose
from nemo_simplerl.trainer.setup import inputs
from nemo_simplerl.trainer.setup.inputs import RECORD, build_prompts, check_inputs, compare_inputs, record_inputs


@pytest.fixture
def begun(tmp_path):
    """A folder with inputs, and the configuration of a run there that has begun, given what it may differ in."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"rope_theta": 10000}')
    (tmp_path / "train.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n')

    def config(*allowed: str):
        paths = [f"data.train_path={tmp_path}/train.jsonl", f"model.path={tmp_path}/base"]
        return compose([*paths, f"trainer.run_dir={tmp_path}/run", f"trainer.resume_allow=[{','.join(allowed)}]"])

    record_inputs(config(), {})
    return tmp_path, config


def test_inputs_as_they_were_are_fine(begun):
    _, config = begun
    assert compare_inputs(config()) == ([], [])


def test_every_input_that_was_replaced_under_its_name_is_told_at_once(begun):
    folder, config = begun
    (folder / "train.jsonl").write_text('{"question": "1+2?", "answer": "3"}\n')
    (folder / "base" / "config.json").write_text('{"rope_theta": 20000}')
    for _ in range(2):  # a refused start leaves the record as it was
        problems, _ = compare_inputs(config())
        assert [problem.partition("=")[0] for problem in problems] == ["data.train_path", "model.path"]
    assert "its contents have changed since the run in" in problems[0]
    assert "trainer.resume_allow=[data.train_path]" in problems[0]


def test_a_reward_function_that_has_changed_is_told_too(begun):
    folder, config = begun
    (folder / "reward.py").write_text("def f(completions): return [1]")
    function = f"reward.function={folder}/reward.py:f"

    def with_function(*allowed: str):
        run = [f"data.train_path={folder}/train.jsonl", f"model.path={folder}/base", f"trainer.run_dir={folder}/run"]
        return compose([*run, function, f"trainer.resume_allow=[{','.join(allowed)}]"])

    record_inputs(with_function(), {})
    assert compare_inputs(with_function()) == ([], [])
    (folder / "reward.py").write_text("def f(completions): return [2]")
    ((problem,), _) = compare_inputs(with_function())
    assert f"{function}: its contents have changed" in problem and "trainer.resume_allow=[reward.function]" in problem
    assert compare_inputs(with_function("reward"))[0] == []


def test_what_resume_allow_names_is_told_once_and_recorded(begun):
    folder, config = begun
    (folder / "train.jsonl").write_text('{"question": "1+2?", "answer": "3"}\n')
    problems, notes = compare_inputs(config("data"))
    assert problems == []
    assert [note.partition(":")[0] for note in notes] == ["data.train_path"]
    assert compare_inputs(config()) == ([], [])


def test_a_run_of_an_older_version_gets_its_record(begun):
    folder, config = begun
    (folder / "run" / RECORD).unlink()
    problems, (note,) = compare_inputs(config())
    assert problems == []
    assert "runs of older versions" in note
    assert compare_inputs(config()) == ([], [])


def test_what_is_replaced_while_the_warm_start_runs_is_no_input_of_the_run(begun):
    folder, config = begun
    held = inputs.inputs_held(config())
    (folder / "train.jsonl").write_text('{"question": "1+2?", "answer": "3"}\n')
    record_inputs(config(), held)
    ((problem,), _) = compare_inputs(config())
    assert problem.startswith("data.train_path=")


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_record_is_named(begun, content):
    folder, config = begun
    (folder / "run" / RECORD).write_text(content)
    (problem,), _ = compare_inputs(config())
    assert str(folder / "run" / RECORD) in problem


def _refuse(*args):
    raise OSError(5, "Input/output error", "base/config.json")


def test_a_full_disk_stops_no_run_and_a_record_that_stays_is_not_written_again(begun, monkeypatch, caplog):
    folder, config = begun
    monkeypatch.setattr(inputs, "atomic_write", _refuse)
    assert compare_inputs(config()) == ([], [])
    assert not caplog.records
    (folder / "run" / RECORD).unlink()
    with caplog.at_level(logging.WARNING):
        record_inputs(config(), {})
        assert compare_inputs(config())[0] == []
    assert [f"{RECORD} was NOT saved" in record.getMessage() for record in caplog.records] == [True, True]


def test_an_input_that_cannot_be_read_is_a_refusal_that_every_rank_hears(begun, monkeypatch):
    folder, config = begun
    monkeypatch.setattr(inputs, "content_digest", _refuse)
    for begin in (
        lambda config: record_inputs(config, {}),
        lambda config: check_inputs(config, folder / "checkpoints"),
    ):
        with pytest.raises(ConfigErrors, match="base/config.json"):
            begin(config())
    assert "base/config.json" in compare_inputs(config())[0][0]


class Tokenizer:
    def __call__(self, texts, add_special_tokens=True):
        return {"input_ids": [1] if isinstance(texts, str) else [[1] for _ in texts]}


def test_the_notice_of_a_file_says_what_became_of_its_golds(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"question": "1+1?", "answer": "#### 2"}\n{"question": "1+2?", "answer": NaN}\n')
    data = compose(["model.path=x", f"data.train_path={path}", "data.rows_without_gold=drop"]).data
    prompts, (note,) = build_prompts(data, Tokenizer(), str(path), max_tokens=9)
    assert [prompt.problem.answer for prompt in prompts] == ["2"]
    assert note.endswith(
        "1 gold answer taken out of a longer value (####: 1), 1 row left out that has no gold answer (it is nan: 1)"
    )
