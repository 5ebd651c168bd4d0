"""Rules on values, one small change away from a configuration that passes."""

import dataclasses
import json
from typing import get_args, get_origin, get_type_hints

import pytest

from nemo_simplerl.config.load import compose
from nemo_simplerl.config.placement import PlacementConfig
from nemo_simplerl.config.rules.check import check
from nemo_simplerl.config.rules.machine import Machine, check_machine
from nemo_simplerl.config.rules.numbers import inside, interval_in_words
from nemo_simplerl.config.rules.ranges import RANGES
from nemo_simplerl.config.schema import Config, ModelConfig
from nemo_simplerl.config.shape import ModelShape, read_shape

CPU = Machine(has_gpu=False, has_transformer_engine=False)
GPU = Machine(has_gpu=True, has_transformer_engine=True)
GROUP = ["algo.advantage=group"]
TP2_PP2 = ["actor.tensor_model_parallel_size=2", "actor.pipeline_model_parallel_size=2"]
ONE_TEMPERATURE = ["algo.logprob_temperature=one", "rollout.temperature=0.6"]  # sampled at 0.6, trained at 1
AHEAD = ["rollout.ahead=1", "rollout.consistency.policy=correct"]


def quickstart(*overrides: str) -> tuple[Config, ModelShape]:
    """The quickstart in padded rows of samples, whose sizes have rules of their own."""
    padded = [f"{role}.micro_batch_tokens=null" for role in ("actor", "critic")]
    config = compose(["experiment=quickstart", "model.path=no/such/folder", *padded, *overrides])
    return config, read_shape(config.model)


def problems_of(*overrides: str, world_size: int | None = 1) -> list[str]:
    return check(*quickstart(*overrides), world_size)


# quickstart: 4 layers, 4 heads, 2 groups, ffn 384, 160 positions; 64 prompts * 4 samples, updates of 64.
@pytest.mark.parametrize(
    ("overrides", "world_size", "told"),
    [
        (["actor.tensor_model_parallel_size=2"], 3, "divides 3"),
        (["actor.tensor_model_parallel_size=4"], 4, "2 query groups"),
        (["critic.tensor_model_parallel_size=2"], 1, "critic.tensor_model_parallel_size=2 * actor.pipeline"),
        (
            [*TP2_PP2, "critic.tensor_model_parallel_size=4", "critic.pipeline_model_parallel_size=1"],
            4,
            "2 query groups",
        ),
        ([*TP2_PP2, "critic.tensor_model_parallel_size=1", "critic.pipeline_model_parallel_size=8"], 8, "4 layers"),
        (
            ["actor.tensor_model_parallel_size=2", "critic.tensor_model_parallel_size=1", "critic.global_batch_size=2"],
            2,
            "critic.global_batch_size=2 is not a multiple of critic.micro_batch_size=32 * 2 data-parallel replicas",
        ),
        (["critic.tensor_model_parallel_size=0"], 1, "critic.tensor_model_parallel_size=0 is out of range"),
        (
            ["model.create.ffn_hidden_size=385", "actor.tensor_model_parallel_size=2"],
            2,
            "385 ffn_hidden_size",
        ),
        (["actor.sequence_parallel=true"], 1, "actor.tensor_model_parallel_size=1"),
        (["model.fp8=hybrid"], 1, "model.fp8=hybrid is for bfloat16"),
        (["model.transformer_engine=true"], 1, "Set model.precision=bf16"),
        (["critic.global_batch_size=96", "critic.micro_batch_size=32"], 1, "critic.global_batch_size=96"),
        (["actor.micro_batch_size=16", "critic.micro_batch_size=8", "sft.output=null"], 8, "Use 128"),
        (["critic.micro_batch_size=8", "sft.output=null"], 4, "actor.global_batch_size=64 is not a multiple"),
        (["sft.micro_batch_size=48"], 1, "sft.micro_batch_size=48"),
        (["sft.max_tokens=161"], 1, "sft.max_tokens=160 or less"),
        (["rollout.max_prompt_tokens=160"], 1, "a shorter prompt"),
        (["model.create.hidden_size=132"], 1, "128 or 136"),
        (["model.create.num_query_groups=3"], 1, "1, 2 or 4"),
        (["data.train_path=train.txt"], 1, ".jsonl"),
        (["data.sft_path=sft.xlsx"], 1, ".jsonl"),
        (["data.eval_path=null"], 1, "trainer.eval_every=0"),
        (["sft.eval_every=5", "data.eval_path=null", "trainer.eval_every=0"], 1, "data.sft_eval_path=FILE"),
        (["model.path=''"], 1, "model.path is empty"),
        (["model.create.vocab_size=511"], 1, "at least 512"),
        (["actor.optim.lr=0", "actor.optim.min_lr=0"], 1, "actor.optim.lr=0 never changes a weight"),
        (["critic.optim.lr=0", "critic.optim.min_lr=0"], 1, "critic.optim.lr=0 never changes a weight"),
        (["sft.optim.lr=0", "sft.optim.min_lr=0"], 1, "sft.output=null to do without"),
        (["algo.gae_length_alpha=0.01"], 1, "rollout.max_response_tokens=96 allows no longer one"),
        (["algo.critic_warmup_lambda=1"], 1, "Set algo.critic_warmup_steps, or algo.critic_warmup_lambda=null"),
        (["algo.reward_clip=1", "reward.correct=3", "reward.incorrect=2", "reward.no_answer=1"], 1, "clip=3.0 or more"),
        ([*GROUP, "rollout.n_samples_per_prompt=1"], 1, "n_samples_per_prompt=2 or more"),
        ([*GROUP, "rollout.top_k=1"], 1, "all of them are the same: every advantage would be 0"),
        ([*GROUP, "critic.path=saved"], 1, "critic.path=null, or algo.advantage=gae"),
        (["algo.advantage=reinforce_pp", "algo.gae_lambda_critic=1.0"], 1, "Set algo.gae_lambda_critic=null"),
        (["algo.advantage=rloo", "algo.gae_length_alpha=0.05"], 1, "algo.advantage=rloo has no critic"),
        ([*GROUP, "algo.critic_warmup_steps=2"], 1, "Set algo.critic_warmup_steps=0"),
        ([*GROUP, "algo.critic_warmup_lambda=1.0"], 1, "Set algo.critic_warmup_lambda=null"),
        ([*GROUP, "algo.gamma=0.9"], 1, "Set algo.gamma=1.0"),
        (["algo.divide_by_std=false"], 1, "only algo.advantage=group makes, not gae"),
        (["algo.dual_clip=1.28", "algo.ratio_eps_high=0.28"], 1, "1 + algo.ratio_eps_high = 1.28"),
        (["algo.dual_clip=1.1"], 1, "1 + algo.ratio_eps = 1.2"),
        (["algo.policy_loss=cispo", "algo.cispo_ratio_max=0.28"], 1, "the bounds themselves, not distances from 1"),
        (["algo.policy_loss=cispo", "algo.ratio_eps_high=0.28"], 1, "algo.ratio_eps_high=0.28 bounds the ratio"),
        (["algo.policy_loss=cispo", "algo.dual_clip=3"], 1, "algo.dual_clip=3 bounds the ratio"),
        (["algo.cispo_ratio_max=3"], 1, "algo.cispo_ratio_max=3 bounds the ratio of algo.policy_loss=cispo alone"),
        (["algo.kl_in=loss", "algo.kl_estimator=k1"], 1, "a gradient of 0 in expectation"),
        (["algo.kl_importance_weight=true"], 1, "algo.kl_in=reward puts none there"),
        (["rollout.temperature=0"], 1, "a number above 0"),
        (["rollout.verify_refit=0"], 1, "at least 1"),
        (["rollout.consistency.max_share=1.1"], 1, "a number in [0, 1]"),
        (["rollout.consistency.importance_cap=0.5"], 1, "at least 1"),
        ([*ONE_TEMPERATURE, "rollout.consistency.policy=mask"], 1, "rollout.consistency.policy=mask"),
        (["algo.old_logprobs=engine", "rollout.consistency.policy=mask"], 1, "policy=mask weighs every token"),
        (["algo.old_logprobs=engine", "algo.overwrite_truncated_with_eos=true"], 1, "an EOS that the engine never"),
        (["algo.old_logprobs=engine", *ONE_TEMPERATURE], 1, "takes them at rollout.temperature=0.6"),
        ([*ONE_TEMPERATURE, "rollout.consistency.policy=correct"], 1, "rollout.consistency.policy=correct"),
        (["rollout.max_rounds=9"], 1, "rollout.max_rounds=9 has no effect with rollout.keep_groups=all"),
        (["rollout.keep_groups=mixed", "rollout.max_rounds=1"], 1, "leaves no round"),
        (["rollout.keep_groups=mixed", "rollout.n_samples_per_prompt=1"], 1, "n_samples_per_prompt=1 none has both"),
        (["algo=dapo", "rollout.top_k=1"], 1, "or rollout.keep_groups=all and rollout.max_rounds=10."),
        (["rollout.keep_groups=mixed", "rollout.top_k=1"], 1, "all responses to a prompt are the same"),
        (["reward.overlong_penalty=0.5"], 1, "no effect with reward.overlong_buffer_tokens=null"),
        (["reward.overlong_buffer_tokens=96"], 1, "max_response_tokens=96 without a loss"),
        (["reward.overlong_buffer_tokens=8", "reward.overlong_penalty=0"], 1, "takes nothing from the responses"),
        ([*ONE_TEMPERATURE, "rollout.consistency.policy=stop"], 1, "rollout.temperature=0.6 every token differs"),
        (["rollout.ahead=2"], 1, "rollout.ahead=2 is out of range; accepted: a number in [0, 1]"),
        (["rollout.ahead=1"], 1, "rollout.consistency.policy=warn does not correct for that"),
        (["rollout.ahead=1", "rollout.consistency.policy=stop"], 1, "Set rollout.consistency.policy=correct"),
        ([*AHEAD, "rollout.top_p=0.9"], 1, "rollout.top_p=0.9 samples from a part of it"),
        ([*AHEAD, "rollout.top_k=50"], 1, "rollout.top_k=50 samples from a part of it"),
        ([*AHEAD, *ONE_TEMPERATURE], 1, "policy=correct acts on differences"),
    ],
)
def test_one_broken_rule_is_one_problem(overrides, world_size, told):
    (problem,) = problems_of(*overrides, world_size=world_size)
    assert told in problem


@pytest.mark.parametrize(
    ("overrides", "world_size"),
    [
        (["actor.tensor_model_parallel_size=2", "actor.pipeline_model_parallel_size=2"], 4),
        (["actor.tensor_model_parallel_size=2", "actor.sequence_parallel=true"], 4),
        (["sft.output=null", "sft.max_tokens=161", "sft.micro_batch_size=48", "data.sft_path=null"], 1),
        (["algo.critic_warmup_steps=1000", "trainer.max_steps=null"], 1),
        (["algo.kl_coef=0", "algo.value_clip=null", "algo.reward_clip=null", "actor.optim.clip_grad=0"], 1),
        (["algo.dual_clip=1.3", "algo.ratio_eps_high=0.28"], 1),
        (["algo.policy_loss=cispo", "algo.cispo_ratio_max=1"], 1),
        (["algo.kl_in=loss", "algo.kl_estimator=k1", "algo.kl_importance_weight=true"], 1),
        (["algo.kl_in=loss", "algo.kl_estimator=k1", "algo.kl_coef=0"], 1),
        (["reward.incorrect=-1"], 1),
        # What verdicts earn is not read under a function of one's own, but for a response on which it fails.
        (["reward.function=mine.py:f", "reward.no_answer=0", "reward.correct=0", "algo.reward_clip=0.1"], 1),
        (["critic.optim.lr=0", "critic.optim.min_lr=0", "critic.path=saved"], 1),
        (["sft.optim.lr=0", "sft.optim.min_lr=0", "sft.output=null"], 1),
        ([*ONE_TEMPERATURE, "rollout.consistency.policy=warn"], 1),
        ([*GROUP, "critic.global_batch_size=96", "critic.micro_batch_size=7", "critic.optim.lr=0"], 1),
        (["algo.advantage=reinforce_pp", "rollout.n_samples_per_prompt=1", "algo.gamma=0.9"], 1),
        ([*GROUP, "rollout.n_samples_per_prompt=2", "algo.divide_by_std=false"], 1),
        (["rollout.consistency.policy=stop", "algo.logprob_temperature=one", "rollout.temperature=1"], 1),
        (["algo.old_logprobs=engine", "rollout.consistency.policy=stop"], 1),
        (["rollout.keep_groups=mixed", "rollout.max_rounds=2", "rollout.n_samples_per_prompt=2"], 1),
        (AHEAD, 1),
        ([*AHEAD, "algo=dapo", "algo.overwrite_truncated_with_eos=true"], 1),
        (["reward.overlong_buffer_tokens=95", "reward.overlong_penalty=0.5"], 1),
        (["actor.tensor_model_parallel_size=2", "data.rollout_batch_size=64"], None),
    ],
)
def test_values_at_the_edge_of_a_rule_pass(overrides, world_size):
    assert problems_of(*overrides, world_size=world_size) == []


def test_all_that_stands_in_the_way_of_sampling_ahead_is_told_at_once():
    others = ["algo.old_logprobs=engine", "rollout.top_p=0.9", "rollout.top_k=9", *ONE_TEMPERATURE]
    told = [problem for problem in problems_of("rollout.ahead=1", *others) if "rollout.ahead=1" in problem]
    assert len(told) == 4 and all("or rollout.ahead=0." in problem for problem in told)
    assert "rollout.top_p=0.9 and rollout.top_k=9 samples" in told[2]


def test_the_values_at_which_a_key_without_effect_is_nobodys_wish_are_those_of_conf():
    config, _ = quickstart()
    assert (config.rollout.max_rounds, config.reward.overlong_penalty) == (10, 1.0)


def test_without_a_shape_its_rules_are_silent():
    config, shape = quickstart("actor.tensor_model_parallel_size=4", "rollout.max_response_tokens=4000")
    assert len(check(config, shape, 4)) == 2
    assert check(config, None, 4) == []


def test_a_window_bounds_the_tokens_where_it_is_narrower_than_the_positions():
    config, shape = quickstart("rollout.max_prompt_tokens=60", "rollout.max_response_tokens=60", "sft.max_tokens=120")
    assert check(config, dataclasses.replace(shape, sliding_window=120), 1) == []
    told = check(config, dataclasses.replace(shape, sliding_window=119), 1, critic_shape=shape)
    assert len(told) == 2 and "= 120, but the model's sliding_window is 119. Use a response of 59 or less" in told[0]
    assert "sft.max_tokens=120 is above the model's sliding_window, 119" in told[1]


def test_a_critic_of_its_own_must_fit_the_layout_and_the_tokens_too():
    config, shape = quickstart("actor.tensor_model_parallel_size=2", "actor.pipeline_model_parallel_size=2")
    smaller = dataclasses.replace(shape, num_layers=1, num_query_groups=1, max_position_embeddings=100)
    assert check(config, shape, 4, critic_shape=shape) == []
    told = check(config, shape, 4, critic_shape=smaller)
    for part in ("the critic's 1 query groups", "the critic's 1 layers", "the critic's max_position_embeddings is 100"):
        assert sum(part in problem for problem in told) == 1
    assert len(told) == 3


def test_every_number_of_the_schema_has_a_range():
    def numbers(kind: type, path: str) -> set[str]:
        found = set()
        for name, hint in get_type_hints(kind).items():
            for option in get_args(hint) or (hint,):
                if dataclasses.is_dataclass(option):
                    found |= numbers(option, f"{path}{name}.")
                elif option in (int, float) and get_origin(hint) is not list:
                    found.add(f"{path}{name}")
        return found

    ranks = {f"placement.{field.name}" for field in dataclasses.fields(PlacementConfig)}  # which have rules instead
    assert numbers(Config, "") - ranks == set(RANGES)


@pytest.mark.parametrize(
    ("interval", "within", "outside"),
    [("(0, 1]", [1e-9, 1], [0, 1.1]), ("[0, 1)", [0, 0.999], [1, -1e-9]), ("[1, inf)", [1, 1e9], [0.5])],
)
def test_intervals_are_read_as_written_and_hold_no_infinity(interval, within, outside):
    assert all(inside(value, interval) for value in within)
    assert not any(inside(value, interval) for value in [*outside, float("inf"), float("nan")])


def test_intervals_are_said_in_words():
    assert [interval_in_words(i) for i in ("[1, inf)", "(0, inf)", "[0, 1)", "(-inf, inf)")] == [
        "at least 1",
        "a number above 0",
        "a number in [0, 1)",
        "a finite number",
    ]


def test_context_parallel_is_refused_with_the_reason():
    config, _ = quickstart("actor.context_parallel_size=2")
    for machine, reason in ((CPU, "a GPU, and none is visible"), (GPU, "do not cut sequences over ranks")):
        (problem,) = check_machine(config, machine)
        assert reason in problem and "actor.context_parallel_size=1" in problem


def test_transformer_engine_is_refused_where_the_package_is_not():
    config, _ = quickstart("model.transformer_engine=true")
    (problem,) = check_machine(config, Machine(has_gpu=True, has_transformer_engine=False))
    assert "transformer_engine, which is not installed" in problem and "null" in problem
    assert check_machine(config, GPU) == []


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("model.apply_rope_fusion=true", "needs a GPU"),
        ("model.fp8=hybrid", "model.fp8=hybrid needs a GPU"),
        ("model.gradient_accumulation_fusion=true", "Apex"),
    ],
)
def test_kernels_are_refused_where_they_are_not_and_taken_where_they_are(setting, reason):
    config, _ = quickstart(setting, "model.precision=bf16")
    (problem,) = check_machine(config, CPU)
    assert reason in problem
    assert check_machine(config, GPU) == []


def test_kernels_of_transformer_engine_and_layers_without_it_are_refused_together():
    config, _ = quickstart("model.fp8=e4m3", "model.transformer_engine=false", "model.precision=bf16")
    (problem,) = check_machine(config, GPU)
    assert "model.fp8=e4m3" in problem and "model.transformer_engine=null" in problem


def test_files_that_are_there_pass_and_others_are_named(tmp_path):
    here = tmp_path / "train.jsonl"
    here.touch()
    config, _ = quickstart(
        "data.generate=null", f"data.train_path={here}", "data.eval_path=gone.jsonl", "sft.output=null"
    )
    (problem,) = check_machine(config, CPU)
    assert "data.eval_path='gone.jsonl'" in problem


def hf_folder(path, **changes) -> ModelConfig:
    hf = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 8,
        "intermediate_size": 96,
        "vocab_size": 1000,
        "max_position_embeddings": 128,
    }
    (path / "config.json").write_text(json.dumps({**hf, **changes}))
    return dataclasses.replace(quickstart()[0].model, path=str(path), create=None)


def test_the_shape_comes_from_the_models_own_config(tmp_path):
    shape = read_shape(hf_folder(tmp_path, num_key_value_heads=4, tie_word_embeddings=True))
    assert shape == ModelShape(
        num_layers=2,
        hidden_size=64,
        num_attention_heads=8,
        num_query_groups=4,
        ffn_hidden_size=96,
        vocab_size=1000,
        max_position_embeddings=128,
        tied=True,
        model_type="llama",
    )
    assert read_shape(hf_folder(tmp_path)).num_query_groups == 8


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "gpt2"}, "supported: llama, qwen2, qwen3"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
    ],
)
def test_models_that_cannot_be_trained_here_are_refused(tmp_path, changes, told):
    with pytest.raises(ValueError, match=told):
        read_shape(hf_folder(tmp_path, **changes))


def test_a_created_model_of_another_size_is_not_taken_over_in_silence(tmp_path):
    config, _ = quickstart()
    there = hf_folder(tmp_path, max_position_embeddings=160, num_hidden_layers=4)
    with pytest.raises(ValueError, match="model.create.hidden_size=128.*Remove that folder"):
        read_shape(dataclasses.replace(there, create=config.model.create))


def test_held_out_demonstrations_are_looked_for_where_they_are_read(tmp_path):
    file = tmp_path / "held_out.jsonl"
    config, _ = quickstart(f"data.sft_eval_path={file}", "sft.eval_every=5")
    (problem,) = check_machine(config, CPU)
    assert f"data.sft_eval_path='{file}' is not a file" in problem
    assert check_machine(quickstart(f"data.sft_eval_path={file}")[0], CPU) == []
    file.touch()
    assert check_machine(config, CPU) == []


def test_a_broken_link_in_a_model_is_told_as_such_where_the_file_matters(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    config, _ = quickstart()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, path=str(model)))
    before = check_machine(config, CPU)
    (model / "README.md").symlink_to("../blobs/1")
    assert check_machine(config, CPU) == before
    (model / "model-1.safetensors").symlink_to("blobs/2")
    (problem,) = (text for text in check_machine(config, CPU) if text not in before)
    assert f"model-1.safetensors is a link to {model.resolve()}/blobs/2, which is not there" in problem
    assert "permission" not in problem


def test_weights_and_biases_are_refused_where_the_package_is_not():
    config, _ = quickstart("trainer.wandb.enabled=true")
    (problem,) = check_machine(config, dataclasses.replace(CPU, has_wandb=False))
    assert 'pip install "nemo-simplerl[wandb]"' in problem
    assert check_machine(config, CPU) == []
    config, _ = quickstart()
    assert check_machine(config, dataclasses.replace(CPU, has_wandb=False)) == []


def test_a_critic_with_sizes_of_its_own_has_the_rest_of_the_actors_layout():
    config, _ = quickstart(
        "actor.tensor_model_parallel_size=2", "actor.sequence_parallel=true", "critic.tensor_model_parallel_size=1"
    )
    actor, critic = config.layout_of("actor"), config.layout_of("critic")
    assert actor == config.actor
    assert critic == dataclasses.replace(actor, tensor_model_parallel_size=1, sequence_parallel=False)
    assert problems_of("actor.sequence_parallel=true", "critic.tensor_model_parallel_size=2", world_size=2) == []
