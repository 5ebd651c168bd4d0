"""Steps that teach nothing, by their metrics."""

from nemo_simplerl.config.load import compose
from nemo_simplerl.trainer.guard.idle import idle


def _idle(*overrides, **changes):
    metrics = {"reward/correct_share": 0.5, "reward/incorrect_share": 0.5, "reward/no_answer_share": 0.0}
    metrics |= {"actor/grad_norm_max": 0.1, "rollout/truncated_share": 0.5}
    config = compose(["experiment=quickstart", *overrides])
    return idle(metrics | {name.replace("__", "/"): value for name, value in changes.items()}, config)


def test_a_step_with_better_and_worse_answers_teaches():
    assert _idle() == {}
    assert _idle(rollout__truncated_share=1.0) == {}  # cut responses are trained as they are graded
    assert _idle("algo.truncated=mask") == {}


def test_one_reward_for_all_is_told_with_what_would_help():
    alone = {"reward__correct_share": 0.0, "reward__incorrect_share": 0.0, "reward__no_answer_share": 0.0}
    for verdict, remedy in (("correct", "harder"), ("incorrect", "--check-golds"), ("no_answer", "sft.output")):
        found = _idle(**alone | {f"reward__{verdict}_share": 1.0})
        assert found.keys() == {"reward"} and remedy in found["reward"]
        assert "there was nothing to learn" in found["reward"]
        assert ("data.examples" in found["reward"]) == (verdict != "correct")
    unboxed = alone | {"reward__no_answer_share": 1.0}
    assert "raise rollout.max_response_tokens" in _idle(**unboxed, rollout__truncated_share=0.9)["reward"]
    shown = _idle("data.examples=[{question: a, response: b, answer: c}]", **unboxed)["reward"]
    assert "worked examples" not in shown and "simplerl distill" in shown
    both = alone | {"reward__incorrect_share": 0.25, "reward__no_answer_share": 0.75}
    assert _idle(**both) == {}
    assert _idle("reward.incorrect=-1", **both).keys() == {"reward"}
    assert _idle("algo.reward_clip=0.5", **both).keys() == {"reward"}
    assert _idle(**both | {"reward__no_answer_share": 0.0, "reward__overlong_mean": -0.1}) == {}  # lengths differ
    one = ["data.rollout_batch_size=1", "rollout.n_samples_per_prompt=1"]
    assert _idle(*one, **alone | {"reward__correct_share": 1.0}) == {}  # a sample is always like itself


def test_prompts_whose_responses_all_earn_the_same_are_told_where_responses_are_compared_with_each_other():
    found = _idle("algo.advantage=rloo", advantage__equal_groups_share=1.0)
    assert found.keys() == {"groups"} and "algo.advantage=rloo" in found["groups"]
    assert _idle("algo.advantage=rloo", advantage__equal_groups_share=0.99) == {}


def test_gradients_of_0_and_responses_that_are_all_left_out_are_told():
    assert _idle(actor__grad_norm_max=0.0).keys() == {"gradient"}
    assert _idle(actor__grad_norm_max=None) == {}  # the critic's warm-up, or updates left out
    found = _idle("algo.truncated=mask", rollout__truncated_share=1.0, actor__grad_norm_max=0.0)
    assert found.keys() == {"truncated"} and "rollout.max_response_tokens=96" in found["truncated"]


def test_a_function_that_pays_every_response_the_same_is_told_too():
    own = "reward.function=mine.py:paid"
    assert _idle(own, reward__correct_share=1.0, reward__incorrect_share=0.0) == {}  # verdicts are not what it pays
    found = _idle(own, reward__all_equal=1.0)
    assert found.keys() == {"reward"} and "same reward (reward.function)" in found["reward"]


def test_the_step_says_whether_all_its_scores_are_equal():
    from nemo_simplerl.reward.serving.pool import Grade
    from nemo_simplerl.rollout.base import Completion
    from nemo_simplerl.rollout.completions import Completions
    from nemo_simplerl.trainer.logging.metrics import sample_metrics

    def metrics_of(*scores):
        rollout = [Completion((7,), (0.0,), "", "stop", 0, 0) for _ in scores]
        return sample_metrics(Completions.of(rollout), [Grade("correct", "ok", 1.0)] * len(scores), scores)

    assert metrics_of(0.5, 0.5)["reward/all_equal"] == 1.0
    assert "reward/all_equal" not in metrics_of(0.5, 0.25) | metrics_of(0.5)
