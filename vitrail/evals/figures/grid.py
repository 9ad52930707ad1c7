"""Grids of small pictures on a transparent background; captions are legible on dark and light.

Shape legend: H×W pixels of a picture · h×w of a map.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, Shaped
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

Array = np.ndarray

INK = "#77808a"  # contrast 4:1 on white as on near-black
RIGHT, WRONG = "#2a9d63", "#d1495b"
GAP, CAPTION, TITLE, MARGIN = 10, 26, 34, 110  # pixels
DPI = 100


@dataclass(frozen=True)
class Cell:
    """A picture of a grid.

    Attributes:
        picture: grey or RGB in [0, 1], float [H, W, colours].
        caption: text below the picture; empty for none.
        frame: colour of the frame and the caption as "#rrggbb"; None for no frame.
    """

    picture: Float[Array, "H W colours"]
    caption: str = ""
    frame: str | None = None


def cell_side(size: int) -> int:
    """Returns the pixels a side at which a picture is drawn; small ones by a whole factor."""
    return size * -(-160 // size) if size <= 160 else 192


def save_grid(
    rows: list[list[Cell]],
    path: Path,
    *,
    side: int,
    columns: list[str] | None = None,
    margin: list[str] | None = None,
) -> Path:
    """Writes a PNG of square cells.

    Args:
        rows: cells of each row.
        path: path of the PNG, returned.
        side: side of a cell in pixels.
        columns: titles above the columns, if any.
        margin: titles left of the rows, if any.
    """
    captioned = any(cell.caption for row in rows for cell in row)
    step_y = side + GAP + (CAPTION if captioned else 0)
    top, left = TITLE if columns else 0, MARGIN if margin else 0
    width = left + max(map(len, rows)) * (side + GAP) - GAP
    height = top + len(rows) * step_y - GAP
    canvas = np.zeros((height, width, 4), dtype=np.uint8)
    figure = new_figure(width / DPI, height / DPI, DPI)
    axes: Any = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for r, row in enumerate(rows):
        for c, cell in enumerate(row):
            x, y = left + c * (side + GAP), top + r * step_y
            canvas[y : y + side, x : x + side] = _drawn(cell, side)
            _text(axes, x + side / 2, y + side + 4, cell.caption, 14, cell.frame or INK)
    axes.imshow(canvas, interpolation="nearest", aspect="auto", extent=(0, width, height, 0))
    for c, title in enumerate(columns or []):
        _text(axes, left + c * (side + GAP) + side / 2, 6, title, 15, INK)
    for r, title in enumerate(margin or []):
        _text(axes, left / 2, top + r * step_y + side / 2 - 10, title, 18, INK)
    axes.set(xlim=(0, width), ylim=(height, 0))
    return save_png(figure, path)


def new_figure(width: float, height: float, dpi: int) -> Figure:
    """Returns an empty figure with a transparent background, which no window shows.

    Args:
        width: in inches.
        height: in inches.
        dpi: pixels an inch.
    """
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="none")
    FigureCanvasAgg(figure)
    return figure


def save_png(figure: Figure, path: Path) -> Path:
    """Writes a figure with a transparent background, whole or not at all, and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    figure.savefig(temporary, format="png", transparent=True)
    temporary.replace(path)
    return path


def _text(axes: Any, x: float, y: float, text: str, size: int, colour: str) -> None:
    # a dollar sign would start matplotlib's math mode
    safe = "".join(c if c.isprintable() else "?" for c in text).replace("$", r"\$")
    style = {"ha": "center", "va": "top", "fontsize": size * 72 / DPI, "color": colour}
    axes.text(x, y, safe, **style)


def _drawn(cell: Cell, side: int) -> Shaped[Array, "side side 4"]:
    drawn = np.full((side, side, 4), 255, dtype=np.uint8)
    drawn[..., :3] = np.asarray(_resized(cell.picture, side))
    if cell.frame:
        edge = np.array([int(cell.frame[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.uint8)
        for border in (np.s_[:5], np.s_[-5:], np.s_[:, :5], np.s_[:, -5:]):
            drawn[(*np.atleast_1d(np.array(border, dtype=object)), ..., np.s_[:3])] = edge
    return drawn


def _resized(picture: Array, side: int) -> Image.Image:
    """Resizes to side x side: in blocks for a whole factor of enlargement, else smoothly."""
    colours = np.broadcast_to(picture, (*picture.shape[:2], 3))
    image = Image.fromarray((colours * 255).round().astype(np.uint8))
    shrinks = side < image.width or side % image.width
    return image.resize(
        (side, side), Image.Resampling.LANCZOS if shrinks else Image.Resampling.NEAREST
    )


def enlarge(picture: Float[Array, "H W colours"], side: int) -> Float[Array, "S S 3"]:
    """Returns a picture in [0, 1] as it appears in a cell of that side."""
    return np.asarray(_resized(picture, side), dtype=np.float32) / 255


def heat(values: Float[Array, "h w"], size: int, name: str = "magma") -> Float[Array, "H W 3"]:
    """Returns a map of values 0 or more as colours, smoothly upsampled to size x size.

    Args:
        values: map, float [h, w]; its largest value is the brightest.
        size: side in pixels.
        name: name of a matplotlib colour map.
    """
    # the lower bound avoids 0 / 0 for a zero map, which stays dark
    unit = upsample(values / max(float(values.max()), 1e-12), size)
    return matplotlib.colormaps[name](np.clip(unit, 0, 1))[..., :3].astype(np.float32)


def upsample(values: Float[Array, "h w"], size: int) -> Float[Array, "H W"]:
    """Resizes a map to size x size, bilinearly."""
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
