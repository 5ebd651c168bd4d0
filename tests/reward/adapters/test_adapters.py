"""The grader as verl, TRL and OpenRLHF call it."""

import sys
import time
from pathlib import Path

import pytest

from nemo_simplerl.reward.adapters import openrlhf, trl, verl
from nemo_simplerl.reward.adapters.openrlhf_form import response_of, samples_in
from nemo_simplerl.reward.adapters.scoring import gold_text

RIGHT, WRONG, NONE = r"so \boxed{\frac12}", r"so \boxed{2}", "so it is 0.5"


def test_verl_gets_a_dict_of_numbers_for_each_response():
    scores = [verl.compute_score("math", response, "0.5", {"index": 1}) for response in (RIGHT, WRONG, NONE)]
    assert [score["score"] for score in scores] == [1.0, -0.5, -1.0]
    assert scores[2] == {"score": -1.0, "acc": 0.0, "no_answer": 1.0, "timeout_or_crash": 0.0}
    named = {"data_source": "math", "solution_str": WRONG, "ground_truth": 0.5, "extra_info": None}
    assert verl.compute_score(**named, values="binary")["score"] == 0.0
    assert verl.compute_score(**named, reward_router_address="host:1", reward_model_tokenizer=object())["acc"] == 0.0


def test_trl_gets_a_number_a_completion_whether_it_is_text_or_a_chat():
    chat = [[{"role": "assistant", "content": RIGHT}], [{"role": "assistant", "content": [{"text": WRONG}]}]]
    tools = [{"role": "assistant", "content": RIGHT}, {"role": "tool", "content": "5"}, {"role": "assistant"}]
    assert trl.reward_func(prompts=["?"] * 2, completions=[RIGHT, NONE], answer=["0.5"] * 2) == [1.0, -1.0]
    columns = {"trainer_state": None, "solution": [r"We get \boxed{1/2}."] * 3, "log_metric": print}
    assert trl.reward_func([[]] * 3, [*chat, tools], [[1]] * 3, **columns) == [1.0, -0.5, -1.0]
    binary = trl.make_reward_func("gold_answer", values="binary")
    assert binary(["?"] * 3, [RIGHT, WRONG, RIGHT], gold_answer=[0.5, 0.5, None], answer=["7"] * 3) == [1.0, 0.0, None]
    with pytest.raises(ValueError, match=r"no column gold_answer .* its columns: text. .*make_reward_func"):
        binary(["?"], [RIGHT], text=["x"])


def test_openrlhf_gets_tensors_and_its_prompt_is_taken_off():
    prompts = [r"Write \boxed{0.5}. Q:"] * 2
    found = openrlhf.reward_func([prompts[0] + NONE, "<s>" + prompts[1] + WRONG], prompts, ["0.5", "0.5"])
    assert found["rewards"].tolist() == [-1.0, -0.5] and found["scores"].tolist() == [0.0, 0.0]
    assert found["extra_logs"]["no_answer"].tolist() == [1.0, 0.0]


PROMPT = "<|user|>\nWhat is 1 + 1 ?\n<|assistant|>\n"


@pytest.mark.parametrize(
    ("query", "prompt"),
    [
        (PROMPT + " two", PROMPT),
        ("<s> " + PROMPT + " two", PROMPT),
        ("<|user|> What is 1 + 1?\n<|assistant|> two", PROMPT),
        (PROMPT[12:] + " two", PROMPT),
        (PROMPT[12:] + " two", PROMPT + PROMPT),
        (" two", ""),
        (" two", " "),
        (" two", "something else altogether"),
    ],
)
def test_a_response_is_what_follows_the_prompt_however_it_was_decoded(query, prompt):
    assert response_of(query, prompt).strip() == "two"


def test_taking_off_a_prompt_is_linear_in_its_length():
    start = time.perf_counter()
    response_of("ab" * 200_000 + "c", "ab" * 150_000 + "d")
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ([], "the body must be"),
        ({"query": ["x"], "prompts": ["x"]}, "the body must be"),
        ({"query": ["x"], "prompts": ["x"], "labels": []}, "lists of one length"),
        ({"query": [1], "prompts": ["x"], "labels": ["1"]}, r"query\[0\] must be a string"),
        ({"query": ["x"], "prompts": ["x"], "labels": [None]}, r"labels\[0\]: the gold answer None cannot be used"),
    ],
)
def test_a_request_that_is_not_openrlhfs_is_told_what_it_lacks(request_, told):
    with pytest.raises(ValueError, match=told):
        samples_in(request_)


def test_one_hostile_response_costs_its_own_time_and_no_other_its_grade(monkeypatch):
    from nemo_simplerl.reward.adapters import scoring
    from nemo_simplerl.reward.serving.pool import RewardPool

    misbehaving = (sys.executable, str(Path(__file__).parents[1] / "serving/misbehaving_worker.py"))
    pool = RewardPool(2, timeout_s=0.5, memory_limit_mb=512, command=misbehaving)
    monkeypatch.setattr(scoring, "_pool", lambda *_: pool)
    with pool:
        start = time.monotonic()
        assert trl.reward_func(["?"] * 3, ["say 1", "hang", "say 1"], answer=["1"] * 3) == [1.0, -0.5, 1.0]
        assert time.monotonic() - start < 5


def test_a_gold_answer_that_cannot_be_used_is_an_error():
    assert gold_text(["#### 5"]) == "5" and gold_text(7) == "7"
    with pytest.raises(ValueError, match="the gold answer '' cannot be used: it is empty"):
        gold_text("")
    with pytest.raises(ValueError, match="values='both' is none of recipe, binary"):
        verl.compute_score("math", RIGHT, "0.5", values="both")
