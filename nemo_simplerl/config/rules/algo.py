"""Rules of `algo`, and of the learning rates of actor, critic and warm start."""

from collections.abc import Iterator

from nemo_simplerl.config.schema import Config


def lr_falls(config: Config, section: str) -> Iterator[str]:
    optim = getattr(config, section).optim
    if optim.min_lr > optim.lr:
        yield (
            f"{section}.optim.min_lr={optim.min_lr} is above {section}.optim.lr={optim.lr}. "
            f"The rate falls from lr to min_lr: set min_lr to {optim.lr} or less, such as {0.1 * optim.lr:g}."
        )


def masked_responses_get_no_eos(config: Config) -> Iterator[str]:
    if config.algo.truncated == "mask" and config.algo.overwrite_truncated_with_eos:
        yield (
            "algo.truncated=mask leaves cut responses out of the losses, and "
            "algo.overwrite_truncated_with_eos=true trains them as if they had ended. "
            "Set algo.overwrite_truncated_with_eos=false, or algo.truncated=penalize."
        )


def critic_warmup_ends(config: Config) -> Iterator[str]:
    warmup, steps = config.algo.critic_warmup_steps, config.trainer.max_steps
    if steps is not None and warmup >= steps:
        yield (
            f"algo.critic_warmup_steps={warmup} leaves the actor no step of trainer.max_steps={steps}. "
            f"Set algo.critic_warmup_steps={steps - 1} or less, or trainer.max_steps={warmup + 1} or more."
        )
