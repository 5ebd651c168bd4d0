"""Each wrong configuration holds two independent mistakes: both are reported, and each message says what would work."""

import pytest

from nemo_simplerl.config.errors import ConfigErrors
from nemo_simplerl.config.load import compose, load

QUICKSTART = "experiment=quickstart"

# (name, overrides, world size, [(words of the mistake, words of what would work), ...])
WRONG = [
    (
        "unknown key and a number out of range",
        [QUICKSTART, "trainer.max_stes=3", "rollout.top_p=1.5"],
        1,
        [("trainer.max_stes is not a key", "trainer.max_steps"), ("rollout.top_p=1.5", "(0, 1]")],
    ),
    (
        "text and a boolean where integers are due",
        [QUICKSTART, "actor.micro_batch_size='32'", "trainer.seed=true"],
        1,
        [("actor.micro_batch_size='32' is a string", "an integer"), ("trainer.seed=true", "an integer")],
    ),
    (
        "unknown experiment and an unknown key",
        ["experiment=quikstart", "actor.optim.learning_rate=1"],
        1,
        [
            ("'experiment=quikstart'", "experiment=quickstart"),
            ("actor.optim.learning_rate is not a key", "actor"),
        ],
    ),
    (
        "an override without a value and another file of a group",
        [QUICKSTART, "trainer.max_steps", "actor=tiny"],
        1,
        [("'trainer.max_steps' is not an override", "key=value"), ("'actor=tiny'", "actor=default")],
    ),
    (
        "more ranks asked for than started and lengths beyond the model",
        [QUICKSTART, "actor.tensor_model_parallel_size=2", "rollout.max_response_tokens=97"],
        1,
        [
            ("actor.tensor_model_parallel_size=2", "torchrun --nproc_per_node 2"),
            ("64 + rollout.max_response_tokens=97 = 161", "a response of 96 or less"),
        ],
    ),
    (
        "a tensor size that splits no head and a pipeline size that splits no layer",
        [QUICKSTART, "actor.tensor_model_parallel_size=3", "actor.pipeline_model_parallel_size=3"],
        9,
        [
            ("2 query groups", "Sizes that work: 1 or 2."),
            ("actor.pipeline_model_parallel_size=3 does not divide the model's 4 layers", "1, 2 or 4"),
        ],
    ),
    (
        "an update that does not fill the rollout and one that does not split over micro-batches",
        [QUICKSTART, "actor.global_batch_size=96", "critic.micro_batch_size=24", "critic.micro_batch_tokens=null"],
        1,
        [
            ("actor.global_batch_size=96 does not divide", "64 or 128"),
            ("critic.global_batch_size=64 is not a multiple of critic.micro_batch_size=24", "48 or 72"),
        ],
    ),
    (
        "a contradiction about cut responses and rewards upside down",
        [QUICKSTART, "algo.truncated=mask", "algo.overwrite_truncated_with_eos=true", "reward.no_answer=0"],
        1,
        [
            ("algo.overwrite_truncated_with_eos=true", "algo.truncated=penalize"),
            ("reward.no_answer=0.0", "correct > incorrect >= no_answer"),
        ],
    ),
    (
        "no data file and a variable that is not set",
        [QUICKSTART, "data.generate=null", "sft.output=null", "data.eval_path=null", "trainer.eval_every=0"]
        + ["data.train_path=no/such.json", "trainer.seed=${oc.env:SIMPLERL_NO}"],
        1,
        [
            ("data.train_path='no/such.json'", "data.generate=arithmetic"),
            ("SIMPLERL_NO", "${oc.env:NAME,default}"),
        ],
    ),
    (
        "no model and no critic",
        [QUICKSTART, "model.create=null", "model.path=no/model", "critic.path=no/critic"],
        1,
        [("model.path='no/model'", "model.create"), ("critic.path='no/critic'", "critic.path=null")],
    ),
    (
        "a warm start without data and a critic warm-up without end",
        [QUICKSTART, "data.sft_path=null", "algo.critic_warmup_steps=40"],
        1,
        [
            ("data.sft_path=null", "sft.output=null"),
            ("algo.critic_warmup_steps=40", "algo.critic_warmup_steps=39"),
        ],
    ),
    (
        "a rate that rises and a choice that does not exist",
        [QUICKSTART, "actor.optim.min_lr=1", "algo.kl_estimator=k4"],
        1,
        [("actor.optim.min_lr=1.0", "0.0001 or less"), ("algo.kl_estimator='k4'", "k1, k2, k3, abs")],
    ),
]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def problems_of(overrides: list[str], world_size: int | None = 1) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        load(overrides, world_size)
    return caught.value.problems


@pytest.mark.parametrize(("overrides", "world_size", "expected"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_two_independent_mistakes_are_both_told_with_what_would_work(overrides, world_size, expected):
    problems = problems_of(overrides, world_size)
    for mistake, remedy in expected:
        told = [problem for problem in problems if mistake in problem]
        assert len(told) == 1, problems
        assert remedy in told[0]
    assert len(problems) == len(expected), problems


def test_the_error_lists_every_problem_on_a_line_of_its_own():
    with pytest.raises(ConfigErrors) as caught:
        load([QUICKSTART, "trainer.seed=-1", "algo.gamma=2"], 1)
    lines = str(caught.value).splitlines()
    assert lines[0] == "2 problems in the configuration:"
    assert lines[1:] == [f"  - {problem}" for problem in caught.value.problems]


def test_a_value_that_is_already_wrong_breaks_no_further_rule():
    # 0 would divide by zero in four rules, and 'big' cannot be compared with anything.
    assert len(problems_of([QUICKSTART, "actor.global_batch_size=0"])) == 1
    assert len(problems_of([QUICKSTART, "model.create.num_attention_heads=0"])) == 1
    assert len(problems_of([QUICKSTART, "actor.tensor_model_parallel_size=big"])) == 1


def test_an_unknown_experiment_does_not_blame_the_defaults_in_its_place():
    assert len(problems_of(["experiment=nope"])) == 1
    assert len(problems_of(["experiment=nope", "trainer.max_steps=0"])) == 2


def test_without_an_experiment_the_person_is_told_to_choose_one():
    (problem,) = problems_of([])
    assert "Choose an experiment" in problem and "experiment=quickstart" in problem


def test_one_variable_behind_many_keys_is_one_problem():
    (problem,) = problems_of([QUICKSTART, "trainer.run_dir=${oc.env:SIMPLERL_NO}"])
    assert "trainer.run_dir" in problem and "SIMPLERL_NO" in problem


@pytest.mark.parametrize("override", ["+trainer.seed=3", "~trainer.seed", "trainer.seed=1,2", "hydra.run.dir=x", "=3"])
def test_hydra_syntax_that_does_not_set_one_known_key_is_refused(override):
    assert len(problems_of([QUICKSTART, override])) == 1


def test_a_section_given_in_part_lists_what_it_lacks():
    problems = problems_of(["experiment=simplerl_zero_qwen2.5_math_7b", "model.create.hidden_size=64"])
    assert len([problem for problem in problems if "model.create." in problem and "missing" in problem]) == 7


def test_an_unknown_key_inside_a_section_is_told_with_its_whole_path():
    (problem,) = problems_of([QUICKSTART, "actor.optim={lrr: 1}"])
    assert "actor.optim.lrr is not a key" in problem and "actor.optim.lr" in problem


def test_an_integer_is_accepted_for_a_number_and_becomes_one():
    value = compose([QUICKSTART, "algo.gamma=1"]).algo.gamma
    assert value == 1.0 and isinstance(value, float)


def test_environment_variables_are_read_and_have_defaults(monkeypatch):
    monkeypatch.setenv("SIMPLERL_HERE", "here")
    monkeypatch.setenv("SIMPLERL_END", "###")
    config = compose(
        [
            QUICKSTART,
            "rollout.stop=['${oc.env:SIMPLERL_END}']",
            "trainer.run_dir=${oc.env:SIMPLERL_HERE}/${oc.env:SIMPLERL_NO,there}",
        ]
    )
    assert config.rollout.stop == ["###"]
    assert config.trainer.run_dir == "here/there"
    assert config.model.path == "here/there/base"
