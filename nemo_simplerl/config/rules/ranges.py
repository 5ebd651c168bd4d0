"""The interval each number of the configuration must lie in, in the notation of a mathematics book."""

AT_LEAST_1 = "[1, inf)"
AT_LEAST_0 = "[0, inf)"
POSITIVE = "(0, inf)"
SHARE = "[0, 1]"
BELOW_1 = "[0, 1)"

_OPTIM = {
    "lr": AT_LEAST_0,
    "min_lr": AT_LEAST_0,
    "lr_warmup_fraction": BELOW_1,
    "weight_decay": AT_LEAST_0,
    "adam_beta1": BELOW_1,
    "adam_beta2": BELOW_1,
    "adam_eps": POSITIVE,
    "clip_grad": AT_LEAST_0,
}

RANGES: dict[str, str] = {
    "model.create.hidden_size": AT_LEAST_1,
    "model.create.num_layers": AT_LEAST_1,
    "model.create.num_attention_heads": AT_LEAST_1,
    "model.create.num_query_groups": AT_LEAST_1,
    "model.create.ffn_hidden_size": AT_LEAST_1,
    "model.create.vocab_size": "[512, inf)",  # 256 bytes, the special tokens, and room for merges
    "model.create.max_position_embeddings": AT_LEAST_1,
    "actor.tensor_model_parallel_size": AT_LEAST_1,
    "actor.pipeline_model_parallel_size": AT_LEAST_1,
    "actor.context_parallel_size": AT_LEAST_1,
    "actor.micro_batch_size": AT_LEAST_1,
    "actor.forward_micro_batch_size": AT_LEAST_1,
    "actor.micro_batch_tokens": AT_LEAST_1,
    "actor.forward_micro_batch_tokens": AT_LEAST_1,
    "actor.global_batch_size": AT_LEAST_1,
    **{f"actor.optim.{name}": interval for name, interval in _OPTIM.items()},
    "critic.micro_batch_size": AT_LEAST_1,
    "critic.forward_micro_batch_size": AT_LEAST_1,
    "critic.micro_batch_tokens": AT_LEAST_1,
    "critic.forward_micro_batch_tokens": AT_LEAST_1,
    "critic.global_batch_size": AT_LEAST_1,
    **{f"critic.optim.{name}": interval for name, interval in _OPTIM.items()},
    "rollout.n_samples_per_prompt": AT_LEAST_1,
    "rollout.max_prompt_tokens": AT_LEAST_1,
    "rollout.max_response_tokens": AT_LEAST_1,
    "rollout.temperature": POSITIVE,
    "rollout.top_p": "(0, 1]",
    "rollout.top_k": AT_LEAST_0,
    "rollout.max_batch_size": AT_LEAST_1,
    "rollout.verify_refit": AT_LEAST_1,  # where it is a number
    "rollout.refit_bucket_mb": AT_LEAST_1,
    "rollout.consistency.max_difference": POSITIVE,
    "rollout.consistency.max_share": SHARE,
    "rollout.consistency.importance_cap": AT_LEAST_1,
    "rollout.trtllm.tensor_parallel_size": AT_LEAST_1,
    "rollout.trtllm.free_gpu_memory_fraction": "(0, 1)",
    "rollout.trtllm.max_batch_size": AT_LEAST_1,
    "rollout.trtllm.max_num_tokens": AT_LEAST_1,
    "reward.correct": "(-inf, inf)",
    "reward.incorrect": "(-inf, inf)",
    "reward.no_answer": "(-inf, inf)",
    "reward.num_workers": AT_LEAST_1,
    "reward.timeout_s": POSITIVE,
    "reward.memory_limit_mb": AT_LEAST_1,
    "algo.gamma": SHARE,
    "algo.gae_lambda": SHARE,
    "algo.kl_coef": AT_LEAST_0,
    "algo.reward_clip": POSITIVE,
    "algo.ratio_eps": POSITIVE,
    "algo.value_clip": POSITIVE,
    "algo.entropy_bonus": AT_LEAST_0,
    "algo.ppo_epochs": AT_LEAST_1,
    "algo.critic_warmup_steps": AT_LEAST_0,
    "algo.ratio_tolerance": POSITIVE,
    "data.rollout_batch_size": AT_LEAST_1,
    "data.eval_limit": AT_LEAST_1,
    "sft.epochs": AT_LEAST_1,
    "sft.max_tokens": "[2, inf)",  # a prompt token and one to predict
    "sft.save_every": AT_LEAST_0,
    "sft.eval_every": AT_LEAST_0,
    "sft.micro_batch_size": AT_LEAST_1,
    "sft.micro_batch_tokens": AT_LEAST_1,
    "sft.global_batch_size": AT_LEAST_1,
    **{f"sft.optim.{name}": interval for name, interval in _OPTIM.items()},
    "trainer.seed": AT_LEAST_0,
    "trainer.max_steps": AT_LEAST_1,
    "trainer.num_episodes": AT_LEAST_1,
    "trainer.eval_every": AT_LEAST_0,
    "trainer.eval_samples": AT_LEAST_0,
    "trainer.save_every": AT_LEAST_0,
    "trainer.keep_last": AT_LEAST_1,
    "trainer.keep_every": AT_LEAST_0,
    "trainer.stop_after_step": AT_LEAST_1,
    "trainer.wandb.samples_every": AT_LEAST_0,
    "trainer.distributed_timeout_s": AT_LEAST_1,
    "trainer.max_bad_updates": AT_LEAST_0,
    "trainer.alarms.window": AT_LEAST_1,
    "trainer.alarms.spike_factor": AT_LEAST_1,
    "trainer.alarms.min_entropy": AT_LEAST_0,
    "trainer.alarms.min_reward_share": SHARE,
    "trainer.watchdog.dead_after_s": POSITIVE,
}


def inside(value: float, interval: str) -> bool:
    """Whether a value lies in an interval such as '(0, 1]'. NaN and infinity lie in none."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value > low if interval[0] == "(" else value >= low
    below = value < high if interval[-1] == ")" else value <= high
    return above and below


def in_words(interval: str) -> str:
    """'[1, inf)' as 'at least 1'; an interval with two ends as itself."""
    low, high = (bound.strip() for bound in interval[1:-1].split(","))
    if low == "-inf":
        return "a finite number"
    if high != "inf":
        return f"a number in {interval}"
    return f"at least {low}" if interval[0] == "[" else f"a number above {low}"
