"""The batches of a run: a pure function of the step, so a run can resume at any step.

Shape legend: G samples of the global batch · B of this rank's slice · V views · C channels · S side
· H, W an image.
"""

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Int, UInt8, UInt16
from torch import Tensor

from vitrail.data.contract import Batch, Source, number_of
from vitrail.data.loading.cuda_stream import ViewStream, to_device
from vitrail.data.loading.order import Order, default_order
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.loading.reader import CHUNK, REDRAWS, Image, Reader, Request, Slice
from vitrail.data.loading.wait_time import Meter
from vitrail.data.loading.workers import check_workers, read_slices
from vitrail.data.views.apply import ViewsOfBatch
from vitrail.data.views.plan import ViewPlan
from vitrail.nn.random import Draws

# Images of one size, and images of one size or of mixed sizes.
Stack = UInt8[Tensor, "_ C H W"] | UInt16[Tensor, "_ C H W"]
Images = list[Image] | Stack


class Loader:
    """Batches of one rank: rows [rank * G / world, (rank + 1) * G / world) of the global batch.

    Sources in memory are one tensor on the device. Files are prefetched by `workers` processes, or
    decoded on demand with 0, and become views `CHUNK` at a time: the decoded images of a whole
    slice are never in memory together. A sample that cannot be read is quarantined and replaced by
    a redrawn one, the same in every run. On CUDA, views are computed beside the step.

    Args:
        source: of the samples.
        plan: of the views.
        batch_size: G, the samples of the global batch.
        seed: of the order and of the views.
        device: where the views are computed.
        rank: of this process, from 0.
        world: number of processes that share the batch.
        accumulate: number of accumulation slices that a rank's share is cut into.
        workers: number of processes that decode; 0 decodes in this one.
        quarantine: the list of bad samples.

    Attributes:
        meter: measures the time that steps wait, and for what.

    Raises:
        ValueError: a batch size that does not divide among ranks and accumulation slices, or a
            plan for another number of channels than the source's.
    """

    def __init__(
        self,
        source: Source,
        plan: ViewPlan,
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        workers: int = 0,
        quarantine: Quarantine,
    ):
        assert 0 <= rank < world
        if batch_size < 1 or accumulate < 1 or batch_size % (world * accumulate):
            raise ValueError(
                f"batch_size is {batch_size} over all ranks; it must be a multiple of "
                f"{world} ranks x {accumulate} accumulation slices"
            )
        if len(plan.mean) != source.channels:
            raise ValueError(
                f"the views' mean has {len(plan.mean)} values, but images of {source.spec} have "
                f"{source.channels} channels; give mean and std one value a channel, which "
                f"`vitrail stats {source.spec}` prints, or open the images with another number "
                "of channels"
            )
        check_workers(workers)
        self._source = source
        self._plan = plan
        self._batch_size = batch_size
        self._seed = seed
        self._device = torch.device(device)
        self._workers = workers
        self._stream = ViewStream(self._device)
        self.meter = Meter(self._device, workers)
        self._share = rank, world
        self._quarantine = quarantine
        self._order = default_order(source, batch_size, seed)
        self._slice_size = batch_size // (world * accumulate)
        first = rank * accumulate
        self._starts = [(first + i) * self._slice_size for i in range(accumulate)]

    def steps(self, start: int, stop: int, order: Order | None = None) -> Iterator[list[Batch]]:
        """Yields a list of accumulation slices for every step in [start, stop).

        Args:
            start: the first step.
            stop: the step after the last.
            order: of the samples; by default every epoch is a random order of all.
        """
        order = order or self._order
        pixels = self._source.pixels()
        if pixels is not None:
            pixels = pixels.to(self._device)
            self._stream.wait_for_current()
            return self._steps_in_memory(pixels, range(start, stop), order)
        return self._steps_of_files(range(start, stop), order)

    def every_image(self, block: int) -> Iterator[tuple[list[int], Images]]:
        """Yields this rank's share of all readable images, in order: (indices, images on device).

        Args:
            block: images that go to one rank together, a multiple of CHUNK; the ranks take blocks
                by turns. A block of files comes in parts.
        """
        assert block % CHUNK == 0
        rank, world = self._share
        pixels = self._source.pixels()
        if pixels is not None:
            for start in range(rank * block, len(pixels), world * block):
                rows = range(start, min(start + block, len(pixels)))
                yield list(rows), pixels[rows.start : rows.stop].to(self._device)
            return
        chunks = [c for c in _chunks(len(self._source)) if c.start // block % world == rank]
        for index, images in read_images(self._source, self._quarantine, self._workers, chunks):
            yield index, [image.to(self._device) for image in images]

    def _steps_in_memory(self, pixels: Stack, steps: range, order: Order) -> Iterator[list[Batch]]:
        for step in steps:
            indices = order.indices(step)
            parts = [(first, indices[first : first + self._slice_size]) for first in self._starts]
            yield self._made(
                self._batch_in_memory(step, first, index, pixels) for first, index in parts
            )

    def _steps_of_files(self, steps: range, order: Order) -> Iterator[list[Batch]]:
        reader = Reader(self._source, self._seed, self._quarantine.entries, self._plan.detail)
        slices = read_slices(reader, self._requests(steps, order), self._workers)
        try:
            for step in steps:
                yield self._made(
                    self._batch_of_files(step, first, slices) for first in self._starts
                )
        finally:
            slices.close()

    def _made(self, parts: Iterable[Batch]) -> list[Batch]:
        """Returns a step's batches, computed on the stream of views."""
        with self.meter.stalled():
            with self._stream.queue():
                batches = list(parts)
            self._stream.join(batches)
        return batches

    def _requests(self, steps: range, order: Order) -> Iterator[Request]:
        for step in steps:
            indices = order.indices(step).tolist()
            for first in self._starts:
                for rows in _chunks(self._slice_size):
                    start, stop = first + rows.start, first + rows.stop
                    yield Request(indices[start:stop], step, start, redraw=True)

    def _batch_in_memory(
        self, step: int, first: int, index: Int[Tensor, " B"], pixels: Stack
    ) -> Batch:
        draws = self._draws(step, first)
        made = self._views_of_slice()
        self._add(made, draws, _rows(pixels, to_device(index, self._device)))
        return self._batch(made, index, draws)

    def _batch_of_files(self, step: int, first: int, slices: Iterator[Slice]) -> Batch:
        draws = self._draws(step, first)
        made = self._views_of_slice()
        index: list[int] = []
        for rows in _chunks(self._slice_size):
            of_rows = draws.narrow(rows.start, len(rows))
            index += self._read(of_rows, slices, made)
        return self._batch(made, torch.tensor(index), draws)

    def _read(self, draws: Draws, slices: Iterator[Slice], made: ViewsOfBatch) -> list[int]:
        """Adds the views of one chunk of images and returns its indices."""
        with self.meter.waited():
            read = next(slices)
        self.meter.read(read.took)
        for id, reason in read.bad:
            self._quarantine.add(id, reason)
        if not read.complete:
            raise ValueError(
                f"{self._source.spec}: {REDRAWS} samples in a row could not be read at step "
                f"{draws.step}; {len(self._quarantine.entries)} of {len(self._source)} are known "
                "to be bad; repair or remove them"
            )
        self._add(made, draws, read.images(self._device))
        return read.indices

    def _draws(self, step: int, first: int) -> Draws:
        return Draws(self._seed, step, self._batch_size, first, self._slice_size)

    def _views_of_slice(self) -> ViewsOfBatch:
        return ViewsOfBatch(self._plan, self._slice_size, self._device)

    def _add(self, made: ViewsOfBatch, draws: Draws, images: Images) -> None:
        sizes = torch.tensor([tuple(image.shape[1:]) for image in images])
        with self.meter.views():
            made.add(images, self._plan.sample(draws, sizes))

    def _batch(self, made: ViewsOfBatch, index: Int[Tensor, " B"], draws: Draws) -> Batch:
        with self.meter.views():
            views = made.finish()
        labels = [self._source.label(i) for i in index.tolist()]
        numbers = torch.tensor([number_of(label) for label in labels])
        text = self._captions(index) if self._source.captioned else None
        there, label = to_device(torch.stack([index, numbers]), self._device).unbind()
        return Batch(views, there, label, draws, text)

    def _captions(self, index: Int[Tensor, " B"]) -> tuple[str, ...]:
        texts = (self._source.text(i) for i in index.tolist())
        return tuple(text or "" for text in texts)


def _rows(pixels: Stack, index: Int[Tensor, " B"]) -> Stack:
    """Returns the images of these indices."""
    # CUDA may lack indexing of uint16: the bits are taken as int16.
    if pixels.dtype == torch.uint16:
        return pixels.view(torch.int16)[index].view(torch.uint16)
    return pixels[index]


def _chunks(n: int) -> list[range]:
    """Returns [0, n) in runs of CHUNK."""
    return [range(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]


def read_images(
    source: Source,
    quarantine: Quarantine,
    workers: int = 0,
    rows: list[range] | None = None,
) -> Iterator[tuple[list[int], list[Image]]]:
    """Yields every readable image once, in order, for evaluation: (indices, images on the CPU).

    Args:
        source: of the images.
        quarantine: where bad samples are added; they are left out.
        workers: number of processes that decode; 0 decodes in this one.
        rows: the indices to read, at most CHUNK in a range; all by default.

    Raises:
        ValueError: too many samples are bad.
    """
    chunks = [list(part) for part in (_chunks(len(source)) if rows is None else rows)]
    pixels = source.pixels()
    if pixels is not None:
        for chunk in chunks:
            yield chunk, list(pixels[chunk[0] : chunk[-1] + 1])
        return
    reader = Reader(source, 0, quarantine.entries)
    slices = read_slices(reader, map(Request, chunks), workers)
    try:
        for read in slices:
            for id, reason in read.bad:
                quarantine.add(id, reason)
            if read.indices:
                yield read.indices, read.images(torch.device("cpu"))
    finally:
        slices.close()
