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


def older_samples_are_corrected(config: Config) -> Iterator[str]:
    """One step ahead the weight of a token is the trained policy's probability of it over the sampling policy's."""
    rollout, algo = config.rollout, config.algo
    if rollout.ahead == 0:
        return
    policy = rollout.consistency.policy
    if policy != "correct":
        yield (
            f"rollout.ahead=1 samples by weights that are one refit old, and rollout.consistency.policy={policy} "
            "does not correct for that. Set rollout.consistency.policy=correct, or rollout.ahead=0."
        )
    if algo.old_logprobs == "engine":
        yield (
            "rollout.ahead=1 needs the log-probabilities of the policy that is trained, and with "
            "algo.old_logprobs=engine there are only those of the one that sampled. Set algo.old_logprobs=trainer, or "
            "rollout.ahead=0."
        )
    cuts = [f"rollout.top_p={rollout.top_p:g}"] * (rollout.top_p < 1)
    cuts += [f"rollout.top_k={rollout.top_k}"] * (rollout.top_k > 0)
    if cuts:
        yield (
            f"rollout.ahead=1 weighs each token by a ratio of probabilities over the whole vocabulary, and "
            f"{' and '.join(cuts)} samples from a part of it. Set rollout.top_p=1 and rollout.top_k=0, or "
            "rollout.ahead=0."
        )
    if policy in ("off", "warn") and algo.logprob_temperature == "one" and rollout.temperature != 1.0:
        yield (  # under the other policies gate_compares_like_with_like says so
            f"rollout.ahead=1 weighs each token by a ratio of probabilities at one temperature, but they are at "
            f"rollout.temperature={rollout.temperature} in the engine and, with algo.logprob_temperature=one, at 1 in "
            "the trainer. Set algo.logprob_temperature=sampling, or rollout.ahead=0."
        )
