"""What a run writes down as it goes: metrics.jsonl, TensorBoard events, and a line on the terminal.

Scalars stay on the device until `flush`, which moves all of them in one copy: the one sync point of
logging. Only rank 0 writes; all ranks flush, since the loss they log is the mean over ranks.
"""

import json
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from rich.console import Console
from torch import Tensor

from vitrail.atomic import write_atomically
from vitrail.data.contract import Batch
from vitrail.data.loading.wait_time import Adviser, Meter
from vitrail.data.tools.progress import PLAIN_SECONDS, bar
from vitrail.distributed.collectives import mean_over_ranks
from vitrail.distributed.ranks import Ranks
from vitrail.objectives.contract import Objective, Pictures
from vitrail.train.tensorboard import Events

T = TypeVar("T")


class Journal:
    """Args: run: the run's folder. start, total: the run's first step to come, and its last. meter:
    of the loader.
    """

    def __init__(self, run: Path, ranks: Ranks, start: int, total: int, meter: Meter):
        self.pace = 0.0  # seconds a step, over the rows of the last flush
        self._pending: list[tuple[dict[str, Any], dict[str, Tensor]]] = []
        self._total, self._writes = total, ranks.is_main
        self._meter, self._adviser = meter, Adviser(ranks.device, meter.workers)
        self._advice: str | None = None
        self._rank = ""
        self._mark = self._busy = self._spoken = 0.0
        self._console = Console(stderr=True, quiet=not ranks.is_main)
        if not self._writes:
            return
        _cut(run / "metrics.jsonl", start)
        self._file = open(run / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115
        self._events = Events(run / "tb", start)
        self._bar = bar(self._console)
        self._task = self._bar.add_task("training", total=total, completed=start, status="")

    def __enter__(self) -> "Journal":
        if self._writes:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._writes:
            self._bar.stop()
            # Every write was flushed: closing can only fail again as the write before it did.
            for file in (self._file, self._events):
                with suppress(OSError):
                    file.close()

    def timed(self, items: Iterable[T]) -> Iterator[T]:
        """Passes items on.

        A step's clock starts when its item is asked for, and stops at `record` (or at the `flush`
        that follows): looking at health and saving are not counted as steps.
        """
        iterator = iter(items)
        while True:
            self._mark = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            yield item

    def record(self, row: dict[str, Any], out: dict[str, Tensor]) -> None:
        """Notes one step: host values, and the scalars among `out`, on the device. No sync."""
        self._pending.append((row, {k: v for k, v in out.items() if v.ndim == 0}))
        self._busy += self._lap()

    def flush(self, batch_size: int) -> list[dict[str, Any]]:
        """Moves what is pending to the host, and returns it as rows, losses averaged over ranks.

        `write` writes them, so that the caller can look at them first.
        """
        names = list(self._pending[0][1])
        table = torch.stack([torch.stack([s[n].float() for n in names]) for _, s in self._pending])
        values = mean_over_ranks(table).tolist()  # the sync point
        self._busy += self._lap()
        self.pace = self._busy / len(values)
        spent = self._meter.take()
        self._advice = self._adviser.after(len(values), self._busy, spent)
        timing: dict[str, Any] = {
            "images_per_s": batch_size / self.pace,
            "data_wait": spent.share(self._busy),
        }
        if limit := spent.limit(self._busy):
            timing["limited_by"] = limit
        rows = [
            row | dict(zip(names, line, strict=True)) | timing
            for (row, _), line in zip(self._pending, values, strict=True)
        ]
        self._pending, self._busy = [], 0.0
        return rows

    def _lap(self) -> float:
        before, self._mark = self._mark, time.perf_counter()
        return self._mark - before

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Appends rows to metrics.jsonl and TensorBoard, and moves the bar."""
        if not self._writes:
            return
        for row in rows:
            self._file.write(json.dumps(_plain(row)) + "\n")
            self._events.add(row["step"], _flat(row))
        self._file.flush()
        self._events.flush()
        self._speak(rows[-1])
        for warning in (row["warning"] for row in rows if "warning" in row):
            self.say(f"warning: {warning}")
        if self._advice:
            self.say(self._advice)

    def say(self, message: str) -> None:
        """A line for the person watching."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    def _speak(self, row: dict[str, Any]) -> None:
        if "effective_rank" in row.get("health", {}):
            self._rank = f" · rank {row['health']['effective_rank']:.1f}"
        speed = f"{row['images_per_s']:.0f} images/s, {row['data_wait']:.0%} waiting"
        if "limited_by" in row:
            speed += f" ({row['limited_by']})"
        status = f"loss {row['loss']:.4f} · {speed}{self._rank}"
        done = row["step"] + 1
        if self._console.is_terminal:
            self._bar.update(self._task, completed=done, status=status)
        elif time.monotonic() - self._spoken > PLAIN_SECONDS or done == self._total:
            self._spoken = time.monotonic()
            self.say(f"step {done}/{self._total} {status}")


def say(message: str) -> None:
    """A line for the person watching, where no journal is open."""
    Console(stderr=True).print(message, highlight=False, markup=False, soft_wrap=True)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    # JSON has no NaN: a number that is not finite is written as null.
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _flat(row: dict[str, Any]) -> dict[str, float]:
    flat = {k: v for k, v in row.items() if isinstance(v, (int, float)) and k != "step"}
    return flat | {f"health/{k}": v for k, v in row.get("health", {}).items()}


def _cut(path: Path, start: int) -> None:
    """Drops the lines of steps that a resumed run takes again, and a line that a kill cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] < start:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    write_atomically(path, "".join(kept))


def draw_pictures(run: Path, objective: Objective, batch: Batch) -> None:
    """Writes run/figures/NAME.png for everything that the objective has to show."""
    with torch.compiler.set_stance("force_eager"):  # a few images are not worth a compilation
        shown = objective.pictures(batch)
    for name, pictures in shown.items():
        _draw_picture(run / "figures" / f"{name}.png", pictures)


def _draw_picture(path: Path, pictures: Pictures) -> None:
    from vitrail.evals.figures.grid import (  # matplotlib: only who draws waits
        Cell,
        cell_side,
        save_grid,
    )

    # [rows, columns, H, W, C]; of other channel counts than three, the first is shown in grey.
    pixels = pictures.pixels.float().movedim(2, -1).cpu().numpy()
    if pixels.shape[-1] != 3:
        pixels = pixels[..., :1]
    rows = [[Cell(picture) for picture in row] for row in pixels]
    save_grid(rows, path, side=cell_side(pixels.shape[2]), columns=list(pictures.columns))
