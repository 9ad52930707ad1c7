"""Randomness as a pure function of (seed, stream, step, sample): nothing is saved.

Philox is a counter-based generator: its n-th draw is a function of a key and n alone. Every draw in
vitrail is made for the *global* batch and then sliced, so that it does not depend on how many ranks
share the batch, and a resumed run makes the draws of the uninterrupted one.

Shape legend: B samples of this slice · G samples of the global batch · V views.
"""

import hashlib
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor


def philox(seed: int, stream: str, step: int, block: int = 0) -> np.random.Generator:
    """A generator whose draws depend on the arguments only.

    Args:
        seed: the run's seed, >= 0.
        stream: what the draws are for ("views", "drop_path", ...); streams are independent.
        step: the training step, or the epoch for a sample order, >= 0.
        block: to start at; four draws of 64 bits each are left out a block, < 2^64.
    """
    stream_key = int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest(), "little")
    key = np.array([seed, stream_key], dtype=np.uint64)
    # The two low words count the draws themselves; the third sets the steps 2^128 draws apart.
    counter = np.array([block, 0, step, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def philox_rows(
    seed: int, stream: str, step: int, first: int, count: int, width: int
) -> np.ndarray:
    """Rows [first, first + count) of the table `philox(...).random((anything, width))`.

    Rows that are not asked for are not drawn: their numbers of the counter are left out.

    Returns:
        float64 [count, width] in [0, 1).
    """
    blocks, before = divmod(first * width, _DRAWS_A_BLOCK)
    random = philox(seed, stream, step, blocks)
    return random.random(before + count * width)[before:].reshape(count, width)


_DRAWS_A_BLOCK = 4  # of Philox 4x64, one value of its counter


@dataclass(frozen=True)
class Draws:
    """The random numbers of one slice [start, start + count) of the global batch at one step."""

    seed: int
    step: int
    batch_size: int  # G, over all ranks and accumulation slices
    start: int
    count: int  # B

    def uniform(self, stream: str, *shape: int, views: int = 1) -> Tensor:
        """Uniform draws in [0, 1) for this slice.

        Args:
            stream: names the use; equal names give equal numbers.
            shape: what each row needs.
            views: rows are view-major, as in `Batch.views`: row v * B + b is view v of sample b.

        Returns:
            float32 tensor [views * B, *shape] on the CPU.
        """
        width = views * math.prod(shape)
        rows = philox_rows(self.seed, stream, self.step, self.start, self.count, width)
        slice_VB = rows.reshape(self.count, views, *shape).swapaxes(0, 1)
        flat = np.ascontiguousarray(slice_VB).reshape(views * self.count, *shape)
        # Rounding a double just under 1 to float32 gives 1.0, which is outside the interval.
        return torch.from_numpy(flat.astype(np.float32)).clamp_(max=1 - 2**-24)

    def narrow(self, start: int, count: int) -> "Draws":
        """The draws of samples [start, start + count) of this slice (gradient accumulation)."""
        assert 0 <= start <= start + count <= self.count
        return replace(self, start=self.start + start, count=count)
