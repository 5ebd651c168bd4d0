"""Metrics that tell of a run gone wrong while it still goes on: spikes, a dead policy, a reward back where it began."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from nemo_simplerl.config.schema import AlarmsConfig, RewardConfig

# The policy's loss is left out: with whitened advantages it is a small number on either side of 0.
_SPIKING = ("critic/value_loss", "critic/grad_norm", "actor/grad_norm", "actor/approx_kl")
_LEARNED_SHARE = 0.2  # of the way from no_answer to correct, before falling back is news
_KEPT = (*_SPIKING, "actor/entropy", "reward/mean")

Row = Mapping[str, Any]


def alarms(history: Sequence[Row], now: Row, limits: AlarmsConfig, reward: RewardConfig) -> dict[str, str]:
    """By the name of the metric: what is wrong with it in this step, given the steps before it, oldest first."""
    found = [(name, _spike(name, _values(history, name), _value(now, name), limits)) for name in _SPIKING]
    found.append(("actor/entropy", _entropy(_values(history, "actor/entropy"), now, limits)))
    found.append(("reward/mean", _reward(_values(history, "reward/mean"), now, limits, reward)))
    return {name: text for name, text in found if text is not None}


class Alarms:
    """The alarms of a run, each told once; `history` is what metrics.jsonl holds of it so far."""

    def __init__(self, limits: AlarmsConfig, reward: RewardConfig, history: Iterable[Row] = ()):
        self._limits, self._reward = limits, reward
        self._history: list[dict[str, float]] = []
        self._told: set[str] = set()
        for row in history:
            self.hear(row)

    def hear(self, metrics: Row) -> list[str]:
        """New alarms of a step's metrics, in words."""
        row = {name: value for name in _KEPT if (value := _value(metrics, name)) is not None}
        found = alarms(self._history, row, self._limits, self._reward)
        self._history.append(row)
        news = [text for name, text in found.items() if name not in self._told]
        self._told |= found.keys()
        return news


def _spike(name: str, before: Sequence[float], now: float | None, limits: AlarmsConfig) -> str | None:
    recent = before[-limits.window :]
    if now is None or len(recent) < limits.window:
        return None
    middle = median(recent)
    if not now > limits.spike_factor * middle > 0:
        return None
    return (
        f"{name} is {now:.4g}, {now / middle:.0f} times the median of the {len(recent)} steps before, {middle:.4g} "
        f"(trainer.alarms.spike_factor={limits.spike_factor:g})"
    )


def _entropy(before: Sequence[float], now: Row, limits: AlarmsConfig) -> str | None:
    entropy, most = _value(now, "actor/entropy"), max(before, default=0.0)
    if entropy is None or entropy >= limits.min_entropy or most < 2 * limits.min_entropy:
        return None
    return (
        f"actor/entropy is {entropy:.4g} nats after {most:.4g} (trainer.alarms.min_entropy={limits.min_entropy:g}): "
        "the policy hardly explores any more; a lower actor.optim.lr or an algo.entropy_bonus may help"
    )


def _reward(before: Sequence[float], now: Row, limits: AlarmsConfig, reward: RewardConfig) -> str | None:
    mean, best, floor = _value(now, "reward/mean"), max(before, default=reward.no_answer), reward.no_answer
    if mean is None or best - floor < _LEARNED_SHARE * (reward.correct - floor):
        return None
    if mean - floor >= limits.min_reward_share * (best - floor):
        return None
    return (
        f"reward/mean is {mean:.4g} after {best:.4g}, and no answer at all gives {floor:g} "
        f"(trainer.alarms.min_reward_share={limits.min_reward_share:g}): the policy collapsed; read its last rollouts"
    )


def _values(rows: Sequence[Row], name: str) -> list[float]:
    return [value for row in rows if (value := _value(row, name)) is not None]


def _value(row: Row, name: str) -> float | None:
    """None where a step has no such metric, or no finite one."""
    value = row.get(name)
    return None if value is None or not math.isfinite(value) else float(value)
