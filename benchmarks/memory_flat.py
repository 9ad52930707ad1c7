"""The growth of memory over thousands of batches, for steps that should leave it flat.

    python -m benchmarks.memory_flat [--steps 10000] [--save]

The inputs are tiny images in files (JPEGs of mixed sizes, one of them bad), decoded in the main
process and in two workers, and digits in memory. The resident memory of each process is sampled a
hundred times; the result is its growth after the first tenth of the steps. It takes about five
minutes on one core.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from benchmarks.timing import one_line, provenance
from vitrail.data.contract import Source
from vitrail.data.loading.loader import Loader
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.sources.registry import open_source
from vitrail.data.views.plan import MultiCrop, ViewPlan

RESULTS = Path(__file__).parent / "results"
BATCH = 8
READINGS = 100
PAGE = os.sysconf("SC_PAGE_SIZE") / 2**20  # MiB


class Reading(NamedTuple):
    """The resident memory after a step.

    Attributes:
        step: number of the step.
        main: memory of the main process in MiB.
        worker: memory of its largest worker in MiB.
    """

    step: int
    main: float
    worker: float


def resident(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def read_memory(step: int) -> Reading:
    workers = [resident(child.pid) for child in multiprocessing.active_children() if child.pid]
    return Reading(step, resident(os.getpid()), max(workers, default=0.0))


def all_views(source: Source) -> ViewPlan:
    """Returns a plan of two small views, with every operation that the source's channels allow."""
    if source.channels == 3:
        return MultiCrop(global_size=8, n_local=0).plan()
    return MultiCrop(global_size=8, n_local=0, jitter=0, grey=0, mean=(0.5,), std=(0.5,)).plan()


def watch(
    source: Source, plan: ViewPlan, workers: int, steps: int, readings: int = READINGS
) -> list[Reading]:
    """Takes steps and reads the memory at regular intervals, the last time after the last step."""
    loader = Loader(
        source,
        plan,
        batch_size=BATCH,
        seed=0,
        device="cpu",
        workers=workers,
        quarantine=Quarantine(None, len(source)),
    )
    weight = torch.zeros((), requires_grad=True)
    every = max(1, steps // readings)
    found = []
    for step, [batch] in enumerate(loader.steps(0, steps), 1):
        (batch.views[0].mean() * weight).square().backward()
        weight.grad = None
        if step % every == 0:
            loader.meter.take()
            found.append(read_memory(step))
    return found


def growth(readings: list[Reading]) -> tuple[float, float]:
    """Returns the growth in MiB of (main, worker) after the first tenth, between medians."""
    tenth = max(1, len(readings) // 10)
    early, late = readings[tenth : 2 * tenth], readings[-tenth:]
    return (
        statistics.median(x.main for x in late) - statistics.median(x.main for x in early),
        statistics.median(x.worker for x in late) - statistics.median(x.worker for x in early),
    )


def tiny_files(folder: Path, count: int = 64) -> Source:
    """Writes JPEG files of 24 to 55 pixels a side, one of them bad, and opens them."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        height, width = random.integers(24, 56, 2)
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.jpg")
    (folder / "bad.jpg").write_bytes(b"no picture")
    return open_source(f"folder:{folder}")


def row(name: str, workers: int, readings: list[Reading]) -> str:
    main, worker = growth(readings)
    middle, end = readings[len(readings) // 2], readings[-1]
    of_worker = f"{end.worker:.0f} | {worker:+.1f}" if workers else "| "
    return (
        f"| {name} | {workers} | {end.step:,} | {readings[len(readings) // 10].main:.0f} | "
        f"{middle.main:.0f} | {end.main:.0f} | {main:+.1f} | {of_worker} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--save", action="store_true", help="write to benchmarks/results/")
    args = parser.parse_args()
    if args.steps < READINGS:
        parser.error(f"--steps must be at least {READINGS}")
    torch.set_num_threads(1)
    origin = provenance("cpu")
    with tempfile.TemporaryDirectory() as folder:
        files = tiny_files(Path(folder) / "images")
        plan = all_views(files)
        rows = [row("files", n, watch(files, plan, n, args.steps)) for n in (0, 2)]
        digits = open_source("digits")
        rows.append(row("memory", 0, watch(digits, all_views(digits), 0, args.steps)))
    lines = [
        "# `python -m benchmarks.memory_flat`",
        "",
        f"{one_line(origin)}.",
        "",
        f"Resident memory in MiB, batches of {BATCH} tiny images. Growth: from the second tenth of "
        "the steps to the last, medians.",
        "",
        "| source | workers | steps | main at 10 % | 50 % | end | growth | worker at the end | "
        "growth |",
        "|---|---|---|---|---|---|---|---|---|",
        *rows,
    ]
    print("\n".join(lines))
    if args.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "memory_flat_cpu.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
