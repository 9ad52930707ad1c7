"""Images/s of one core, from a JPEG's bytes to normalised views: ours beside four pipelines.

Photographs (Debian's `gnome-backgrounds`) cut to 500 x 375 JPEGs of quality 90, in memory; the
views of DINO (2 x 224 + 10 x 96), SimCLR (2 x 224) and MAE (1 x 224). `view_peers.py` says what the
peers are. Ways are alternated in one process on one thread; the ratio is of blocks that stand side
by side, its median and range over blocks. Ours includes drawing the parameters.

    python -m benchmarks.views [--images 32 --blocks 7 --methods dino simclr mae] [--save]

`--profile` prints where our time goes.
"""

import argparse
import random
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.decode import encode, photographs
from benchmarks.timing import alternate, keep_freed_memory, one_line, provenance, speed_up
from benchmarks.view_peers import Pipeline, kornia, lightly, torchvision_v1, torchvision_v2
from vitrail.data.decode.image import decode_bytes
from vitrail.data.loading.reader import CHUNK
from vitrail.data.views.apply import apply_views
from vitrail.data.views.contract import View
from vitrail.data.views.plan import MultiCrop, RandomResizedCrop, ViewPlan
from vitrail.nn.random import Draws

RESULTS = Path(__file__).parent / "results"

# Chen et al. 2020 and lightly's SimCLRTransform; MAE's is He et al. 2022.
_SIMCLR = View(224, (0.08, 1.0), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, blur=0.5)
_DINO = MultiCrop()
PLANS: dict[str, tuple[str, ViewPlan]] = {
    "dino": ("DINO 2×224 + 10×96", _DINO.plan()),
    "simclr": ("SimCLR 2×224", ViewPlan((_SIMCLR,) * 2, _DINO.mean, _DINO.std)),
    "mae": ("MAE 1×224", RandomResizedCrop(scale=(0.2, 1.0)).plan()),
}
ACCOUNTABLE = ("torchvision v1, Pillow", "lightly")  # the best of these is what ours stands beside


def ours(plan: ViewPlan, step: int = 0) -> Pipeline:
    """As the loader does: chunks of files, their parameters, their views."""

    def run(files: list[bytes]) -> list[Tensor]:
        draws, done = Draws(0, step, len(files), 0, len(files)), []
        for start in range(0, len(files), CHUNK):
            chunk = files[start : start + CHUNK]
            images = [decode_bytes(data, 3, "it", plan.detail) for data in chunk]
            sizes = torch.tensor([image.shape[1:] for image in images])
            params = plan.sample(draws.narrow(start, len(chunk)), sizes)
            done += apply_views(images, params, "cpu")
        return done

    return run


def pipelines(method: str, plan: ViewPlan) -> tuple[dict[str, Pipeline], list[str]]:
    """(by name, what is missing)."""
    makers: dict[str, Callable[[], Pipeline]] = {
        "vitrail": partial(ours, plan),
        ACCOUNTABLE[0]: partial(torchvision_v1, plan),
        "torchvision v2, tensors": partial(torchvision_v2, plan),
        "kornia": partial(kornia, plan),
        ACCOUNTABLE[1]: partial(lightly, method),
    }
    found, missing = {}, []
    for name, make in makers.items():
        try:
            found[name] = make()
        except ImportError:
            missing.append(name)
    return found, missing


def compare(method: str, files: list[bytes], blocks: int) -> list[str]:
    """Rows of the table: a pipeline each, and how many times faster ours is."""
    title, plan = PLANS[method]
    ways, missing = pipelines(method, plan)
    work = {name: partial(_last_pixel, way, files) for name, way in ways.items()}
    for way in work.values():
        way()
    times = alternate(work, blocks, calls=1)
    rows = []
    for name in ways:
        a_second = len(files) / statistics.median(times[name])
        ratio, least, most = speed_up(times[name], times["vitrail"])
        ahead = "" if name == "vitrail" else f"{ratio:.2f} × ({least:.2f}–{most:.2f})"
        rows.append(f"| {title} | {name} | {a_second:.1f} | {1000 / a_second:.2f} | {ahead} |")
    rows += [f"| {title} | {name} | not installed | – | – |" for name in missing]
    accountable = [name for name in ACCOUNTABLE if name in times]
    if accountable:
        best = min(accountable, key=lambda name: statistics.median(times[name]))
        ratio, least, most = speed_up(times[best], times["vitrail"])
        ahead = f"**{ratio:.2f} × ({least:.2f}–{most:.2f})**"
        rows.append(f"| {title} | *the best of {' and '.join(ACCOUNTABLE)}* | | | {ahead} |")
    return rows


def _last_pixel(pipeline: Pipeline, files: list[bytes]) -> Tensor:
    return pipeline(files)[-1].flatten()[-1]


def profile(files: list[bytes], method: str) -> None:
    run = ours(PLANS[method][1])
    run(files)
    with torch.profiler.profile() as found:
        run(files)
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=7)
    parser.add_argument("--methods", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--keep-freed-memory", action="store_true", help="see alternate.py")
    parser.add_argument("--save", action="store_true", help="into benchmarks/results/")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.keep_freed_memory:
        keep_freed_memory()
    torch.manual_seed(0)
    random.seed(0)
    origin = one_line(provenance("cpu"))
    files = [encode(cut) for cut in photographs(args.images)]
    if args.profile:
        profile(files, args.methods[0])
        return
    lines = ["| views | pipeline | images/s | ms an image | ours is faster by |"]
    lines.append("| --- | --- | ---: | ---: | ---: |")
    for method in args.methods:
        lines += compare(method, files, args.blocks)
    what = f"Medians of {args.blocks} alternated blocks of {args.images} photographs, one core"
    text = "\n".join(["# `python -m benchmarks.views`", "", *lines, "", f"{what}.", "", origin, ""])
    print(text)
    if args.save:
        (RESULTS / "views_cpu.md").write_text(text)


if __name__ == "__main__":
    main()
