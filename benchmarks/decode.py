"""JPEG decoders against each other, whole and at reduced scale; threads against processes.

Photographs (Debian's `gnome-backgrounds`) cut to 500 x 375 JPEGs of quality 90, decoded from memory
to the uint8 [3, H, W] that a sample is, on one thread; ways are alternated in one process. By how
much a decoder's pixels differ from Pillow's is told. Ours looks at the header and the EXIF
orientation as well and names what is wrong; the others only decode. Those that are not installed
are left out: for all, `pip install simplejpeg PyTurboJPEG torchcodec opencv-python-headless`.

Then the same files are read in chunks of 16 by N threads, and by N worker processes that hand them
over, beside a main thread that has nothing else to do, or makes the two 224-pixel views of SimCLR.

    python -m benchmarks.decode [--images 112 --blocks 9 --workers 2] [--save]
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.decoders import (
    BACKGROUNDS,
    HEIGHT,
    WIDTH,
    Decode,
    agreement,
    decoders,
    encode,
    kinds,
    photographs,
)
from benchmarks.timing import alternate, one_line, provenance, speed_up
from vitrail.data.contract import Detail
from vitrail.data.decode.image import decode_bytes, decode_file
from vitrail.data.views.apply import apply_views
from vitrail.data.views.contract import View
from vitrail.data.views.plan import ViewPlan
from vitrail.nn.random import Draws

RESULTS = Path(__file__).parent / "results"
CHUNK = 16


# ---- what is timed


def decode_all(decode: Decode, files: list[bytes]) -> Tensor:
    for data in files:
        pixels = decode(data)
    return pixels[0, 0, 0]


def decoder_rows(ways: dict[str, Decode], files: list[bytes], blocks: int) -> list[str]:
    work = {name: partial(decode_all, decode, files) for name, decode in ways.items()}
    for way in work.values():
        way()
    times = alternate(work, blocks, calls=1)
    rows = []
    for name, decode in ways.items():
        ratio, least, most = speed_up(times["Pillow"], times[name])
        worst = max(int(agreement(decode, data)) for data in files)
        milliseconds = 1000 * statistics.median(times[name]) / len(files)
        rows.append(
            f"| {name} | {milliseconds:.3f} | {ratio:.2f} ({least:.2f}–{most:.2f}) | {worst} |"
        )
    return rows


@dataclass(frozen=True)
class Forced(Detail):
    """Asks for one reduction of all images."""

    by: int = 1

    def reduction(self, height: int, width: int) -> int:
        return self.by


def decode_reduced(data: bytes, by: int) -> Tensor:
    return decode_bytes(data, 3, "it", Forced((), by))


def reduced_rows(blocks: int) -> list[str]:
    path = max(BACKGROUNDS.glob("wood-*.webp"), key=lambda p: p.stat().st_size)
    with Image.open(path) as image:
        data = encode(image.convert("RGB").resize((4000, 3000)))
    ways = {
        f"1/{by}": partial(decode_all, partial(decode_reduced, by=by), [data])
        for by in (1, 2, 4, 8)
    }
    times = alternate(ways, blocks, calls=1)
    rows = []
    for name in ways:
        ratio, least, most = speed_up(times["1/1"], times[name])
        milliseconds = 1000 * statistics.median(times[name])
        rows.append(f"| {name} | {milliseconds:.1f} | {ratio:.1f} ({least:.1f}–{most:.1f}) |")
    return rows


# ---- threads and processes


@dataclass
class Chunks(Dataset[Tensor]):
    """Files in chunks, decoded and packed in one buffer, as a worker hands them over."""

    files: list[str]

    def __len__(self) -> int:
        return len(self.files) // CHUNK

    def __getitem__(self, index: int) -> Tensor:
        names = self.files[index * CHUNK : (index + 1) * CHUNK]
        return torch.cat([decode_file(name, 3).flatten() for name in names])


def from_threads(chunks: Chunks, workers: int) -> Iterator[Tensor]:
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(chunks.__getitem__, range(len(chunks)))


def from_here(chunks: Chunks) -> Iterator[Tensor]:
    return (chunks[index] for index in range(len(chunks)))


def views_of(buffer: Tensor, step: int) -> Tensor:
    plan = ViewPlan((View(224, (0.08, 1.0)),) * 2, (0.5,) * 3, (0.25,) * 3)
    images = list(buffer.view(CHUNK, 3, HEIGHT, WIDTH))
    sizes = torch.tensor([[HEIGHT, WIDTH]] * CHUNK)
    params = plan.sample(Draws(0, step, CHUNK, 0, CHUNK), sizes)
    return apply_views(images, params, "cpu")[0]


def consume(source: Callable[[], Iterator[Tensor]], busy: bool) -> Tensor:
    last = torch.zeros(1)
    for step, buffer in enumerate(source()):
        last = views_of(buffer, step) if busy else buffer
    return last.flatten()[0]


def reading_rows(chunks: Chunks, workers: int, blocks: int) -> list[str]:
    # Workers start once and live on, as in a run.
    loader = DataLoader(
        chunks, batch_size=None, num_workers=workers, prefetch_factor=2, persistent_workers=True
    )
    sources: dict[str, Callable[[], Iterator[Tensor]]] = {
        "the main thread itself": partial(from_here, chunks),
        f"{workers} threads": partial(from_threads, chunks, workers),
        f"{workers} processes": lambda: iter(loader),
    }
    rows = []
    for busy, beside in ((False, "waits"), (True, "makes views")):
        work = {name: partial(consume, source, busy) for name, source in sources.items()}
        for way in work.values():
            way()
        times = alternate(work, blocks, calls=1)
        count = len(chunks) * CHUNK
        rows += [
            f"| {beside} | {name} | {count / statistics.median(times[name]):.0f} |"
            for name in sources
        ]
    return rows


# ---- the report


def cuda_rows(files: list[bytes], blocks: int) -> list[str]:
    if not torch.cuda.is_available():
        return ["| torchvision.io on CUDA | not yet run |", "| TorchCodec on CUDA | not yet run |"]
    encoded = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
    rows = []
    for name, module in (
        ("torchvision.io", "torchvision.io"),
        ("TorchCodec", "torchcodec.decoders"),
    ):
        try:
            decode = __import__(module, fromlist=["decode_jpeg"]).decode_jpeg
            work = {name: lambda d=decode: d(encoded, device="cuda")[-1][0, 0, 0]}
            work[name]()
        except (ImportError, RuntimeError, OSError) as error:
            rows.append(f"| {name} on CUDA | not run: {str(error).strip().splitlines()[0]} |")
            continue
        seconds = statistics.median(alternate(work, blocks, calls=1)[name])
        exact = decode_bytes(files[-1], 3, "it").int()
        worst = (decode(encoded[-1:], device="cuda")[0].cpu().int() - exact).abs().max()
        rows.append(
            f"| {name} on CUDA | {1000 * seconds / len(files):.3f} ms, largest difference {worst} |"
        )
    return rows


def report(args: argparse.Namespace) -> str:
    torch.set_num_threads(1)
    origin = provenance("cpu")
    cuts = photographs(args.images)
    files = [encode(cut) for cut in cuts]
    ways, missing = decoders()
    of_kinds = kinds(cuts[0])
    with tempfile.TemporaryDirectory() as folder:
        names = [str(Path(folder) / f"{i}.jpg") for i in range(len(files))]
        for name, data in zip(names, files, strict=True):
            Path(name).write_bytes(data)
        reading = reading_rows(Chunks(names), args.workers, args.blocks)
    kilobytes = statistics.mean(map(len, files)) / 1000
    return "\n".join(
        [
            "# `python -m benchmarks.decode`",
            "",
            f"{one_line(origin)}; Pillow {Image.__version__}.",
            "",
            f"{len(files)} cuts of {WIDTH}×{HEIGHT}, {kilobytes:.0f} kB each. Milliseconds an "
            f"image to uint8 [3, H, W]: median of {args.blocks} alternated blocks. Times Pillow's "
            "speed: median, least and most over blocks. Difference: of any pixel from Pillow's.",
            "",
            "| decoder | ms | times Pillow | largest difference |",
            "|---|---|---|---|",
            *decoder_rows(ways, files, args.blocks),
            "",
            *([f"Missing: {'; '.join(missing)}.", ""] if missing else []),
            "Largest difference from Pillow's pixels by kind of file (refused: an error):",
            "",
            f"| decoder | {' | '.join(of_kinds)} |",
            "|---|" + len(of_kinds) * "---|",
            *(
                f"| {name} | {' | '.join(agreement(d, data) for data in of_kinds.values())} |"
                for name, d in ways.items()
            ),
            "",
            "On an accelerator, a batch in one call, an image:",
            "",
            "| decoder | |",
            "|---|---|",
            *cuda_rows(files, args.blocks),
            "",
            "A photograph of 4000×3000 at reduced scale (`vitrail/data/detail.py`):",
            "",
            "| scale | ms | times as fast |",
            "|---|---|---|",
            *reduced_rows(args.blocks),
            "",
            f"Images/s of reading files in chunks of {CHUNK}, handing over included:",
            "",
            "| main thread | read by | images/s |",
            "|---|---|---|",
            *reading,
            "",
        ]
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=112, help="a multiple of 16")
    parser.add_argument("--blocks", type=int, default=9)
    parser.add_argument("--workers", type=int, default=2, help="threads, and processes")
    parser.add_argument("--save", action="store_true", help="into benchmarks/results/")
    args = parser.parse_args()
    if args.images < CHUNK or args.images % CHUNK or min(args.blocks, args.workers) < 1:
        parser.error(f"--images must be a multiple of {CHUNK}, --blocks and --workers above 0")
    return args


def main() -> None:
    args = arguments()
    text = report(args)
    print(text)
    if args.save:
        RESULTS.mkdir(exist_ok=True)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        (RESULTS / f"decode_{device}.md").write_text(text)


if __name__ == "__main__":
    main()
