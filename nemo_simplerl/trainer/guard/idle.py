"""Steps in which nothing is learnt, told by their metrics."""

from collections.abc import Mapping
from typing import Any

from nemo_simplerl.config.schema import Config
from nemo_simplerl.reward.grade import reward_of

_VERDICTS = ("correct", "incorrect", "no_answer")
_REMEDIES = {
    "correct": "bring harder problems",
    "incorrect": "bring easier problems, and check the gold answers: simplerl data --check-golds",
    "no_answer": "start from a model that boxes its answers (sft.output, another data.template), or raise "
    "rollout.max_response_tokens where most responses are cut",
}


def idle(metrics: Mapping[str, Any], config: Config) -> dict[str, str]:
    """Why a step has taught nothing, in words by the kind of reason; empty where it may have."""
    found = {}
    masked = config.algo.truncated == "mask" and metrics.get("rollout/truncated_share") == 1.0
    if masked:
        found["truncated"] = (
            f"every response was cut at rollout.max_response_tokens={config.rollout.max_response_tokens}, and "
            "algo.truncated=mask leaves cut responses out: the step taught nothing. Raise "
            "rollout.max_response_tokens, or set algo.truncated=penalize."
        )
    if (verdict := _only_reward(metrics, config)) is not None:
        found["reward"] = (
            f"every response of the step earned the same reward ({verdict}): nothing tells a better answer from a "
            f"worse one. Read its rollouts; {_REMEDIES[verdict]}."
        )
    if metrics.get("advantage/equal_groups_share") == 1.0 and "reward" not in found:
        found["groups"] = (
            f"no prompt of the step has responses of different rewards, and algo.advantage={config.algo.advantage} "
            "compares those to one prompt: nothing tells a better answer from a worse one. Raise "
            "rollout.n_samples_per_prompt, or bring problems that are answered right some of the time."
        )
    if metrics.get("actor/grad_norm_max") == 0.0 and not masked:
        found["gradient"] = (
            "the policy's gradients are exactly 0, so the step taught it nothing: every advantage is 0, or every token "
            "is left out of the loss (algo.truncated, rollout.consistency.policy=mask). Look at critic/advantage_std "
            "(without a critic advantage/std), rollout/truncated_share and consistency/weight_mean in metrics.jsonl."
        )
    return found


def _only_reward(metrics: Mapping[str, Any], config: Config) -> str | None:
    """The most frequent verdict where all samples of the step, more than one, earned the same for their verdicts."""
    if config.reward.function is not None:
        return None
    shares = {verdict: metrics.get(f"reward/{verdict}_share") or 0.0 for verdict in _VERDICTS}
    given = [name for name in _VERDICTS if shares[name] > 0]
    samples, clip = config.data.rollout_batch_size * config.rollout.n_samples_per_prompt, config.algo.reward_clip
    bound = float("inf") if clip is None else clip
    if metrics.get("reward/overlong_mean"):
        return None  # responses of different lengths earn different rewards
    if samples == 1 or len({max(-bound, min(bound, reward_of(name, config.reward))) for name in given}) != 1:
        return None
    return max(given, key=shares.__getitem__)
