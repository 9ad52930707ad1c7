"""The batches of a run, and the objective's hook before each epoch."""

from collections.abc import Iterator
from typing import TypeVar

from vitrail.data.loading.order import GroupOrder, epoch_at
from vitrail.train.contract import Parts

B = TypeVar("B")


def batches(parts: Parts[B], seed: int, start: int) -> Iterator[list[B]]:
    """Yields the accumulation slices of every step from `start` to the end of the run.

    For most objectives they are one stream, which is read ahead over the ends of epochs. For an
    objective with an epoch hook or groups, reading ahead ends with the epoch: the batches of the
    next one may depend on what the hook decides.

    Args:
        parts: the parts of the run.
        seed: the run's seed.
        start: the first step.
    """
    if parts.objective.epoch_hook or parts.objective.groups is not None:
        return _by_epochs(parts, seed, start)
    return parts.feed.batches(start, parts.horizon.steps)


def _by_epochs(parts: Parts[B], seed: int, start: int) -> Iterator[list[B]]:
    objective, feed, step = parts.objective, parts.feed, start
    length = max(1, round(objective.epoch_length * feed.n_samples))
    while step < parts.horizon.steps:
        epoch, steps = epoch_at(step, length, feed.batch_size)
        if step == steps.start:  # within an epoch, its state came with the checkpoint
            for parameter in objective.before_epoch(epoch, seed, feed.embed_all):
                parts.optimizer.state.pop(parameter, None)
        groups = objective.groups
        order = None
        if groups is not None:
            order = GroupOrder(groups, feed.batch_size, seed, epoch, steps)
        stop = min(steps.stop, parts.horizon.steps)
        yield from feed.batches(step, stop, order)
        step = stop
