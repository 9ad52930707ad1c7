"""Images of a source read a few at a time, bad ones replaced."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import UInt8, UInt16
from torch import Tensor

from vitrail.data.contract import BadSampleError, Detail, Sample, Source
from vitrail.data.loading.cuda_stream import to_device
from vitrail.data.loading.wait_time import Moment, Reading
from vitrail.nn.random import philox_rows

# Images of a request. They are held at full size, 36 MB each for 12-megapixel photographs: 0.6 GB
# a request, however large the batch. Fewer would save little and cross the processes more often.
CHUNK = 16

# At any share of bad files that a run may allow, so many in a row do not happen by chance.
REDRAWS = 64

Image = UInt8[Tensor, "C _ _"] | UInt16[Tensor, "C _ _"]


class Request(NamedTuple):
    """Samples to read. Bad ones are left out, or replaced by redraws of (seed, step, row)."""

    indices: list[int]
    step: int = 0
    first_row: int = 0  # of the global batch
    redraw: bool = False


class Slice(NamedTuple):
    """What came of a request. Images are packed in one buffer: one handle crosses the processes."""

    pixels: UInt8[Tensor, " N"] | UInt16[Tensor, " N"]
    shapes: list[tuple[int, int, int]]  # H, W, C
    indices: list[int]
    bad: list[tuple[str, str]]  # (id, reason), newly found
    complete: bool  # every row holds an image
    took: Reading

    def images(self, device: torch.device) -> list[Image]:
        """The images on a device, after one transfer."""
        buffer = to_device(self.pixels, device)
        parts = buffer.split([h * w * c for h, w, c in self.shapes])
        pairs = zip(parts, self.shapes, strict=True)
        return [part.view(shape).permute(2, 0, 1) for part, shape in pairs]


class Reader:
    """Reads slices. A pure function of the request, but for what it knows to be bad.

    Attributes:
        known_bad: ids of samples that are not read.
        note: is told the index of a sample before it is read, and None when it was.
    """

    def __init__(
        self, source: Source, seed: int, known_bad: Iterable[str], detail: Detail | None = None
    ):
        self.source = source
        self.known_bad = set(known_bad)
        self.note: Callable[[int | None], None] = _ignore
        self._detail = detail
        self._seed = seed

    def read(self, request: Request) -> Slice:
        start = Moment.now()
        bad: list[tuple[str, str]] = []
        samples, indices = [], []
        for offset, wanted in enumerate(request.indices):
            for candidate in self._candidates(request, offset, wanted):
                sample = self._try(candidate, bad)
                if sample is not None:
                    samples.append(sample)
                    indices.append(candidate)
                    break
        # Decoders interleave channels, and the resize wants them so: they cross in that order.
        images = [sample.image.permute(1, 2, 0) for sample in samples]
        return Slice(
            torch.cat([image.flatten() for image in images]) if images else _NO_PIXELS,
            [(image.shape[0], image.shape[1], image.shape[2]) for image in images],
            indices,
            bad,
            complete=len(indices) == len(request.indices),
            took=start.since(),
        )

    def _candidates(self, request: Request, offset: int, wanted: int) -> Iterator[int]:
        yield wanted
        if not request.redraw:
            return
        row = request.first_row + offset
        [draws_R] = philox_rows(self._seed, "redraw", request.step, row, 1, REDRAWS)
        for draw in draws_R:
            yield int(draw * len(self.source))

    def _try(self, index: int, bad: list[tuple[str, str]]) -> Sample | None:
        id = self.source.id(index)
        if id in self.known_bad:
            return None
        self.note(index)
        try:
            return self.source.read(index, self._detail)
        except BadSampleError as error:
            self.known_bad.add(id)
            bad.append((id, error.reason))
            return None
        finally:
            self.note(None)


_NO_PIXELS = torch.empty(0, dtype=torch.uint8)


def _ignore(_: int | None) -> None:
    pass
