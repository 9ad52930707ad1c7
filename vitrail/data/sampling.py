"""The order of samples: an endless stream of epochs, a pure function of (seed, position)."""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from vitrail.nn.random import philox


class SampleOrder:
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
        """The samples of the global batch, int64."""
        first = step * self._batch_size
        stop = first + self._batch_size
        n = self._n_samples
        epochs = range(first // n, (stop - 1) // n + 1)
        stream = np.concatenate([self._permutation(epoch) for epoch in epochs])
        offset = first - epochs.start * n
        return torch.from_numpy(stream[offset : offset + self._batch_size].astype(np.int64))
