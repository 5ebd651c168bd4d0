"""Rules of `algo`, and of the learning rates of actor, critic and warm start."""

from collections.abc import Iterator

from nemo_simplerl.config.schema import Config

# Of conf/rollout/default.yaml and conf/algo/default.yaml, where nobody asked for others.
_MAX_ROUNDS = 10
_CISPO_BOUNDS = {"cispo_ratio_min": 0.0, "cispo_ratio_max": 5.0}


def lr_falls(config: Config, section: str) -> Iterator[str]:
    optim = getattr(config, section).optim
    if optim.min_lr > optim.lr:
        yield (
            f"{section}.optim.min_lr={optim.min_lr} is above {section}.optim.lr={optim.lr}. "
            f"The rate falls from lr to min_lr: set min_lr to {optim.lr} or less, such as {0.1 * optim.lr:g}."
        )


def something_is_learnt(config: Config, section: str) -> Iterator[str]:
    """A learning rate of 0 leaves the weights as they are. A saved critic may be meant to stay as it is."""
    is_read = {"actor": True, "critic": config.critic.path is None, "sft": config.sft.output is not None}[section]
    if is_read and getattr(config, section).optim.lr == 0:
        yield (
            f"{section}.optim.lr=0 never changes a weight: nothing would be learnt. Give {section}.optim.lr a number "
            "above 0" + (", or sft.output=null to do without the warm start." if section == "sft" else ".")
        )


def clipped_rewards_differ(config: Config) -> Iterator[str]:
    clip, rewards = config.algo.reward_clip, config.reward
    if rewards.function is not None:
        return
    given = (rewards.correct, rewards.incorrect, rewards.no_answer)
    if clip is not None and len({max(-clip, min(clip, reward)) for reward in given}) == 1:
        yield (
            f"algo.reward_clip={clip} makes the same reward of reward.correct={rewards.correct}, incorrect="
            f"{rewards.incorrect} and no_answer={rewards.no_answer}: nothing would be learnt. "
            f"Set algo.reward_clip={max(map(abs, given))} or more, or null."
        )


def masked_responses_get_no_eos(config: Config) -> Iterator[str]:
    if config.algo.truncated == "mask" and config.algo.overwrite_truncated_with_eos:
        yield (
            "algo.truncated=mask leaves cut responses out of the losses, and "
            "algo.overwrite_truncated_with_eos=true trains them as if they had ended. "
            "Set algo.overwrite_truncated_with_eos=false, or algo.truncated=penalize."
        )


_GROUPS = ("group", "rloo", "reinforce_pp_baseline")  # values of algo.advantage that compare responses to one prompt


def group_has_others(config: Config) -> Iterator[str]:
    advantage = config.algo.advantage
    if advantage in _GROUPS and config.rollout.n_samples_per_prompt == 1:
        yield (
            f"algo.advantage={advantage} holds a response against the others to its prompt, and "
            "rollout.n_samples_per_prompt=1 samples no other: every advantage would be 0. Set "
            "rollout.n_samples_per_prompt=2 or more (4 to 16 are usual), or algo.advantage=gae or reinforce_pp."
        )
    elif advantage in _GROUPS and config.rollout.top_k == 1 and config.rollout.keep_groups == "all":
        yield (
            f"algo.advantage={advantage} holds a response against the others to its prompt, and with rollout.top_k=1 "
            "all of them are the same: every advantage would be 0. Set rollout.top_k=0, which samples on-policy."
        )


def nothing_is_asked_of_no_critic(config: Config) -> Iterator[str]:
    algo = config.algo
    asked = {
        "critic.path": (config.critic.path, None),
        "placement.critic": (config.placement.critic, None),
        "algo.gae_lambda_critic": (algo.gae_lambda_critic, None),
        "algo.gae_length_alpha": (algo.gae_length_alpha, None),
        "algo.critic_warmup_steps": (algo.critic_warmup_steps, 0),
        "algo.critic_warmup_lambda": (algo.critic_warmup_lambda, None),
    }
    for key, (value, unset) in asked.items():
        if not algo.has_critic and value != unset:
            yield (
                f"{key}={value} is about a critic's values, and algo.advantage={algo.advantage} has no critic. Set "
                f"{key}={'null' if unset is None else unset}, or algo.advantage=gae."
            )


def estimator_reads_its_settings(config: Config) -> Iterator[str]:
    algo = config.algo
    if algo.advantage in _GROUPS and algo.gamma != 1:
        yield (
            f"algo.gamma={algo.gamma} discounts later rewards, and algo.advantage={algo.advantage} adds the rewards of "
            "a response up undiscounted. Set algo.gamma=1.0, or algo.advantage=gae or reinforce_pp."
        )
    if algo.advantage != "group" and not algo.divide_by_std:
        yield (
            "algo.divide_by_std=false leaves out a division that only algo.advantage=group makes, not "
            f"{algo.advantage}. Set algo.divide_by_std=true, or algo.advantage=group."
        )


def mixed_groups_can_be_found(config: Config) -> Iterator[str]:
    rollout = config.rollout
    if rollout.keep_groups == "all":
        if rollout.max_rounds != _MAX_ROUNDS:
            yield (
                f"rollout.max_rounds={rollout.max_rounds} has no effect with rollout.keep_groups=all, whose steps take "
                f"one round. Set rollout.keep_groups=mixed, or leave it at {_MAX_ROUNDS}."
            )
        return
    asked = "rollout.keep_groups=mixed keeps prompts with right and wrong responses"
    do_without = "rollout.keep_groups=all"
    if rollout.max_rounds != _MAX_ROUNDS:
        do_without += f" and rollout.max_rounds={_MAX_ROUNDS}"
    if rollout.n_samples_per_prompt == 1:
        yield (
            f"{asked}, and with rollout.n_samples_per_prompt=1 none has both. Give 2 or more, such as 8, or "
            f"{do_without}."
        )
    elif rollout.top_k == 1:
        yield (
            f"{asked}, and with rollout.top_k=1 all responses to a prompt are the same. Set rollout.top_k=0, or "
            f"{do_without}."
        )
    if rollout.max_rounds == 1:
        yield (
            f"{asked} and samples others in place of the rest, for which rollout.max_rounds=1 leaves no round: such a "
            f"step is that of rollout.keep_groups=all. Give rollout.max_rounds=2 or more, such as {_MAX_ROUNDS}."
        )


def length_alpha_leaves_a_lambda(config: Config) -> Iterator[str]:
    alpha, longest = config.algo.gae_length_alpha, config.rollout.max_response_tokens
    if alpha is not None and alpha * longest <= 1:
        yield (
            f"algo.gae_length_alpha={alpha} makes lambda 0 for every response of at most {1 / alpha:.0f} tokens, and "
            f"rollout.max_response_tokens={longest} allows no longer one. lambda is 1 - 1 / (alpha * tokens): "
            f"{20 / longest:.2g} gives 0.95 to the longest response."
        )


def warmup_lambda_has_steps(config: Config) -> Iterator[str]:
    algo = config.algo
    if algo.advantage == "gae" and algo.critic_warmup_lambda is not None and algo.critic_warmup_steps == 0:
        yield (
            f"algo.critic_warmup_lambda={algo.critic_warmup_lambda} is for the steps that train the critic alone, and "
            "algo.critic_warmup_steps=0 makes none. Set algo.critic_warmup_steps, or algo.critic_warmup_lambda=null."
        )


def critic_warmup_ends(config: Config) -> Iterator[str]:
    warmup, steps = config.algo.critic_warmup_steps, config.trainer.max_steps
    if steps is not None and warmup >= steps:
        yield (
            f"algo.critic_warmup_steps={warmup} leaves the actor no step of trainer.max_steps={steps}. "
            f"Set algo.critic_warmup_steps={steps - 1} or less, or trainer.max_steps={warmup + 1} or more."
        )


def clip_bounds_are_in_order(config: Config) -> Iterator[str]:
    algo = config.algo
    high = algo.ratio_eps if algo.ratio_eps_high is None else algo.ratio_eps_high
    if algo.policy_loss == "clip" and algo.dual_clip is not None and algo.dual_clip <= 1 + high:
        key = "ratio_eps" if algo.ratio_eps_high is None else "ratio_eps_high"
        yield (
            f"algo.dual_clip={algo.dual_clip:g} lies within the clip, whose upper bound is 1 + algo.{key} = "
            f"{1 + high:g}: it would stop tokens that the clip lets learn. Set algo.dual_clip above that (3 and 10 are "
            "usual), or null."
        )
    if algo.policy_loss == "cispo" and not algo.cispo_ratio_min <= 1 <= algo.cispo_ratio_max:
        yield (
            f"algo.cispo_ratio_min={algo.cispo_ratio_min:g} and algo.cispo_ratio_max={algo.cispo_ratio_max:g} do not "
            "have 1 between them, the ratio of a policy that has not moved. They are the bounds themselves, not "
            "distances from 1: 0 and 5 are usual."
        )


def surrogate_reads_its_settings(config: Config) -> Iterator[str]:
    algo = config.algo
    for key in ("ratio_eps_high", "dual_clip"):
        value = getattr(algo, key)
        if algo.policy_loss == "cispo" and value is not None:
            yield (
                f"algo.{key}={value:g} bounds the ratio of algo.policy_loss=clip, and cispo has bounds of its own. Set "
                f"algo.{key}=null (algo.cispo_ratio_max bounds cispo's ratio from above), or algo.policy_loss=clip."
            )
    for key, usual in _CISPO_BOUNDS.items():
        value = getattr(algo, key)
        if algo.policy_loss == "clip" and value != usual:
            yield (
                f"algo.{key}={value:g} bounds the ratio of algo.policy_loss=cispo alone, and clip has algo.ratio_eps. "
                f"Set algo.policy_loss=cispo, or leave it at {usual:g}."
            )


def kl_in_the_loss_teaches(config: Config) -> Iterator[str]:
    algo = config.algo
    if algo.kl_coef_of_loss and algo.kl_estimator == "k1" and not algo.kl_importance_weight:
        yield (
            "algo.kl_in=loss with algo.kl_estimator=k1 has a gradient of 0 in expectation: it adds noise and holds the "
            "policy to nothing. Set algo.kl_estimator=k2 or k3, algo.kl_importance_weight=true, or algo.kl_in=reward."
        )
    if algo.kl_in == "reward" and algo.kl_importance_weight:
        yield (
            "algo.kl_importance_weight=true weighs the KL penalty of the loss, and algo.kl_in=reward puts none there. "
            "Set algo.kl_importance_weight=false, or algo.kl_in=loss."
        )
