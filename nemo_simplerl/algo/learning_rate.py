"""The learning rate as a function of the update's number. Imports nothing but the standard library."""

import math


def learning_rate(
    update: int, total_updates: int, *, lr: float, min_lr: float, style: str, warmup_fraction: float
) -> float:
    """Learning rate of update 0, 1, ..., total_updates - 1.

    The first ceil(warmup_fraction * total_updates) updates rise linearly: never 0, and `lr` at the last of
    them. Then `constant` stays at `lr`; `linear` and `cosine` fall to `min_lr`, which the last update uses
    (cosine: Loshchilov 2017, arXiv:1608.03983, equation 5, one period). Later updates keep the last rate.
    Raises ValueError for another style.
    """
    if style not in ("constant", "linear", "cosine"):
        raise ValueError(f"unknown learning rate style {style!r}; choose constant, linear or cosine")
    # Without the 1e-9, 0.07 * 100 = 7.000000000000001 would round up to 8.
    warmup = math.ceil(warmup_fraction * total_updates - 1e-9)
    update = min(update, total_updates - 1)
    if update < warmup:
        return lr * (update + 1) / warmup
    if style == "constant":
        return lr
    peak = max(warmup - 1, 0)
    progress = (update - peak) / max(total_updates - 1 - peak, 1)
    remaining = 1.0 - progress if style == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return lr * remaining + min_lr * (1.0 - remaining)
