"""Schedules: values as pure functions of the step. Steps count from 0; nothing is carried."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Horizon:
    """How long a run is: what every schedule is a fraction of."""

    steps: int
    steps_per_epoch: float  # len(source) / global batch size; below 1 for tiny sources

    def steps_in(self, epochs: float) -> int:
        """Steps in so many epochs, rounded, never more than the run has."""
        return min(self.steps, round(epochs * self.steps_per_epoch))


def cosine(
    step: int, steps: int, start: float, end: float, warmup: int = 0, warmup_from: float = 0.0
) -> float:
    """Linear from `warmup_from` to `start` over `warmup` steps, then half a cosine to `end`.

    At step `warmup` the value is `start`; at `steps` (and after) it is `end`.
    """
    if step < warmup:
        return warmup_from + (start - warmup_from) * step / warmup
    if step >= steps:
        return end
    progress = (step - warmup) / max(1, steps - warmup)
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))


def linear(step: int, steps: int, start: float, end: float) -> float:
    """Straight from `start` at step 0 to `end` at `steps`, constant after."""
    return end if step >= steps else start + (end - start) * step / steps
