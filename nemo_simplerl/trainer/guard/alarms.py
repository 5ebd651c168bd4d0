"""Alarms on the metrics of a running run: spikes, a collapsed entropy, a mean reward back where it began."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from nemo_simplerl.config.schema import AlarmsConfig, RewardConfig

# The policy's loss is left out: with whitened advantages it is a small number on either side of 0.
_SPIKING = ("critic/value_loss", "critic/grad_norm", "actor/grad_norm", "actor/approx_kl")
_LEARNED_SHARE = 0.2  # of the way from no_answer to correct, before a fall back counts
_SUDDEN = 3  # steps in a row that tell a collapse where none of the window before them was as low
_KEPT = (*_SPIKING, "actor/entropy", "reward/mean")

MetricsRow = Mapping[str, Any]


def alarms(
    history: Sequence[MetricsRow], now: MetricsRow, limits: AlarmsConfig, reward: RewardConfig
) -> dict[str, str]:
    """What is wrong with a step's metrics, in words by the name of the metric.

    history: metrics of the steps before it, oldest first.
    """
    found = [(name, _spike(name, _values(history, name), _value(now, name), limits)) for name in _SPIKING]
    found.append(("actor/entropy", _entropy(_values(history, "actor/entropy"), now, limits)))
    found.append(("reward/mean", _reward(_values(history, "reward/mean"), now, limits, reward)))
    return {name: text for name, text in found if text is not None}


class Alarms:
    """The alarms of a run, each reported once.

    more: further alarms of a step's metrics alone, by name. history: the rows of metrics.jsonl so far; their alarms
    count as reported.
    """

    def __init__(
        self,
        limits: AlarmsConfig,
        reward: RewardConfig,
        history: Iterable[MetricsRow] = (),
        more: Callable[[MetricsRow], dict[str, str]] = lambda row: {},
    ):
        self._limits, self._reward, self._more = limits, reward, more
        self._history: list[dict[str, float]] = []
        self._reported: set[str] = set()
        for row in history:
            self.check(row)

    def check(self, metrics: MetricsRow) -> list[str]:
        """Add a step's metrics to the history and return the alarms that were not reported before, in words."""
        row = {name: value for name in _KEPT if (value := _value(metrics, name)) is not None}
        found = alarms(self._history, row, self._limits, self._reward) | self._more(metrics)
        self._history.append(row)
        news = [text for name, text in found.items() if name not in self._reported]
        self._reported |= found.keys()
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


def _entropy(before: Sequence[float], now: MetricsRow, limits: AlarmsConfig) -> str | None:
    entropy, most = _value(now, "actor/entropy"), max(before, default=0.0)
    if entropy is None or len(before) < limits.window:
        return None
    if entropy >= limits.min_entropy or most < 2 * limits.min_entropy:
        return None
    return (
        f"actor/entropy is {entropy:.4g} nats after {most:.4g} (trainer.alarms.min_entropy={limits.min_entropy:g}): "
        "the policy hardly explores any more; a lower actor.optim.lr or an algo.entropy_bonus may help"
    )


def _reward(before: Sequence[float], now: MetricsRow, limits: AlarmsConfig, reward: RewardConfig) -> str | None:
    mean, best, floor = _value(now, "reward/mean"), max(before, default=reward.no_answer), reward.no_answer
    if mean is None or best - floor < _LEARNED_SHARE * (reward.correct - floor):
        return None
    is_low = [value - floor < limits.min_reward_share * (best - floor) for value in (*before, mean)]
    # A step of few samples is low by chance: several are, in a run where none was, or a whole window is.
    window, last, earlier = limits.window, is_low[-_SUDDEN:], is_low[:-_SUDDEN]
    is_sudden = all(last) and len(earlier) >= window and not any(earlier[-window:])
    if not (is_sudden or (len(before) >= window and all(is_low[-window:]))):
        return None
    return (
        f"reward/mean is {mean:.4g} after {best:.4g}, and no answer at all gives {floor:g} "
        f"(trainer.alarms.min_reward_share={limits.min_reward_share:g}): the policy collapsed; read its last rollouts"
    )


def _values(rows: Sequence[MetricsRow], name: str) -> list[float]:
    return [value for row in rows if (value := _value(row, name)) is not None]


def _value(row: MetricsRow, name: str) -> float | None:
    """A metric of a step; None where it is absent or not finite."""
    value = row.get(name)
    return None if value is None or not math.isfinite(value) else float(value)
