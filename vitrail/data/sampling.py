"""The order of samples: streams of epochs, pure functions of (seed, position) and of groups."""

from abc import ABC, abstractmethod
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from vitrail.nn.random import philox


class Order(ABC):
    """Abstract. Which samples a step sees."""

    @abstractmethod
    def indices(self, step: int) -> Int[Tensor, " G"]:
        """The samples of the global batch, int64."""


class SampleOrder(Order):
    """Row r of step s is position p = s * G + r of the stream: sample permutation(p // n)[p % n].

    Every epoch has its own permutation of the n samples and visits each exactly once; a batch may
    straddle two epochs, or span many when the source is smaller than the batch.
    """

    def __init__(self, n_samples: int, batch_size: int, seed: int):
        assert n_samples > 0
        assert batch_size > 0
        self._n_samples = n_samples
        self._batch_size = batch_size
        self._seed = seed
        self._permutation = lru_cache(maxsize=2)(self._draw_permutation)

    def _draw_permutation(self, epoch: int) -> np.ndarray:
        return philox(self._seed, "order", epoch).permutation(self._n_samples)

    def indices(self, step: int) -> Int[Tensor, " G"]:
        first = step * self._batch_size
        stop = first + self._batch_size
        n = self._n_samples
        epochs = range(first // n, (stop - 1) // n + 1)
        stream = np.concatenate([self._permutation(epoch) for epoch in epochs])
        offset = first - epochs.start * n
        return torch.from_numpy(stream[offset : offset + self._batch_size].astype(np.int64))


def epoch_at(step: int, length: int, batch_size: int) -> tuple[int, range]:
    """The epoch that a step is of, and all steps of that epoch: for epochs that do not overlap.

    A step belongs to the epoch of its first sample in the stream, (s * G) // length. So epochs are
    whole steps, length / G of them on average; where that is below 1 each step is of an epoch of
    its own, and the numbers between are left out.

    Args:
        length: of an epoch, in samples.
    """
    epoch = step * batch_size // length
    first, stop = (-(-e * length // batch_size) for e in (epoch, epoch + 1))
    return epoch, range(first, stop)


class GroupOrder(Order):
    """One epoch in which every group is drawn equally often, whatever its size.

    Caron et al. 2018, section 3.3; `UnifLabelSampler` of facebookresearch/deepcluster at 2d1927e:
    as many draws of each non-empty group, without replacement where the group has more samples than
    that and with replacement where it has not, all shuffled. Departures: there, an epoch has n
    samples and ends in a part of a batch; here it has whole steps. There each group is drawn
    floor(n / groups) + 1 times, here ceil(length / groups), and a random excess is cut off.

    Args:
        groups: int64 [n], the group of each sample; negative: never drawn. On any device.
        epoch: the draws are a function of (seed, epoch, groups).
        steps: the steps of this epoch.

    Raises:
        ValueError: no sample is in a group.
    """

    def __init__(
        self, groups: Int[Tensor, " n"], batch_size: int, seed: int, epoch: int, steps: range
    ):
        self._steps = steps
        self._batch_size = batch_size
        random = philox(seed, "group order", epoch)
        self._stream = _equal_draws(groups.cpu().numpy(), len(steps) * batch_size, random)

    def indices(self, step: int) -> Int[Tensor, " G"]:
        first = self._steps.index(step) * self._batch_size
        return torch.from_numpy(self._stream[first : first + self._batch_size])


def _equal_draws(groups: np.ndarray, length: int, random: np.random.Generator) -> np.ndarray:
    by_group = np.argsort(groups, kind="stable")
    sizes = np.unique(groups[groups >= 0], return_counts=True)[1]
    if not len(sizes):
        raise ValueError("no sample is in a group, so that there is nothing to draw")
    members = np.split(by_group[len(groups) - sizes.sum() :], np.cumsum(sizes)[:-1])
    each = -(-length // len(members))
    draws = [random.choice(some, each, replace=len(some) < each) for some in members]
    return random.permutation(np.concatenate(draws))[:length].astype(np.int64)
