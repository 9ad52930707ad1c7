"""The order of samples: streams of epochs, pure functions of (seed, position) and of groups."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from vitrail.data.contract import WINDOW, Source
from vitrail.nn.random import philox


class Order(ABC):
    """The samples of each step; abstract."""

    @abstractmethod
    def indices(self, step: int) -> Int[Tensor, " G"]:
        """Returns the samples of a step's global batch, int64."""


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


class BlockOrder(Order):
    """A SampleOrder in which samples of a block stay near each other: few blocks are read at once.

    Every epoch is a permutation of the blocks, cut into windows of `window` blocks, and in each
    window a permutation of its samples. A run reads from at most `window` blocks at a time, or
    twice as many when a batch straddles two windows. With one window it is a SampleOrder.
    WebDataset and Hugging Face streams shuffle shards, then samples through a buffer; here the
    buffer is the window, and any place of the stream is computed without those before it.

    Args:
        blocks: runs that make up range(n), in any order; empty ones are left out.
        batch_size: G, the samples of the global batch.
        seed: of the permutations.
        window: number of blocks that are shuffled together.
    """

    def __init__(self, blocks: Sequence[range], batch_size: int, seed: int, window: int = WINDOW):
        filled = [block for block in blocks if len(block)]
        assert filled
        assert batch_size > 0
        assert window > 0
        self._starts = np.array([block.start for block in filled])
        self._sizes = np.array([len(block) for block in filled])
        self._n_samples = int(self._sizes.sum())
        self._batch_size = batch_size
        self._seed = seed
        self._window = window
        self._blocks = lru_cache(maxsize=2)(self._draw_blocks)
        self._samples = lru_cache(maxsize=2)(self._draw_samples)

    def _draw_blocks(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the blocks of an epoch in order, and where in it each window ends."""
        order = philox(self._seed, "block order", epoch).permutation(len(self._sizes))
        ends = np.cumsum(self._sizes[order])
        last = np.arange(self._window - 1, len(order) + self._window - 1, self._window)
        return order, ends[np.minimum(last, len(order) - 1)]

    def _draw_samples(self, epoch: int, window: int) -> np.ndarray:
        order, _ = self._blocks(epoch)
        chosen = order[window * self._window : (window + 1) * self._window]
        sizes = self._sizes[chosen]
        before = np.cumsum(sizes) - sizes
        samples = np.repeat(self._starts[chosen] - before, sizes) + np.arange(sizes.sum())
        return philox(self._seed, f"order in window {window}", epoch).permutation(samples)

    def indices(self, step: int) -> Int[Tensor, " G"]:
        position, stop = step * self._batch_size, (step + 1) * self._batch_size
        parts = []
        while position < stop:
            epoch, offset = divmod(position, self._n_samples)
            _, ends = self._blocks(epoch)
            window = int(np.searchsorted(ends, offset, side="right"))
            end = int(ends[window])
            samples = self._samples(epoch, window)
            taken = samples[len(samples) - (end - offset) :][: stop - position]
            parts.append(taken)
            position += len(taken)
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def default_order(source: Source, batch_size: int, seed: int) -> Order:
    """Returns a random order of all samples in every epoch; by blocks if the source has any."""
    blocks = source.blocks()
    if blocks is None:
        return SampleOrder(len(source), batch_size, seed)
    return BlockOrder(blocks, batch_size, seed)


def epoch_at(step: int, length: int, batch_size: int) -> tuple[int, range]:
    """Returns the epoch of a step, and all steps of that epoch, for epochs that do not overlap.

    A step belongs to the epoch of its first sample in the stream, (s * G) // length. So epochs are
    whole steps, length / G of them on average; if that is below 1 each step is an epoch of its own,
    and the numbers between are left out.

    Args:
        step: s, from 0.
        length: of an epoch, in samples.
        batch_size: G, the samples of the global batch.
    """
    epoch = step * batch_size // length
    first, stop = (-(-e * length // batch_size) for e in (epoch, epoch + 1))
    return epoch, range(first, stop)


class GroupOrder(Order):
    """One epoch in which every group is drawn about equally often, whatever its size.

    Caron et al. 2018, section 3.3; `UnifLabelSampler` of facebookresearch/deepcluster at 2d1927e:
    as many draws of each non-empty group, all shuffled. Each is drawn e = ceil(length / groups)
    times, without replacement if it has e samples or more, else with replacement. Of these
    e · groups draws, the excess over the epoch's length, fewer than there are groups, is cut off at
    random: a group is drawn at most e times, and at least e minus the excess; with more groups than
    draws, some are not drawn at all.

    Departures: there, an epoch has n samples and ends in a part of a batch; here it has whole
    steps. There e is floor(n / groups) + 1, and a group of just e samples is drawn with
    replacement.

    Args:
        groups: int64 [n], the group of each sample; negative: never drawn. On any device.
        batch_size: G, the samples of the global batch.
        seed: the draws are a function of (seed, epoch, groups).
        epoch: number of this epoch.
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
    """Returns `length` samples, int64, equally many of each group, shuffled."""
    by_group = np.argsort(groups, kind="stable")
    sizes = np.unique(groups[groups >= 0], return_counts=True)[1]
    if not len(sizes):
        raise ValueError("no sample is in a group, so that there is nothing to draw")
    members = np.split(by_group[len(groups) - sizes.sum() :], np.cumsum(sizes)[:-1])
    each = -(-length // len(members))
    draws = [random.choice(group, each, replace=len(group) < each) for group in members]
    return random.permutation(np.concatenate(draws))[:length].astype(np.int64)
