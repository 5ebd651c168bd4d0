"""Steps in which nothing is learnt, told by their metrics."""

from collections.abc import Mapping
from typing import Any

from nemo_simplerl.config.schema import Config
from nemo_simplerl.reward.grade import reward_of

_VERDICTS = ("correct", "incorrect", "no_answer")
_SHOW = "show the model worked examples (data.examples, with data.template=question-answer for a base model)"
_MOSTLY_CUT = 0.5  # of the responses


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
            f"worse one, and there was nothing to learn. Read its rollouts; {_remedy(verdict, metrics, config)}."
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


def _remedy(verdict: str, metrics: Mapping[str, Any], config: Config) -> str:
    """What to try where every response earned the reward of `verdict`, in words."""
    if verdict == "correct":
        return "bring harder problems"
    if verdict == "reward.function":
        return f"see what it pays for, and bring problems of another difficulty, or {_SHOW}"
    is_cut = verdict == "no_answer" and (metrics.get("rollout/truncated_share") or 0.0) > _MOSTLY_CUT
    cut = "most were cut: raise rollout.max_response_tokens, or " if is_cut else ""
    show = "" if config.data.examples else f"{_SHOW}, or "
    taught = (
        "begin with a warm start on right answers of the model's own (simplerl distill PROBLEMS --model MODEL "
        "--samples 16 --box, then sft.output and data.sft_path)"
    )
    if verdict == "no_answer":
        return f"{cut}{show}{taught}, or try another data.template"
    return (
        f"bring easier problems, sample more responses to each (rollout.n_samples_per_prompt), {show}{taught}; and "
        "check the gold answers: simplerl data --check-golds"
    )


def _only_reward(metrics: Mapping[str, Any], config: Config) -> str | None:
    """The most frequent verdict where all samples of the step, more than one, earned the same for their verdicts;
    "reward.function" where a function of the user's paid them the same."""
    if config.reward.function is not None:
        return "reward.function" if metrics.get("reward/all_equal") else None
    shares = {verdict: metrics.get(f"reward/{verdict}_share") or 0.0 for verdict in _VERDICTS}
    given = [name for name in _VERDICTS if shares[name] > 0]
    samples, clip = config.data.rollout_batch_size * config.rollout.n_samples_per_prompt, config.algo.reward_clip
    bound = float("inf") if clip is None else clip
    if metrics.get("reward/overlong_mean"):
        return None  # responses of different lengths earn different rewards
    if samples == 1 or len({max(-bound, min(bound, reward_of(name, config.reward))) for name in given}) != 1:
        return None
    return max(given, key=shares.__getitem__)
