"""Rules of the engine's log-probabilities: what they are compared with, and what they are used for."""

from collections.abc import Iterator

from nemo_simplerl.config.schema import Config


def gate_compares_like_with_like(config: Config) -> Iterator[str]:
    policy, temperature = config.rollout.consistency.policy, config.rollout.temperature
    if policy in ("mask", "correct", "stop") and config.algo.logprob_temperature == "one" and temperature != 1.0:
        yield (
            f"rollout.consistency.policy={policy} acts on differences between engine and trainer, but with "
            f"algo.logprob_temperature=one and rollout.temperature={temperature} every token differs by design. "
            "Set algo.logprob_temperature=sampling, or rollout.consistency.policy=warn or off."
        )


def engine_logprobs_are_the_policys(config: Config) -> Iterator[str]:
    algo, policy = config.algo, config.rollout.consistency.policy
    if algo.old_logprobs == "trainer":
        return
    if policy in ("mask", "correct"):
        yield (
            f"rollout.consistency.policy={policy} weighs every token by the trainer's log-probability of it, which "
            "algo.old_logprobs=engine does without. Set rollout.consistency.policy=warn, stop or off, or "
            "algo.old_logprobs=trainer."
        )
    if algo.logprob_temperature == "one" and config.rollout.temperature != 1.0:
        yield (
            f"algo.old_logprobs=engine takes them at rollout.temperature={config.rollout.temperature}, and "
            "algo.logprob_temperature=one trains at 1. Set algo.logprob_temperature=sampling, or "
            "algo.old_logprobs=trainer."
        )
    if algo.overwrite_truncated_with_eos:
        yield (
            "algo.overwrite_truncated_with_eos=true trains an EOS that the engine never sampled and has no "
            "log-probability of, which algo.old_logprobs=engine would need. Set one of them to its other value."
        )
