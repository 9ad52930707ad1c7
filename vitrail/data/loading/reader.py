"""Reading of a source's images, a few at a time; bad ones are replaced."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import UInt8, UInt16
from torch import Tensor

from vitrail.data.contract import BadSampleError, Detail, Sample, Source
from vitrail.data.loading.cuda_stream import to_device
from vitrail.data.loading.wait_time import Moment, Reading
from vitrail.nn.random import philox_rows

# Images of a request. They are in memory at full size, 36 MB each for 12-megapixel photographs:
# 0.6 GB a request, whatever the batch. Fewer would save little and cost more transfers.
CHUNK = 16

# Draws for one row. This many bad ones in a row do not happen by chance at any allowed share.
REDRAWS = 64

Image = UInt8[Tensor, "C _ _"] | UInt16[Tensor, "C _ _"]


class Request(NamedTuple):
    """Samples to read.

    Attributes:
        indices: of the samples in the source.
        step: the training step, which redraws depend on.
        first_row: row of the global batch that the first sample is for.
        redraw: replaces bad samples by redraws of (seed, step, row); else they are left out.
    """

    indices: list[int]
    step: int = 0
    first_row: int = 0
    redraw: bool = False


class Slice(NamedTuple):
    """The answer to a request, with its images in one buffer: one handle crosses the processes.

    Attributes:
        pixels: of all images, interleaved.
        shapes: (H, W, C) of each image.
        indices: of the samples that were read, in the source.
        bad: (id, reason) of samples newly found to be bad.
        complete: True if every row has an image.
        took: the seconds that it took.
    """

    pixels: UInt8[Tensor, " N"] | UInt16[Tensor, " N"]
    shapes: list[tuple[int, int, int]]
    indices: list[int]
    bad: list[tuple[str, str]]
    complete: bool
    took: Reading

    def images(self, device: torch.device) -> list[Image]:
        """Returns the images on a device, after one transfer."""
        buffer = to_device(self.pixels, device)
        parts = buffer.split([h * w * c for h, w, c in self.shapes])
        pairs = zip(parts, self.shapes, strict=True)
        return [part.view(shape).permute(2, 0, 1) for part, shape in pairs]


class Reader:
    """Reads slices: a pure function of the request, but for the samples known to be bad.

    Args:
        source: of the samples.
        seed: of the redraws.
        known_bad: ids of samples that are not read.
        detail: the detail of the images that will be used; None: they are decoded whole.

    Attributes:
        known_bad: ids of samples that are not read; those found to be bad are added.
        note: called with the index of a sample before it is read, and with None after.
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
        """Reads the samples of a request."""
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
        # Decoders interleave channels, and the resize reads them so: that order stays.
        images = [sample.image.permute(1, 2, 0) for sample in samples]
        return Slice(
            torch.cat([image.flatten() for image in images]) if images else NO_PIXELS,
            [(image.shape[0], image.shape[1], image.shape[2]) for image in images],
            indices,
            bad,
            complete=len(indices) == len(request.indices),
            took=start.since(),
        )

    def _candidates(self, request: Request, offset: int, wanted: int) -> Iterator[int]:
        """Yields the sample that is wanted, then those that may replace it."""
        yield wanted
        if not request.redraw:
            return
        row = request.first_row + offset
        [draws_R] = philox_rows(self._seed, "redraw", request.step, row, 1, REDRAWS)
        for draw in draws_R:
            yield int(draw * len(self.source))

    def _try(self, index: int, bad: list[tuple[str, str]]) -> Sample | None:
        """Returns a sample, or None for a bad one, which is added to `bad` if it is new."""
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


NO_PIXELS = torch.empty(0, dtype=torch.uint8)


def _ignore(_: int | None) -> None:
    pass
