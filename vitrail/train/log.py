"""The log of a run: rows of metrics.jsonl, sinks such as TensorBoard, and a status line.

Scalars stay on the device until `flush`, which moves all of them in one copy: the one sync point of
logging. Only rank 0 writes; all ranks flush, since the logged loss is the mean over ranks.
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

from vitrail.atomic import parse_json, read_text, write_atomically
from vitrail.config import printable
from vitrail.data.loading.feed import Feed
from vitrail.data.tools.progress import PLAIN_SECONDS, bar
from vitrail.distributed.collectives import mean_over_ranks
from vitrail.distributed.ranks import Ranks
from vitrail.registry import resolve
from vitrail.train.contract import Sink
from vitrail.train.registry import SINKS

T = TypeVar("T")


class Log:
    """Collects the numbers of every step, and writes them as rows.

    Args:
        run: the run's folder.
        ranks: this process; rank 0 writes.
        start: the first step to come.
        total: the steps of the whole run.
        feed: gives the unit of the pace, and measures the time that steps wait.
        sinks: names of `SINKS`; metrics.jsonl is always written.
    """

    def __init__(
        self,
        run: Path,
        ranks: Ranks,
        start: int,
        total: int,
        feed: Feed[Any],
        sinks: tuple[str, ...] = (),
    ):
        self.pace = 0.0  # seconds a step, over the rows of the last flush
        self._pending: list[tuple[dict[str, Any], dict[str, Tensor]]] = []
        self._total, self._writes = total, ranks.is_main
        self._feed = feed
        self._advice: str | None = None
        self._rank = ""
        self._mark = self._busy = self._last_line = 0.0
        self._console = Console(stderr=True, quiet=not ranks.is_main)
        self._sinks: list[Sink] = []
        if not self._writes:
            return
        self._sinks = [JsonLines(run / "metrics.jsonl", start), *self._open(sinks, run, start)]
        self._bar = bar(self._console)
        self._task = self._bar.add_task("training", total=total, completed=start, status="")

    def _open(self, names: tuple[str, ...], run: Path, start: int) -> Iterator[Sink]:
        for name in names:
            row = SINKS.find(name)
            try:
                yield resolve(row.open)(run, start)
            except ImportError as error:
                extra = f"pip install 'vitrail[{row.extra}]'" if row.extra else "its package"
                self.print_line(
                    f"note: nothing is logged to {name} ({error}); install {extra}, or leave it "
                    "out of --sinks"
                )

    def __enter__(self) -> "Log":
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
        for sink in self._sinks:
            # every write was flushed: closing can only fail as the write before it did
            with suppress(OSError):
                sink.close()

    def timed(self, items: Iterable[T]) -> Iterator[T]:
        """Yields the items of a step each, and measures the time of steps.

        A step's clock starts when its item is requested, and stops at `record` (or at the `flush`
        that follows): measuring health and saving do not count.
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
        """Records one step without a sync: host values, and the scalars of `out` on the device."""
        scalars = {k: v for k, v in out.items() if v.ndim == 0 and v.is_floating_point()}
        self._pending.append((row, scalars))
        self._busy += self._lap()

    def flush(self) -> list[dict[str, Any]]:
        """Moves the recorded steps to the host, and returns them as rows, averaged over ranks.

        `write` writes them, so the caller can check and complete them first.
        """
        if not self._pending:
            return []
        names = list(self._pending[0][1])
        table = torch.stack([torch.stack([s[n].float() for n in names]) for _, s in self._pending])
        values = mean_over_ranks(table).tolist()  # the sync point
        self._busy += self._lap()
        self.pace = self._busy / len(values)
        spent = self._feed.meter.take()
        self._advice = self._feed.advise(len(values), self._busy, spent)
        timing: dict[str, Any] = {
            f"{self._feed.unit}_per_s": self._feed.units_per_step / self.pace,
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
        """Writes rows to metrics.jsonl and all sinks, and updates the status line.

        Raises:
            OSError: the disk is full or not writable.
        """
        if not self._writes or not rows:
            return
        for sink in self._sinks:
            sink.write(rows)
        self._update_status(rows[-1])
        for warning in (row["warning"] for row in rows if "warning" in row):
            self.print_line(f"warning: {warning}")
        if self._advice:
            self.print_line(self._advice)

    def print_line(self, message: str) -> None:
        """Prints a line on the terminal of rank 0, above the progress bar."""
        self._console.print(printable(message), highlight=False, markup=False, soft_wrap=True)

    def _update_status(self, row: dict[str, Any]) -> None:
        if "effective_rank" in row.get("health", {}):
            self._rank = f" · rank {row['health']['effective_rank']:.1f}"
        unit = self._feed.unit
        speed = f"{row[f'{unit}_per_s']:.0f} {unit}/s, {row['data_wait']:.0%} waiting"
        if "limited_by" in row:
            speed += f" ({row['limited_by']})"
        status = f"loss {row['loss']:.4f} · {speed}{self._rank}"
        done = row["step"] + 1
        if self._console.is_terminal:
            self._bar.update(self._task, completed=done, status=status)
        elif time.monotonic() - self._last_line > PLAIN_SECONDS or done == self._total:
            self._last_line = time.monotonic()
            self.print_line(f"step {done}/{self._total} {status}")


def print_line(message: str) -> None:
    """Prints a line on the terminal while no log is open."""
    Console(stderr=True).print(printable(message), highlight=False, markup=False, soft_wrap=True)


class JsonLines:
    """Appends rows to metrics.jsonl, one JSON object a line."""

    def __init__(self, path: Path, start: int):
        _cut(path, start)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Appends rows; numbers that are not finite are written as null."""
        for row in rows:
            self._file.write(json.dumps(_plain(row)) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    # JSON has no NaN
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _cut(path: Path, start: int) -> None:
    """Drops the rows of steps from `start` on, which come again, and rows that a kill cut short."""
    if not path.exists():
        return
    lines = []
    for line in read_text(path).split("\n"):
        try:
            if parse_json(line)["step"] < start:
                lines.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    write_atomically(path, "".join(lines))
