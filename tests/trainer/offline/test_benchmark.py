"""The folder of `simplerl eval`: what it was made with, and what may be added to it."""

from functools import partial
from types import SimpleNamespace

import pytest

from nemo_simplerl.config.load import compose
from nemo_simplerl.trainer.offline import benchmark
from nemo_simplerl.trainer.offline.benchmark import _earlier, fitted, of_reader, whole_chunks, write_settings


def test_benchmarks_may_be_added_to_a_folder_and_their_files_may_not_change(tmp_path):
    first, second = {"seed": 1, "amc23_problems_xxh3": "a"}, {"seed": 1, "math500_problems_xxh3": "b"}
    for settings in (first, second, first | second):
        write_settings(tmp_path, settings)
    with pytest.raises(ValueError, match="amc23_problems_xxh3 was 'a' and is 'c'.*Choose another --out"):
        write_settings(tmp_path, first | {"amc23_problems_xxh3": "c"})


def test_an_engine_is_sized_by_the_longest_prompt_that_is_there_and_not_by_the_models_context():
    rollout = compose(["experiment=quickstart", "rollout.max_prompt_tokens=30000"]).rollout
    sized = fitted(rollout, [SimpleNamespace(token_ids=[5] * length) for length in (3, 40, 7)])
    assert (sized.max_prompt_tokens, sized.max_response_tokens) == (40, rollout.max_response_tokens)
    assert fitted(rollout, []).max_prompt_tokens == 1


def test_damaged_settings_are_refused_by_name(tmp_path):
    (tmp_path / "settings.json").write_text('{"seed": 1,')
    with pytest.raises(ValueError, match=r"settings\.json is damaged .*choose another --out"):
        write_settings(tmp_path, {"seed": 1})


def test_files_that_only_rank_0_reads_are_refused_on_every_rank(tmp_path, monkeypatch):
    (tmp_path / "results.json").write_text("{")
    (tmp_path / "math.jsonl").write_text("{}\n")
    told: list[str] = []
    monkeypatch.setattr(benchmark, "of_first_rank", lambda problem, what: told.append(problem) or problem)
    for read in (partial(_earlier, tmp_path), partial(whole_chunks, tmp_path / "math.jsonl", 2, 1)):
        with pytest.raises(ValueError, match=r"is damaged|no responses of this command"):
            of_reader(read, True)
    monkeypatch.setattr(benchmark, "of_first_rank", lambda problem, what: told[0])
    with pytest.raises(ValueError, match=r"results\.json is damaged"):
        of_reader(partial(_earlier, tmp_path), False)
