"""Does memory stay flat? Thousands of batches and a step that keeps nothing, watched from outside.

    python -m benchmarks.memory_flat [--steps 10000] [--save]

Tiny images of files (JPEG, of mixed sizes, one of them bad), decoded in the main process and in two
workers, and digits in memory. The resident memory of every process is read a hundred times; what
counts is its growth after the first tenth of the steps. About five minutes of one core.
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
LOOKS = 100
PAGE = os.sysconf("SC_PAGE_SIZE") / 2**20  # MiB


class Look(NamedTuple):
    """Resident memory after a step, in MiB: of the main process, and of its largest worker."""

    step: int
    main: float
    worker: float


def resident(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def look(step: int) -> Look:
    workers = [resident(child.pid) for child in multiprocessing.active_children() if child.pid]
    return Look(step, resident(os.getpid()), max(workers, default=0.0))


def all_views(source: Source) -> ViewPlan:
    """Two small views, with every operation that the source's channels allow."""
    if source.channels == 3:
        return MultiCrop(global_size=8, n_local=0).plan()
    return MultiCrop(global_size=8, n_local=0, jitter=0, grey=0, mean=(0.5,), std=(0.5,)).plan()


def watch(
    source: Source, plan: ViewPlan, workers: int, steps: int, looks: int = LOOKS
) -> list[Look]:
    """Takes steps, and looks at the memory now and then; the last look is after the last step."""
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
    every = max(1, steps // looks)
    found = []
    for step, [batch] in enumerate(loader.steps(0, steps), 1):
        (batch.views[0].mean() * weight).square().backward()
        weight.grad = None
        if step % every == 0:
            loader.meter.take()
            found.append(look(step))
    return found


def growth(looks: list[Look]) -> tuple[float, float]:
    """MiB from the end of the first tenth to the last tenth: (main, worker), medians of looks."""
    tenth = max(1, len(looks) // 10)
    early, late = looks[tenth : 2 * tenth], looks[-tenth:]
    return (
        statistics.median(x.main for x in late) - statistics.median(x.main for x in early),
        statistics.median(x.worker for x in late) - statistics.median(x.worker for x in early),
    )


def tiny_files(folder: Path, count: int = 64) -> Source:
    """JPEG files of 24 to 55 pixels a side, one of them bad."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        height, width = random.integers(24, 56, 2)
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.jpg")
    (folder / "bad.jpg").write_bytes(b"no picture")
    return open_source(f"folder:{folder}")


def row(name: str, workers: int, looks: list[Look]) -> str:
    main, worker = growth(looks)
    middle, end = looks[len(looks) // 2], looks[-1]
    of_worker = f"{end.worker:.0f} | {worker:+.1f}" if workers else "| "
    return (
        f"| {name} | {workers} | {end.step:,} | {looks[len(looks) // 10].main:.0f} | "
        f"{middle.main:.0f} | {end.main:.0f} | {main:+.1f} | {of_worker} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--save", action="store_true", help="into benchmarks/results/")
    args = parser.parse_args()
    if args.steps < LOOKS:
        parser.error(f"--steps must be at least {LOOKS}")
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
