"""A confusion matrix as a figure.

Shape legend: K classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from matplotlib.colors import LinearSegmentedColormap

from vitrail.evals.figures.grid import INK, new_figure, save_png

MAX_CLASSES = 20
PAPER, DEEP = "#f3f6f9", "#12507b"  # colours of 0 and 100 %
CELL, TITLE, LETTER, DPI = 34, 42, 8, 100  # pixels
LONGEST = 14  # letters of a class name; longer ones are shortened


def confusion_figure(counts: Int64[np.ndarray, "K K"], names: Sequence[str], path: Path) -> Path:
    """Writes a PNG with a row for each true class, in percent of its test samples.

    The row of a class without test samples is empty, and zeros are blank.

    Args:
        counts: entry (i, j) is the number of samples of class i that were taken for j.
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
    share_KK = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shown = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names]
    side = n_classes * CELL + TITLE + LETTER * max(map(len, shown))
    figure = new_figure(side / DPI, side / DPI, DPI)
    part = n_classes * CELL / side
    axes: Any = figure.add_axes((1 - part, 0, part, part))
    ramp = LinearSegmentedColormap.from_list("share", [PAPER, DEEP])
    axes.imshow(share_KK, cmap=ramp, vmin=0, vmax=1)
    for row, column in np.argwhere(counts > 0).tolist():
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
    return save_png(figure, path)
