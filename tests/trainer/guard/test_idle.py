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
