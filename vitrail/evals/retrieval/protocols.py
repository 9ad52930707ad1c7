"""What an encoder with a text side makes of words: the protocols `zeroshot` and `retrieval`."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from vitrail.data.subset import Subset
from vitrail.evals.contract import Material, Split
from vitrail.evals.features import shown
from vitrail.evals.figures.grid import RIGHT, Cell, cell_side, save_grid
from vitrail.evals.retrieval.caption_recall import KS, retrieval
from vitrail.evals.retrieval.zeroshot import zeroshot
from vitrail.text_encoder import TextEncoder

Array = np.ndarray

NEAREST = 5  # images drawn for a caption


def name_classes(m: Material) -> dict[str, Any]:
    """Zero-shot classification of the test images by the names of their classes."""
    text, test = _text_side(m, "zeroshot"), m.test
    if test.source.classes is None:
        raise ValueError(
            f"zeroshot: {test.source.spec} has no labels; name labelled data by --data"
        )
    images, templates = text.place(test.features["trained"]), m.settings.templates
    numbers = zeroshot(text, images, test.labels, test.source.classes, templates)
    return numbers | {"templates": list(templates)}


def find_pairs(m: Material) -> dict[str, Any]:
    """Retrieval among the test pairs both ways, and a picture of what some captions find."""
    text, test = _text_side(m, "retrieval"), m.test
    if not test.source.captioned:
        raise ValueError(
            f"retrieval: {test.source.spec} has no captions; name data that has by --data "
            "(pairs:FILE, emoji)"
        )
    index = test.index.tolist()
    captions = [test.source.text(i) or "" for i in index]
    pictures = [test.source.picture(i) for i in index]
    images, texts = text.place(test.features["trained"]), text.transform(captions)
    _found_figure(m, images, texts, m.figures / "retrieval.png")
    return retrieval(images, texts, pictures, captions)


def _text_side(m: Material, protocol: str) -> TextEncoder:
    if m.text is None:
        raise ValueError(
            f"{protocol}: the encoder has no text side; it is for runs of the objective 'clip'. "
            "Leave it out of --protocols"
        )
    source = m.test.source
    if isinstance(source, Subset) and source.spec == m.encoder.info.get("data"):
        raise ValueError(
            f"{protocol}: {source.spec} has no test split of its own, so the encoder was trained "
            "on these very captions; give the table a column 'split', or name other data by --data"
        )
    return m.text


def _found_figure(m: Material, images: Array, texts: Array, path: Path) -> None:
    """A row for each of a few captions: its own image, then those it finds, nearest first."""
    rows = []
    for row in m.chosen(min(6, m.settings.pictures)):
        cosines = images @ texts[row]
        own = m.test.source.text(int(m.test.index[row])) or ""
        cells = [Cell(_picture(m, m.test, row), own if len(own) <= 24 else f"{own[:23]}…")]
        for at in np.argsort(-cosines, kind="stable")[:NEAREST].tolist():
            right = m.test.source.text(int(m.test.index[at])) == own
            mark, frame = ("✓ ", RIGHT) if right else ("", None)
            cells.append(Cell(_picture(m, m.test, at), f"{mark}{cosines[at]:.2f}", frame))
        rows.append(cells)
    titles = ["the caption's own", "nearest", *[""] * (max(map(len, rows)) - 2)]
    save_grid(rows, path, side=cell_side(m.encoder.preprocess.size), columns=titles)


def _picture(m: Material, split: Split, row: int) -> Array:
    return shown(m.encoder, [split.source.read(int(split.index[row])).image])[0]


def zeroshot_table(numbers: dict[str, Any]) -> Table:
    """For a terminal, in percent."""
    table = Table(title="classes told by their names alone, %", title_justify="left")
    names = ("accuracy", "mean_per_class", "majority", "chance")
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_row(*(f"{100 * numbers[name]:.1f}" for name in names))
    return table


def retrieval_table(numbers: dict[str, Any]) -> Table:
    """For a terminal, in percent; chance in brackets."""
    table = Table(title="recall among the first k, % (chance)", title_justify="left")
    table.add_column("")
    for k in KS:
        table.add_column(f"@{k}", justify="right")
    table.add_column("median rank", justify="right")
    for way, found in numbers.items():
        cells = [f"{100 * found[f'recall@{k}']:.1f} ({100 * found[f'chance@{k}']:.1f})" for k in KS]
        rank = f"{found['median_rank']:.0f} of {found['candidates']}"
        table.add_row(way.replace("_", " "), *cells, rank)
    return table
