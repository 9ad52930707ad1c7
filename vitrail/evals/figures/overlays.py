"""Objects drawn over their images, each with a tint, an outline and a box.

Shape legend: y, x pixels of an image · M masks of it · C channels · S pixels a side of a cell.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8, UInt16
from PIL import Image
from scipy import ndimage
from torch import Tensor

from vitrail.data.decode.colours import fill_no_range, in_colours
from vitrail.evals.figures.grid import Cell, save_grid

Array = np.ndarray

SIDE = 288  # pixels of a cell
# bright on photographs, and distinct for colour-blind readers (after Okabe & Ito 2008)
COLOURS = ("#ffb000", "#33b6ff", "#ff4f9a", "#2fd08c", "#b38bff", "#ffe14a")
TINT, OUTSIDE = 0.4, 0.72  # share of the colour inside; brightness outside
GROUND = 0.12  # grey beside an image that is not square


def overlays_figure(
    images: Sequence[UInt8[Tensor, "C _ _"] | UInt16[Tensor, "C _ _"]],
    found: Sequence[Bool[Array, "_ _ _"]],
    path: Path,
    truth: Sequence[Bool[Array, "_ _ _"]] | None = None,
    partners: Sequence[Sequence[int | None]] = (),
) -> Path:
    """Writes a PNG with a column per image: the image, the objects found, and those annotated.

    An annotated object has the colour of its partner among the found ones; white if it has none.

    Args:
        images: images to draw, at least one.
        found: masks found in each image at its size, bool [M, y, x].
        path: path of the PNG, returned.
        truth: masks annotated in each image at its size, bool [M, y, x], if any.
        partners: for each annotated mask of each image, the number of the found one that it goes
            with, or None.
    """
    shown = [_fitted(image.cpu().numpy()) for image in images]
    own = [range(len(masks_Myx)) for masks_Myx in found]
    rows = [[Cell(picture_SSc) for picture_SSc in shown], _drawn_row(shown, found, own)]
    if truth is not None:
        rows.append(_drawn_row(shown, truth, partners))
    margin = ["image", "found", "annotated"][: len(rows)]
    return save_grid(rows, path, side=SIDE, margin=margin)


def overlay(
    picture: Float[Array, "S S 3"],
    masks: Bool[Array, "M S S"],
    numbers: Sequence[int | None] | None = None,
) -> Float[Array, "S S 3"]:
    """Draws masks over a picture; pixels without a mask are darkened.

    Args:
        picture: RGB in [0, 1], float [S, S, 3].
        masks: masks to draw, bool [M, S, S].
        numbers: number of each mask's colour in COLOURS, or None for white; in order if not given.
    """
    bare_SS = ~np.logical_or.reduce(masks, axis=0)
    drawn_SSc = np.where(bare_SS[..., None] & masks.any(), OUTSIDE * picture, picture)
    colours = [_rgb(number) for number in (range(len(masks)) if numbers is None else numbers)]
    for mask_SS, colour in zip(masks, colours, strict=True):
        tinted_SSc = (1 - TINT) * drawn_SSc + TINT * colour
        drawn_SSc = np.where(mask_SS[..., None], tinted_SSc, drawn_SSc)
    # lines last, to keep them free of tint
    for mask_SS, colour in zip(masks, colours, strict=True):
        dark_SS1 = _rim(mask_SS, 3)[..., None]
        drawn_SSc = np.where(dark_SS1, 0.35 * drawn_SSc, drawn_SSc)
        line_SS1 = (_rim(mask_SS, 2) | _box(mask_SS))[..., None]
        drawn_SSc = np.where(line_SS1, colour, drawn_SSc)
    return drawn_SSc


def _drawn_row(
    shown: Sequence[Array], masks: Sequence[Array], numbers: Sequence[Sequence[int | None]]
) -> list[Cell]:
    cells = []
    for picture_SSc, masks_Myx, chosen in zip(shown, masks, numbers, strict=True):
        fitted = [_fitted(mask[None], ground=0.0)[..., 0] > 0.5 for mask in masks_Myx]
        masks_MSS = np.stack(fitted) if fitted else np.zeros((0, SIDE, SIDE), dtype=bool)
        count = f"{len(masks_Myx)} object{'' if len(masks_Myx) == 1 else 's'}"
        cells.append(Cell(overlay(picture_SSc, masks_MSS, chosen), count))
    return cells


def _fitted(image: Array, ground: float = GROUND) -> Float[Array, "S S 3"]:
    """Returns an image as colours in [0, 1] that fit a square cell.

    Args:
        image: uint8, uint16 or bool [C, y, x].
        ground: grey level beside an image that is not square.
    """
    height, width = image.shape[1:]
    scale = SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    unit = 1 if image.dtype == bool else np.iinfo(image.dtype).max
    pixels = torch.from_numpy(image.astype(np.float32) / unit)[None]
    scaled = image.dtype != bool and fill_no_range(torch.from_numpy(image))
    planes = [Image.fromarray(plane) for plane in in_colours(pixels, scaled)[0].numpy()]
    resized = [np.asarray(p.resize(size, Image.Resampling.BICUBIC)) for p in planes]
    cell_SSc = np.full((SIDE, SIDE, 3), ground, dtype=np.float64)
    top, left = (SIDE - size[1]) // 2, (SIDE - size[0]) // 2
    cell_SSc[top : top + size[1], left : left + size[0]] = np.clip(np.stack(resized, -1), 0, 1)
    return cell_SSc


def _rim(mask_SS: Bool[Array, "S S"], width: int) -> Bool[Array, "S S"]:
    """Returns the outermost pixels of a mask and `width` - 1 pixels around it."""
    thick = ndimage.binary_dilation(mask_SS, iterations=width - 1)
    return thick & ~ndimage.binary_erosion(mask_SS, border_value=1) if mask_SS.any() else mask_SS


def _box(mask_SS: Bool[Array, "S S"]) -> Bool[Array, "S S"]:
    """Returns the bounding box of a mask, one pixel wide."""
    frame_SS = np.zeros_like(mask_SS)
    if mask_SS.any():
        ys, xs = np.flatnonzero(mask_SS.any(1)), np.flatnonzero(mask_SS.any(0))
        top, bottom, left, right = ys[0], ys[-1], xs[0], xs[-1]
        frame_SS[[top, bottom], left : right + 1] = True
        frame_SS[top : bottom + 1, [left, right]] = True
    return frame_SS


def _rgb(number: int | None) -> Float[Array, "3"]:
    if number is None:
        return np.ones(3)
    colour = COLOURS[number % len(COLOURS)]
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
