"""Images/s end to end: JPEGs on disk -> decode -> views -> a DINO step, against lightly's views.

The step is ours in both cases (`step_sides.py`); the difference is the input pipeline: vitrail's
loader (decoding in workers, views on the device), or lightly's DINOTransform in torch's DataLoader,
with the same number of workers. Blocks of steps are alternated, each with new workers and some
untimed steps first. The share of the views is their time over the step's, each measured alone on
the device.

    python -m benchmarks.feed [--device cuda] [--folder DIR] [--workers N] [--save]

Without --folder, photographs are cut from Debian's `gnome-backgrounds`, 500 x 375 at quality 90.
Sizes are small on a CPU, where views and step share the cores; on CUDA they are DINO's, ViT-S/16.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

from benchmarks.decode import encode, photographs
from benchmarks.step_setting import CPU, CUDA, Setting
from benchmarks.timing import one_line, provenance, speed_up
from benchmarks.view_peers import open_rgb
from vitrail.data.contract import Batch, Source
from vitrail.data.loading.loader import Loader
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.loading.workers import choose_workers
from vitrail.data.sources.registry import open_source
from vitrail.data.views.apply import apply_views
from vitrail.data.views.plan import MultiCrop, ViewPlan
from vitrail.nn.random import Draws

RESULTS = Path(__file__).parent / "results"
FILES = 256
Feed = Callable[[int], Iterator[Batch]]  # number of batches -> these batches


def plan_of(setting: Setting) -> ViewPlan:
    return MultiCrop(setting.global_size, setting.local_size, setting.n_local).plan()


def our_feed(source: Source, setting: Setting, workers: int, count: int) -> Iterator[Batch]:
    loader = Loader(
        source,
        plan_of(setting),
        batch_size=setting.batch,
        seed=0,
        device=setting.device,
        workers=workers,
        quarantine=Quarantine(None, len(source)),
    )
    return (batch for [batch] in loader.steps(0, count))


class LightlyFiles(Dataset[list[torch.Tensor]]):
    """lightly's views of each file."""

    def __init__(self, folder: Path, source: Source, setting: Setting):
        from lightly.transforms import DINOTransform

        self.paths = [folder / source.id(i) for i in range(len(source))]
        self.transform = DINOTransform(
            global_crop_size=setting.global_size,
            local_crop_size=setting.local_size,
            n_local_views=setting.n_local,
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        return self.transform(open_rgb(self.paths[index].read_bytes()))


def lightly_feed(
    dataset: LightlyFiles, setting: Setting, workers: int, count: int
) -> Iterator[Batch]:
    loader = DataLoader(
        dataset,
        setting.batch,
        sampler=RandomSampler(dataset, replacement=True, num_samples=count * setting.batch),
        num_workers=workers,
        pin_memory=setting.device == "cuda",
        drop_last=True,
    )
    index = torch.arange(setting.batch, device=setting.device)
    for step, views in enumerate(loader):
        on_device = [view.to(setting.device, non_blocking=True) for view in views]
        packed = [torch.cat(on_device[:2]), torch.cat(on_device[2:])]
        draws = Draws(0, step, setting.batch, 0, setting.batch)
        yield Batch(packed, index, torch.full_like(index, -1), draws)


def seconds_a_step(
    feed: Feed, step: Callable[[Batch], torch.Tensor], warm: int, steps: int
) -> float:
    batches, begin = feed(warm + steps), 0.0
    for i, batch in enumerate(batches):
        loss = step(batch)
        if i + 1 == warm:
            loss.item()  # waits for the device
            begin = time.perf_counter()
    loss.item()
    return (time.perf_counter() - begin) / steps


def share_of_views(
    source: Source, setting: Setting, step: Callable[[Batch], torch.Tensor]
) -> float:
    """Returns the time of a batch's views on the device over that of its step, each alone."""
    images = [source.read(i % len(source)).image.to(setting.device) for i in range(setting.batch)]
    plan = plan_of(setting)
    sizes = torch.tensor([image.shape[1:] for image in images])
    [batch] = list(our_feed(source, setting, 0, 1))

    def timed(work: Callable[[], torch.Tensor]) -> float:
        found = []
        for _ in range(7):
            begin = time.perf_counter()
            work().item()
            found.append(time.perf_counter() - begin)
        return statistics.median(found[2:])

    draws = Draws(0, 0, setting.batch, 0, setting.batch)
    params = plan.sample(draws, sizes)
    views = timed(lambda: apply_views(images, params, setting.device)[-1][0, 0, 0, 0])
    return views / timed(lambda: step(batch))


def measure(folder: Path, setting: Setting, workers: int, blocks: int, steps: int) -> list[str]:
    from benchmarks.step_sides import build_ours

    source = open_source(f"folder:{folder}")
    step = build_ours("dino", setting).step
    feeds: dict[str, Feed] = {
        "vitrail": partial(our_feed, source, setting, workers),
        "lightly, DataLoader": partial(
            lightly_feed, LightlyFiles(folder, source, setting), setting, workers
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in feeds}
    for block in range(blocks):
        for name in list(feeds)[:: -1 if block % 2 else 1]:
            times[name].append(seconds_a_step(feeds[name], step, max(2, steps // 4), steps))
    lines = ["| feed | images/s | vitrail is faster by |", "| --- | ---: | ---: |"]
    for name in feeds:
        ratio, least, most = speed_up(times[name], times["vitrail"])
        ahead = "" if name == "vitrail" else f"{ratio:.2f} × ({least:.2f}–{most:.2f})"
        lines.append(f"| {name} | {setting.batch / statistics.median(times[name]):.1f} | {ahead} |")
    share = share_of_views(source, setting, step)
    return [*lines, "", f"The views take {share:.1%} of a step's time."]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    fitting = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=fitting)
    parser.add_argument("--folder", type=Path, help="folder of JPEGs")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--workers", type=int, default=choose_workers(None))
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="steps of a block")
    parser.add_argument("--save", action="store_true", help="write to benchmarks/results/")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("--device cuda: torch sees no CUDA device here; use --device cpu")
    setting = {"cpu": CPU, "cuda": CUDA}[args.device]
    setting = replace(setting, batch=args.batch or setting.batch)
    origin = one_line(provenance(args.device))
    with tempfile.TemporaryDirectory() as made:
        folder = args.folder or Path(made)
        for i, cut in enumerate(photographs(FILES) if args.folder is None else ()):
            (folder / f"{i:04}.jpg").write_bytes(encode(cut))
        lines = measure(folder, setting, args.workers, args.blocks, args.steps)
    what = (
        f"{setting.backbone} at 2 × {setting.global_size} + {setting.n_local} × "
        f"{setting.local_size} px, batch {setting.batch}, {setting.precision}, {args.workers} "
        f"workers; medians of {args.blocks} alternated blocks of {args.steps} steps."
    )
    text = "\n".join(["# `python -m benchmarks.feed`", "", *lines, "", what, "", origin, ""])
    print(text)
    if args.save:
        (RESULTS / f"feed_{args.device}.md").write_text(text)


if __name__ == "__main__":
    main()
