"""A confusion matrix as a figure.

Shape legend: M test samples · K classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

Array = np.ndarray

MAX_CLASSES = 20
INK, PAPER, DEEP = "#77808a", "#f3f6f9", "#12507b"  # the ink is legible on dark and light pages
CELL, TITLE, LETTER, DPI = 34, 42, 8, 100  # pixels
LONGEST = 14  # letters of a class name; longer ones are shortened


def confusion_figure(
    predicted: Int64[Array, " M"], labels: Int64[Array, " M"], names: Sequence[str], path: Path
) -> Path:
    """Writes a PNG with a row for each true class, in percent of its test samples.

    The row of a class without test samples is empty, and zeros are blank.

    Args:
        predicted: predicted classes, int64 [M].
        labels: true classes, int64 [M].
        names: names of the classes, 1 to 20.
        path: path of the PNG, returned.

    Raises:
        ValueError: more than 20 classes, which a picture cannot show, or no names.
    """
    n_classes = len(names)
    if not 1 <= n_classes <= MAX_CLASSES:
        raise ValueError(
            f"a confusion matrix of {n_classes} classes is not drawn; it needs 1 to {MAX_CLASSES}"
        )
    counts_KK = confusion_matrix(predicted, labels, n_classes)
    share_KK = counts_KK / np.maximum(counts_KK.sum(axis=1, keepdims=True), 1)
    shown = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names]
    side = n_classes * CELL + TITLE + LETTER * max(map(len, shown))
    figure = Figure(figsize=(side / DPI, side / DPI), dpi=DPI, facecolor="none")
    FigureCanvasAgg(figure)
    part = n_classes * CELL / side
    axes = figure.add_axes((1 - part, 0, part, part))
    ramp = LinearSegmentedColormap.from_list("share", [PAPER, DEEP])
    axes.imshow(share_KK, cmap=ramp, vmin=0, vmax=1)
    for row, column in np.argwhere(counts_KK > 0).tolist():
        share = share_KK[row, column]
        text = "<1" if share < 0.005 else f"{100 * share:.0f}"
        colour = "white" if share > 0.5 else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    style: dict[str, Any] = {"fontsize": 8, "color": INK, "parse_math": False}
    axes.set_xticks(range(n_classes), shown, rotation=90, **style)
    axes.set_yticks(range(n_classes), shown, **style)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.set_xlabel("taken for", color=INK, fontsize=9)
    axes.xaxis.set_label_position("top")
    axes.set_ylabel("class", color=INK, fontsize=9)
    axes.set_frame_on(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, transparent=True, metadata={"Software": None})
    return path


def confusion_matrix(
    predicted: Int64[Array, " M"], labels: Int64[Array, " M"], n_classes: int
) -> Int64[Array, "n_classes n_classes"]:
    """Counts the samples of class i that were predicted as class j, as entry (i, j)."""
    counts = np.bincount(labels * n_classes + predicted, minlength=n_classes**2)
    return counts.reshape(n_classes, n_classes).astype(np.int64)
