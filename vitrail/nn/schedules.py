"""Schedules: values as pure functions of the step, which counts from 0, without state."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Horizon:
    """The length of a run, of which every schedule is a fraction.

    Attributes:
        steps: training steps of the run.
        steps_per_epoch: len(source) / global batch size; below 1 for tiny sources.
    """

    steps: int
    steps_per_epoch: float

    def steps_in(self, epochs: float) -> int:
        """Returns the steps of `epochs` epochs, rounded, at most those of the run."""
        return min(self.steps, round(epochs * self.steps_per_epoch))


def cosine(
    step: int,
    steps: int,
    start: float,
    end: float,
    warmup: int = 0,
    warmup_from: float = 0.0,
    inclusive: bool = False,
) -> float:
    """Returns a value linear from `warmup_from` to `start`, then half a cosine to `end`.

    At step `warmup` the value is `start`; at `steps` and after it is `end`.

    Args:
        step: the training step, from 0.
        steps: step at which the value is `end`.
        start: value after the warmup.
        end: last value.
        warmup: number of warmup steps.
        warmup_from: value at step 0, if there is a warmup.
        inclusive: the value is `start` at the last step of the warmup already, as in
            numpy.linspace(warmup_from, start, warmup).
    """
    if step < warmup:
        length = max(1, warmup - 1) if inclusive else warmup
        return warmup_from + (start - warmup_from) * step / length
    if step >= steps:
        return end
    progress = (step - warmup) / max(1, steps - warmup)
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))


def linear(step: int, steps: int, start: float, end: float) -> float:
    """Returns a value linear from `start` at step 0 to `end` at `steps`, constant after."""
    return end if step >= steps else start + (end - start) * step / steps
