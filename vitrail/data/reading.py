"""Images of a source read a few at a time, in worker processes where asked, bad ones replaced."""

import signal
from collections.abc import Generator, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitrail.data.batch import BadSampleError, Sample, Source
from vitrail.data.detail import Detail
from vitrail.nn.random import philox

# Images of a request. They are held at full size, 36 MB each for 12-megapixel photographs: 0.6 GB
# a request, however large the batch. Fewer would save little and cross the processes more often.
CHUNK = 16

# Requests that each worker is ahead: one being decoded, one ready.
PREFETCH = 2

# At any share of bad files that a run may allow, so many in a row do not happen by chance.
REDRAWS = 64


class Request(NamedTuple):
    """Samples to read. With a batch size, bad ones are replaced by redraws of (seed, step, row)."""

    indices: list[int]
    step: int = 0
    first_row: int = 0  # of the global batch
    batch_size: int | None = None


class Slice(NamedTuple):
    """What came of a request. Images are packed in one buffer: one handle crosses the processes."""

    pixels: UInt8[Tensor, " N"]
    shapes: Int[Tensor, "B 3"]
    indices: Int[Tensor, " B"]
    bad: list[tuple[str, str]]  # (id, reason), newly found
    complete: bool  # every row holds an image

    def images(self, device: torch.device) -> list[UInt8[Tensor, "C _ _"]]:
        """The images on a device, after one transfer."""
        buffer = self.pixels.to(device, non_blocking=True)
        shapes = self.shapes.tolist()
        parts = buffer.split([c * h * w for c, h, w in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


class Reader(Dataset[Slice]):
    """Reads slices. A pure function of the request, but for what it remembers to be bad."""

    def __init__(
        self, source: Source, seed: int, known_bad: Iterable[str], detail: Detail | None = None
    ):
        self.source = source
        self._detail = detail
        self._seed = seed
        self._known_bad = set(known_bad)

    def __getitem__(self, request: Request) -> Slice:
        bad: list[tuple[str, str]] = []
        samples, indices = [], []
        for offset, wanted in enumerate(request.indices):
            for candidate in self._candidates(request, offset, wanted):
                sample = self._try(candidate, bad)
                if sample is not None:
                    samples.append(sample)
                    indices.append(candidate)
                    break
        images = [sample.image for sample in samples]
        return Slice(
            torch.cat([image.flatten() for image in images]) if images else _NO_PIXELS,
            torch.tensor([tuple(image.shape) for image in images], dtype=torch.long).view(-1, 3),
            torch.tensor(indices, dtype=torch.long),
            bad,
            complete=len(indices) == len(request.indices),
        )

    def _candidates(self, request: Request, offset: int, wanted: int) -> Iterator[int]:
        yield wanted
        if request.batch_size is None:
            return
        draws_GR = philox(self._seed, "redraw", request.step).random((request.batch_size, REDRAWS))
        for draw in draws_GR[request.first_row + offset]:
            yield int(draw * len(self.source))

    def _try(self, index: int, bad: list[tuple[str, str]]) -> Sample | None:
        id = self.source.id(index)
        if id in self._known_bad:
            return None
        try:
            return self.source.read(index, self._detail)
        except BadSampleError as error:
            self._known_bad.add(id)
            bad.append((id, error.reason))
            return None


_DEAD_WORKER = "DataLoader worker (pid"  # how torch's message of it starts

_NO_PIXELS = torch.empty(0, dtype=torch.uint8)


class _Requests:
    """A sampler of requests, made as they are asked for."""

    def __init__(self, requests: Iterable[Request]):
        self._requests = requests

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)


def read_slices(
    reader: Reader, requests: Iterable[Request], workers: int, pin_memory: bool = False
) -> Generator[Slice, None, None]:
    """The slices, in order. Workers live until the last one, or until the iterator is closed.

    Raises:
        OSError: a worker died (killed for memory, or crashed by a file), or the machine failed.
    """
    loader = DataLoader(
        reader,
        batch_size=None,
        sampler=_Requests(requests),
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        collate_fn=_as_it_is,
        worker_init_fn=_start_worker,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # its own: torch's global state stays as it is
    )
    slices: Any = None
    try:
        slices = iter(loader)
        yield from slices
    except (RuntimeError, ConnectionError, EOFError) as error:
        # The last two: it died while an image was being handed over.
        if isinstance(error, RuntimeError) and not str(error).startswith(_DEAD_WORKER):
            raise
        raise OSError(
            f"{reader.source.spec}: a process that reads images died ({str(error).strip()}); "
            "the memory may have run out, or a file crashes its decoder: use --workers 0 to see "
            "the cause"
        ) from error
    finally:
        # Not left to the garbage collector: the traceback of an error keeps the iterator alive, and
        # its workers, which ignore SIGTERM, would be waited for at exit without end.
        if slices is not None and workers:
            slices._shutdown_workers()


def _as_it_is(of: Any) -> Any:
    return of


def _start_worker(_: int) -> None:
    """Signals to the whole process group are the main process's to answer: it saves, then stops
    the workers. They also stop by themselves when it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
