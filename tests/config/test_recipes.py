"""The recipes of conf/algo: the published values, and that no experiment spoils them."""

import dataclasses
import functools
from pathlib import Path

import pytest

from nemo_simplerl.config.errors import ConfigErrors
from nemo_simplerl.config.experiments import choices
from nemo_simplerl.config.load import compose, load
from nemo_simplerl.config.rules.check import check
from nemo_simplerl.config.rules.runner import value_at
from nemo_simplerl.config.schema import Config
from nemo_simplerl.config.shape import read_shape
from nemo_simplerl.plan.known import KNOWN_MODELS

WORLD_SIZE = {"quickstart": 1, "math_smoke": 4, "smollm2_135m": 1, "simplerl_zero_qwen2.5_0.5b": 1}  # 8 for the others
# Of the sizes of the 7B recipe, which set nothing that a recipe reads, the smallest stands for all.
ALIKE = {f"simplerl_zero_{size}" for size in ("qwen2.5_1.5b", "qwen2.5_32b", "qwen3_4b", "llama3.1_8b_instruct")}
RECIPES = ("default", "grpo", "dr_grpo", "rloo", "reinforce_pp", "dapo", "gspo", "vapo")
NO_REFERENCE = {"algo.kl_coef": 0.0}
NO_WHITENING = {"algo.normalize_advantages": False}
# Where each value was published stands in its file.
PUBLISHED = {
    "default": {
        **{"algo.advantage": "gae", "algo.gae_lambda": 0.95, "algo.gae_lambda_critic": None},
        **{"algo.kl_in": "reward", "algo.kl_estimator": "k1", "algo.kl_coef": 0.01, "algo.normalize_advantages": True},
        **{"algo.ratio_eps": 0.2, "algo.ratio_eps_high": None, "algo.loss_aggregation": "seq_mean"},
        **{"rollout.keep_groups": "all", "reward.overlong_buffer_tokens": None},
    },
    "grpo": NO_WHITENING
    | {
        **{"algo.advantage": "group", "algo.divide_by_std": True, "algo.loss_aggregation": "seq_mean"},
        **{"algo.kl_in": "loss", "algo.kl_estimator": "k3", "algo.kl_coef": 0.04, "algo.ratio_eps": 0.2},
    },
    "dr_grpo": NO_WHITENING
    | NO_REFERENCE
    | {"algo.advantage": "group", "algo.divide_by_std": False, "algo.loss_aggregation": "token_sum_over_max"},
    "rloo": NO_WHITENING
    | {
        **{"algo.advantage": "rloo", "algo.kl_in": "reward", "algo.kl_estimator": "k1", "algo.kl_coef": 0.03},
        **{"algo.loss_aggregation": "token_sum_over_max"},
    },
    "reinforce_pp": {
        **{"algo.advantage": "reinforce_pp", "algo.normalize_advantages": True, "algo.loss_aggregation": "token_mean"},
        **{"algo.kl_in": "reward", "algo.kl_estimator": "k1", "algo.kl_coef": 0.01, "algo.gamma": 1.0},
    },
    "dapo": NO_WHITENING
    | NO_REFERENCE
    | {
        **{"algo.advantage": "group", "algo.divide_by_std": True, "algo.loss_aggregation": "token_mean"},
        **{"algo.ratio_eps": 0.2, "algo.ratio_eps_high": 0.28, "algo.dual_clip": 10.0},
        **{"rollout.keep_groups": "mixed", "rollout.max_rounds": 10},
        **{"reward.overlong_buffer_tokens": 4096, "reward.overlong_penalty": 1.0},
    },
    "gspo": NO_WHITENING
    | NO_REFERENCE
    | {
        **{"algo.advantage": "group", "algo.divide_by_std": True, "algo.ratio_level": "sequence"},
        **{"algo.ratio_eps": 3e-4, "algo.ratio_eps_high": 4e-4, "algo.loss_aggregation": "seq_mean"},
    },
    "vapo": NO_REFERENCE
    | {
        **{"algo.advantage": "gae", "algo.gae_lambda_critic": 1.0, "algo.gae_length_alpha": 0.05},
        **{"algo.critic_warmup_steps": 50, "algo.critic_warmup_lambda": 1.0, "algo.positive_nll_coef": 0.1},
        **{"algo.ratio_eps": 0.2, "algo.ratio_eps_high": 0.28, "algo.loss_aggregation": "token_mean"},
    },
}
# What an experiment of another size sets for the recipes that read it.
SCALED = {
    "algo.critic_warmup_steps",
    "algo.gae_length_alpha",
    "algo.ratio_eps",
    "algo.ratio_eps_high",
    "reward.overlong_buffer_tokens",
    "rollout.max_rounds",
}
OWN = {"smollm2_135m": {"algo.kl_coef"}}  # keeps no reference: a third of the time of its passes


@functools.cache
def bare(name: str) -> Config:
    """The recipe under no experiment."""
    return compose([f"algo={name}", "model.path=no/folder", "data.train_path=none.jsonl"])


def test_every_recipe_has_a_file():
    assert choices("algo") == sorted([*RECIPES, "simplerl_zoo"])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_holds_the_published_values(name):
    config = bare(name)
    assert {key: value_at(config, key) for key in PUBLISHED[name]} == PUBLISHED[name]


@pytest.mark.parametrize("name", [*RECIPES, "simplerl_zoo"])
@pytest.mark.parametrize("experiment", [name for name in choices("experiment") if name not in ALIKE])
def test_every_experiment_takes_every_recipe_as_it_is(experiment, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, recipe = compose([f"experiment={experiment}", f"algo={name}"]), bare(name)
    keys = {f"algo.{field.name}" for field in dataclasses.fields(recipe.algo)} - {"algo.ratio_tolerance"}
    keys |= {key for key in PUBLISHED.get(name, {}) if not key.startswith("algo.")}
    own = OWN.get(experiment, set())
    spoilt = {key for key in keys - SCALED - own if value_at(config, key) != value_at(recipe, key)}
    assert spoilt == set()
    shape = KNOWN_MODELS.get(Path(config.model.path).name) or read_shape(config.model)
    assert check(config, shape, WORLD_SIZE.get(experiment, 8)) == []


def test_the_quickstart_gives_each_recipe_what_its_size_asks_for():
    dapo, vapo, gspo, grpo = (
        compose(["experiment=quickstart", f"algo={name}"]) for name in ("dapo", "vapo", "gspo", "grpo")
    )
    assert (dapo.reward.overlong_buffer_tokens, dapo.rollout.max_rounds) == (19, 2)
    assert (vapo.algo.gae_length_alpha, vapo.algo.critic_warmup_steps) == (1.0, 4)
    assert (gspo.algo.ratio_eps, gspo.algo.ratio_eps_high) == (3e-3, 4e-3)
    # ... and gives the others nothing of it.
    assert (grpo.algo.gae_length_alpha, grpo.algo.critic_warmup_steps, grpo.algo.ratio_eps) == (None, 0, 0.2)
    assert grpo.reward.overlong_buffer_tokens is None


def test_a_step_of_the_quickstart_makes_several_updates_so_that_clips_act():
    config = compose(["experiment=quickstart", "algo=gspo"])
    samples = config.data.rollout_batch_size * config.rollout.n_samples_per_prompt
    assert samples // config.actor.global_batch_size == 4


def test_settings_of_the_command_line_and_of_an_own_experiment_lie_over_the_recipe(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "defaults: [quickstart, _self_]\nalgo: {gae_length_alpha: 0.25}\nto_scale: {critic_warmup_steps: 7}\n"
    )
    algo = compose([f"experiment={tmp_path}/mine.yaml", "algo=vapo", "algo.ratio_eps_high=0.3"]).algo
    assert (algo.gae_length_alpha, algo.critic_warmup_steps, algo.ratio_eps_high) == (0.25, 7, 0.3)


def test_an_own_experiment_chooses_its_recipe_and_the_command_line_another(tmp_path):
    (tmp_path / "mine.yaml").write_text("defaults: [quickstart, _self_, override /algo: rloo]\ntrainer: {seed: 3}\n")
    mine = f"experiment={tmp_path}/mine.yaml"
    assert compose([mine]).algo.advantage == "rloo"
    assert compose([mine, "algo=dapo"]).rollout.keep_groups == "mixed"
    assert compose([mine, "algo=dapo"]).trainer.seed == 3


@pytest.mark.parametrize(
    "content",
    [
        "defaults: [dapo, _self_]\nratio_eps_high: 0.5\n",
        "# @package _global_\ndefaults: [dapo, _self_]\nalgo: {ratio_eps_high: 0.5}\nrollout: {max_rounds: 3}\n",
    ],
)
def test_a_recipe_of_ones_own_starts_from_a_shipped_one(content, tmp_path):
    (tmp_path / "mine.yaml").write_text(content)
    config = compose(["experiment=quickstart", f"algo={tmp_path}/mine.yaml"])
    assert (config.algo.ratio_eps_high, config.algo.advantage, config.rollout.keep_groups) == (0.5, "group", "mixed")
    assert config.rollout.max_rounds == (3 if "_global_" in content else 2)


def test_a_mistake_in_an_own_recipe_for_several_sections_is_told_with_its_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("# @package _global_\ndefaults: [dapo, _self_]\nrollout: {max_rounds: 0}\n")
    with pytest.raises(ConfigErrors) as caught:
        load(["experiment=quickstart", f"algo={tmp_path}/mine.yaml"], 1)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{tmp_path}/mine.yaml: rollout.max_rounds=0")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("to_scale: {max_round: 3}", "to_scale.max_round is a value that no recipe takes. Did you mean max_rounds?"),
        ("to_scale: {x: 3}", "to_scale.x is a value that no recipe takes. Known: critic_warmup_steps, "),
        ("to_scale: null", "rollout.max_rounds=${to_scale.max_rounds} cannot be resolved"),
        ("to_scale: {max_rounds: many}", "rollout.max_rounds='many' is"),
    ],
)
def test_a_mistake_in_what_an_experiment_sets_for_recipes_is_told(content, told, tmp_path):
    (tmp_path / "mine.yaml").write_text(f"defaults: [quickstart, _self_]\n{content}\n")
    with pytest.raises(ConfigErrors) as caught:
        load([f"experiment={tmp_path}/mine.yaml", "algo=dapo"], 1)
    assert any(told in problem for problem in caught.value.problems), caught.value.problems


def test_what_recipes_take_is_no_setting_of_the_command_line():
    with pytest.raises(ConfigErrors, match="to_scale.max_rounds is not a key of the configuration"):
        compose(["experiment=quickstart", "algo=dapo", "to_scale.max_rounds=3"])
