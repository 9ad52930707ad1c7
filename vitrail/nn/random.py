"""Random numbers as a pure function of (seed, stream, step, sample): there is no state to save.

Philox is a counter-based generator: its n-th draw is a function of a key and n alone. Every draw in
vitrail is made for the *global* batch and then sliced: it does not depend on how many ranks share
the batch, and a resumed run makes the draws of an uninterrupted one.

Shape legend: B samples of this slice · G samples of the global batch · V views.
"""

import hashlib
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


def philox(seed: int, stream: str, step: int, block: int = 0) -> np.random.Generator:
    """Returns a generator whose draws depend on the arguments only.

    Args:
        seed: the run's seed, >= 0.
        stream: use of the draws ("views", "drop_path", ...); streams are independent.
        step: the training step, or the epoch for a sample order, >= 0.
        block: first block of four draws of 64 bits each; earlier ones are skipped; < 2^64.
    """
    stream_key = int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest(), "little")
    key = np.array([seed, stream_key], dtype=np.uint64)
    # The two low words count the draws themselves; the third sets the steps 2^128 draws apart.
    counter = np.array([block, 0, step, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def philox_rows(
    seed: int, stream: str, step: int, first: int, count: int, width: int
) -> np.ndarray:
    """Returns rows [first, first + count) of the table `philox(...).random((any, width))`.

    Other rows are not drawn: their values of the counter are skipped.

    Returns:
        float64 [count, width] in [0, 1).
    """
    blocks, before = divmod(first * width, _DRAWS_A_BLOCK)
    random = philox(seed, stream, step, blocks)
    return random.random(before + count * width)[before:].reshape(count, width)


_DRAWS_A_BLOCK = 4  # of Philox 4x64, for one value of its counter


@dataclass(frozen=True)
class Draws:
    """The random numbers of one slice [start, start + count) of the global batch at one step.

    Attributes:
        seed: the run's seed.
        step: the training step, from 0.
        batch_size: samples of the global batch, G, over all ranks and accumulation slices.
        start: place of the slice in the global batch.
        count: samples of the slice, B.
    """

    seed: int
    step: int
    batch_size: int
    start: int
    count: int

    def uniform(self, stream: str, *shape: int, views: int = 1) -> Tensor:
        """Returns uniform draws in [0, 1) for this slice.

        Args:
            stream: name of the use; equal names give equal numbers.
            shape: shape of the draws of one row.
            views: number of views, V; rows are view-major, as in `Batch.views`: row v * B + b is
                view v of sample b.

        Returns:
            float32 tensor [views * B, *shape] on the CPU.
        """
        width = views * math.prod(shape)
        rows = philox_rows(self.seed, stream, self.step, self.start, self.count, width)
        slice_VB = rows.reshape(self.count, views, *shape).swapaxes(0, 1)
        flat = np.ascontiguousarray(slice_VB).reshape(views * self.count, *shape)
        # clamp: a double just under 1 is rounded to 1.0 in float32, which is outside the interval
        return torch.from_numpy(flat.astype(np.float32)).clamp_(max=1 - 2**-24)

    def narrow(self, start: int, count: int) -> "Draws":
        """Returns the draws of samples [start, start + count) of this slice (accumulation)."""
        assert 0 <= start <= start + count <= self.count
        return replace(self, start=self.start + start, count=count)
