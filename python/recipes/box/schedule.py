"""The course of a learning rate."""

from __future__ import annotations

import math

# Of the full rate, at the end: steps that still move, and settle what came before.
LAST_PART = 0.02


def learning_rate(rate: float, step: int, warm_up_steps: int, part: float) -> float:
    """The rate at a step: a linear warm-up to `rate`, then half a cosine down.

    `part` is how much of the way down is behind, from 0 to 1.
    """
    down = LAST_PART + (1 - LAST_PART) * 0.5 * (1 + math.cos(math.pi * part))
    return rate * min(1.0, (step + 1) / warm_up_steps) * down


def progress(step: int, steps: int, seconds: float, minutes: float | None) -> float:
    """How much of a run is behind, from 0 to 1: it ends after its steps or, sooner, its minutes."""
    part = step / steps
    if minutes is not None:
        part = max(part, seconds / (60 * minutes))
    return min(part, 1.0)
