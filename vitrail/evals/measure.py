"""Measures an encoder on one source: its features once, then protocol by protocol."""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from vitrail.config import printable
from vitrail.data.contract import BadSampleError, Source
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.subset import Subset
from vitrail.encoder import Encoder
from vitrail.evals.choose import choose_protocols
from vitrail.evals.contract import KINDS, Context, Split
from vitrail.evals.features import Embed, collect, raw_pixels, raw_side
from vitrail.evals.protocol import Protocol
from vitrail.evals.rank import rank_numbers
from vitrail.evals.registry import PROTOCOLS
from vitrail.evals.seen.exposure import facts_of_exposure
from vitrail.evals.seen.identical import as_table
from vitrail.evals.seen.words import exposure_lines
from vitrail.evals.settings import configs_of
from vitrail.evals.splits import bad_file_counts, bad_file_summary
from vitrail.registry import resolve
from vitrail.text_encoder import TextEncoder

# What a protocol raises that cannot be measured; anything else is a fault of its code.
UNMEASURED = (ValueError, BadSampleError, OSError, MemoryError)
# facts that an earlier evaluation may hold and that need not hold any more
FACTS = ("seen_in_training", "identical", "bad", "left_out")


@dataclass(frozen=True)
class Bench:
    """The parts of an evaluation that all sources of one call share.

    Attributes:
        encoder: the trained one.
        text: its text side, if any.
        asked: names of the protocols that the caller asks for; None for the default ones.
        settings: of `make_settings`.
        figures: the folder of figures.
        device: of the encoder.
        workers: processes that decode.
        max_bad_fraction: of a split's files.
        console: where lines and tables go.
    """

    encoder: Encoder
    text: TextEncoder | None
    asked: Sequence[str] | None
    settings: Any
    figures: Path
    device: str
    workers: int
    max_bad_fraction: float
    console: Console

    def print(self, text: str) -> None:
        """Prints a line as it is."""
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


@dataclass
class Outcome:
    """What became of the protocols on one source.

    Attributes:
        fresh: the numbers of those that were measured.
        done: the names of those that were measured or drawn.
        failed: the errors of those that could not be.
    """

    fresh: dict[str, Any]
    done: list[str]
    failed: dict[str, Exception]


def measure(
    bench: Bench,
    train: Source,
    test: Source,
    into: dict[str, Any],
    write: Callable[[], None],
    *,
    transfer: bool,
) -> Outcome:
    """Measures one source.

    Args:
        bench: what all sources share.
        train: the training split.
        test: the test split, or a held-out part of the training split.
        into: where facts and numbers by protocol are put.
        write: called after every protocol that succeeds, and at the end.
        transfer: measure accuracies only.

    Raises:
        ValueError: no image can be read, or too many cannot.
    """
    names, notes = choose_protocols(bench.asked, bench.encoder, bench.text, train)
    if transfer:
        names = [name for name in names if PROTOCOLS[name].accuracies]
    for note in [] if transfer else notes:
        bench.print(note)
    context = _context(bench, train, test, [PROTOCOLS[name] for name in names])
    for name in FACTS:
        into.pop(name, None)
    if context.test.features:
        into["features"] = rank_numbers(context.test.features, bench.settings.seed)
    held_out = isinstance(test, Subset)  # the data have no test split of their own
    into |= {
        "metric": context.metric,
        "n_train": len(context.train.index),
        "n_test": len(context.test.index),
        "held_out": held_out,
    }
    into |= facts_of_exposure(
        bench.encoder, context.train, context.test, held_out, workers=bench.workers
    )
    for line in exposure_lines(into, test.spec):
        bench.print(line)
    outcome = _run(names, context, bench, into, write)
    bad = {"train": context.train.quarantine, "test": context.test.quarantine}
    for name in bad_file_counts(bad):
        bench.print(bad_file_summary(name, bad[name]))
    if bad_file_counts(bad):
        into["bad"] = bad_file_counts(bad)
    return outcome


def _context(bench: Bench, train: Source, test: Source, rows: Sequence[Protocol]) -> Context:
    """Returns the input of protocols, with the features that any of them needs."""
    whole = any("features" in row.needs for row in rows)
    labels = any("labels" in row.needs for row in rows)
    kinds = KINDS if labels or any(row.compares for row in rows) else KINDS[-1:]
    embeds = _embeds(bench.encoder, kinds, len(train) + len(test)) if whole else {}
    settings = bench.settings
    return Context(
        encoder=bench.encoder,
        train=_split(train, embeds, bench, read=whole or labels),
        test=_split(test, embeds, bench, read=whole or labels),
        figures=bench.figures,
        device=bench.device,
        seed=settings.seed,
        pictures=settings.pictures,
        image_size=settings.image_size,
        asked_metric=settings.metric,
        workers=bench.workers,
        text=bench.text,
    )


def _embeds(encoder: Encoder, kinds: Sequence[str], n_samples: int) -> dict[str, Embed]:
    side = raw_side(encoder.preprocess, encoder.channels, n_samples)
    known: dict[str, Embed] = {"trained": encoder.embed}
    if "untrained" in kinds:
        known["untrained"] = encoder.untrained().embed
        known["raw"] = raw_pixels(side)
    return {kind: known[kind] for kind in kinds}


def _split(source: Source, embeds: dict[str, Embed], bench: Bench, read: bool) -> Split:
    quarantine = Quarantine(None, len(source), bench.max_bad_fraction)
    if not read:
        index = np.arange(len(source))
        return Split(source, {}, np.full(len(source), -1), index, quarantine)
    digests, preprocess = array("Q"), bench.encoder.preprocess
    table, labels, index = collect(
        preprocess, embeds, source, quarantine, workers=bench.workers, digests=digests
    )
    return Split(source, table, labels, index, quarantine, as_table(digests))


def _run(
    names: Sequence[str],
    context: Context,
    bench: Bench,
    into: dict[str, Any],
    write: Callable[[], None],
) -> Outcome:
    outcome = Outcome({}, [], {})
    for name in names:
        row = PROTOCOLS[name]
        try:
            result = resolve(row.run)(context, *configs_of(row, bench.settings))
        except UNMEASURED as error:
            outcome.failed[name] = error
            into.setdefault("left_out", {})[name] = str(error) or type(error).__name__
            bench.print(f"{name} is left out: {into['left_out'][name]}")
            continue
        outcome.done.append(name)
        if result is not None:
            into[name] = outcome.fresh[name] = result
        write()
    return outcome
