"""The YAML of conf/: every experiment passes its rules, and SimpleRL's two hold their recipe's values."""

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nemo_simplerl.config.experiments import choices, conf_dir
from nemo_simplerl.config.load import compose, from_yaml, load, to_dict, to_yaml
from nemo_simplerl.config.rules.check import check
from nemo_simplerl.config.shape import read_shape
from nemo_simplerl.data.examples import check_examples, stops_of
from nemo_simplerl.plan.known import KNOWN_MODELS

ZERO_7B = "simplerl_zero_qwen2.5_math_7b"
ZOO_7B = "simplerl_zoo_qwen2.5_7b"
WORLD_SIZE = {
    "quickstart": 1,
    "math_smoke": 4,
    "simplerl_qwen2.5_math_7b": 8,
    "smollm2_135m": 1,
    "simplerl_zero_llama3.1_8b_instruct": 8,
    "simplerl_zero_qwen2.5_0.5b": 1,
    "simplerl_zero_qwen2.5_1.5b": 1,
    "simplerl_zero_qwen2.5_32b": 32,
    "simplerl_zero_qwen3_4b": 4,
    ZERO_7B: 8,
    ZOO_7B: 8,
}

# hkust-nlp/simpleRL-reason, branch v0, train_ppo_qwen_base_math_lv35_new.sh.
RECIPE = {
    "model.precision": "bf16",
    "actor.global_batch_size": 128,
    "actor.micro_batch_size": 2,
    "actor.forward_micro_batch_size": 2,
    "actor.optim.lr": 5e-7,
    "actor.optim.min_lr": 5e-8,
    "actor.optim.lr_decay_style": "cosine",
    "actor.optim.lr_warmup_fraction": 0.03,
    "actor.optim.weight_decay": 0.0,
    "actor.optim.adam_beta1": 0.9,
    "actor.optim.adam_beta2": 0.95,
    "actor.optim.adam_eps": 1e-8,
    "actor.optim.clip_grad": 1.0,
    "critic.path": None,
    "critic.global_batch_size": 128,
    "critic.micro_batch_size": 2,
    "critic.forward_micro_batch_size": 2,
    "critic.optim.lr": 9e-6,
    "critic.optim.min_lr": 9e-7,
    "critic.optim.lr_decay_style": "cosine",
    "critic.optim.lr_warmup_fraction": 0.03,
    "critic.optim.weight_decay": 0.0,
    "critic.optim.adam_beta1": 0.9,
    "critic.optim.adam_beta2": 0.95,
    "critic.optim.adam_eps": 1e-8,
    "critic.optim.clip_grad": 1.0,
    "rollout.n_samples_per_prompt": 8,
    "rollout.max_prompt_tokens": 1024,
    "rollout.max_response_tokens": 3000,
    "rollout.temperature": 0.6,
    "rollout.top_p": 1.0,
    "rollout.top_k": 0,
    "rollout.stop": ["</s>", "<|im_end|>", "<|endoftext|>"],
    "rollout.stop_token_ids": [151645, 151643],
    "reward.correct": 1.0,
    "reward.incorrect": -0.5,
    "reward.no_answer": -1.0,
    "reward.timeout_s": 10.0,
    "algo.gamma": 1.0,
    "algo.gae_lambda": 0.95,
    "algo.kl_coef": 0.01,
    "algo.kl_estimator": "k1",
    "algo.reward_clip": 10.0,
    "algo.normalize_advantages": True,
    "algo.ratio_eps": 0.2,
    "algo.value_clip": 0.2,
    "algo.entropy_bonus": 0.0,
    "algo.loss_aggregation": "seq_mean",
    "algo.ppo_epochs": 1,
    "algo.critic_warmup_steps": 0,
    "algo.truncated": "penalize",
    "data.question_field": "question",
    "data.answer_field": "gt_answer",
    "data.template": "qwen25-math-cot",
    "data.rollout_batch_size": 1024,
    "data.shuffle": True,
    "data.eval_path": None,
    "sft.output": None,
    "trainer.seed": 42,
    "trainer.max_steps": None,
    "trainer.num_episodes": 20,
    "trainer.eval_every": 0,
    "trainer.save_every": 4,
    # Corrected quirks of the original.
    "algo.logprob_temperature": "sampling",
    "algo.logprob_precision": "fp32",
    "algo.overwrite_truncated_with_eos": False,
    "data.overlong_prompts": "drop",
    "data.prompt_trailing_newline": True,
}


# The same, branch v1 at cf1c785: the README's command for Qwen-2.5-7B, train_grpo_math_tune_ray.sh, ppo_trainer.yaml.
ZOO = {
    "model.precision": "bf16",
    "actor.global_batch_size": 256 * 8,  # ppo_mini_batch_size counts prompts
    "actor.micro_batch_size": 2,
    "actor.optim.lr": 5e-7,
    "actor.optim.min_lr": 5e-7,
    "actor.optim.lr_decay_style": "constant",
    "actor.optim.lr_warmup_fraction": 0.0,
    "actor.optim.weight_decay": 0.01,
    "actor.optim.adam_beta1": 0.9,
    "actor.optim.adam_beta2": 0.999,
    "actor.optim.adam_eps": 1e-8,
    "actor.optim.clip_grad": 1.0,
    "rollout.n_samples_per_prompt": 8,
    "rollout.max_prompt_tokens": 1024,
    "rollout.max_response_tokens": 8192,
    "rollout.temperature": 1.0,
    "rollout.top_p": 1.0,
    "rollout.top_k": 0,
    "rollout.stop": [],
    "rollout.stop_token_ids": [151645, 151643, 872, 77091, 1474, 71703, 151644, 8948],
    "rollout.keep_groups": "all",
    "reward.correct": 1.0,
    "reward.incorrect": 0.0,
    "reward.no_answer": 0.0,
    "reward.overlong_buffer_tokens": None,
    "reward.timeout_s": 10.0,
    "algo.advantage": "group",
    "algo.gamma": 1.0,
    "algo.divide_by_std": True,
    "algo.normalize_advantages": False,
    "algo.kl_in": "loss",
    "algo.kl_estimator": "k3",
    "algo.kl_importance_weight": False,
    "algo.kl_coef": 1e-4,
    "algo.reward_clip": None,
    "algo.policy_loss": "clip",
    "algo.ratio_eps": 0.2,
    "algo.ratio_eps_high": None,
    "algo.dual_clip": None,
    "algo.ratio_level": "token",
    "algo.entropy_bonus": 0.001,
    "algo.loss_aggregation": "token_mean",  # theirs, of micro-batches, has no counterpart
    "algo.ppo_epochs": 1,
    "algo.truncated": "penalize",
    "data.template": "qwen-boxed",
    "data.overlong_prompts": "drop",
    "data.rollout_batch_size": 1024,
    "data.shuffle": True,
    "trainer.seed": 1,
    "trainer.max_steps": None,
    "trainer.num_episodes": 20,
    "trainer.save_every": 5,
}


def value_at(config: object, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), config)


def test_every_experiment_has_a_natural_number_of_ranks():
    assert choices("experiment") == sorted(WORLD_SIZE)


@pytest.mark.parametrize("name", sorted(WORLD_SIZE))
def test_every_experiment_passes_its_rules_on_its_natural_number_of_ranks(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = compose([f"experiment={name}"])
    shape = KNOWN_MODELS.get(Path(config.model.path).name) or read_shape(config.model)
    assert check(config, shape, WORLD_SIZE[name]) == []


@pytest.mark.parametrize("key", sorted(RECIPE))
def test_the_7b_experiment_holds_the_recipes_value(key):
    assert value_at(zero_7b(), key) == RECIPE[key]


@functools.cache
def zero_7b():
    return compose([f"experiment={ZERO_7B}"])


@pytest.mark.parametrize("key", sorted(ZOO))
def test_the_later_7b_experiment_holds_its_recipes_value(key):
    assert value_at(zoo_7b(), key) == ZOO[key]


@functools.cache
def zoo_7b():
    return compose([f"experiment={ZOO_7B}"])


def test_the_recipe_makes_64_updates_of_the_actor_in_each_step():
    config = zero_7b()
    samples = config.data.rollout_batch_size * config.rollout.n_samples_per_prompt
    assert samples // config.actor.global_batch_size == 64


def test_the_worked_examples_of_the_real_model_are_right_and_end_with_the_line():
    config = compose(["experiment=smollm2_135m"])
    check_examples(config)
    assert stops_of(config.data) == ("\n",)


def test_every_group_has_a_default_that_fills_its_section():
    for section in dataclasses.fields(zero_7b()):
        assert "default" in choices(section.name)


def test_quickstart_loads_in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load(["experiment=quickstart", "trainer.max_steps=3"], 1)
    assert config.trainer.max_steps == 3
    assert config.model.path == "runs/quickstart/base"


def test_the_problems_folder_is_taken_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SIMPLERL_DATA_DIR", str(tmp_path))
    path = Path(compose(["experiment=math_smoke"]).data.train_path)
    assert path.parent == tmp_path
    path.write_text("[]")
    monkeypatch.chdir(tmp_path)
    assert load(["experiment=math_smoke"], 4).data.answer_field == "gt_answer"


@pytest.mark.parametrize("name", sorted(WORLD_SIZE))
def test_yaml_of_a_run_reads_back_as_the_same_configuration(name):
    config = compose([f"experiment={name}", "trainer.run_dir='1e-3'", "rollout.stop=['{x: 1}', 'null']"])
    assert from_yaml(to_yaml(config)) == config
    assert to_dict(config)["trainer"]["run_dir"] == "1e-3"


def test_a_bare_off_in_yaml_is_the_word_and_not_false():
    text = to_yaml(compose(["experiment=quickstart"])).replace("policy: warn", "policy: off")
    assert from_yaml(text) == compose(["experiment=quickstart", "rollout.consistency.policy=off"])


def test_loading_imports_no_framework_and_takes_under_a_second(tmp_path):
    script = (
        "import sys, time\n"
        "from nemo_simplerl.config.load import load\n"
        "load(['experiment=quickstart', 'trainer.max_steps=3'], 1)\n"
        "heavy = {'torch', 'transformers', 'megatron', 'numpy'} & set(sys.modules)\n"
        "print(sorted(heavy), time.process_time())"  # of the processor: a busy machine does not count
    )
    env = {**os.environ, "PYTHONPATH": str(conf_dir().parent)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    heavy, seconds = done.stdout.rsplit(maxsplit=1)
    assert heavy == "[]"
    assert float(seconds) < 1
