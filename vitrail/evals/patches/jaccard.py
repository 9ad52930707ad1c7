"""The protocol `jaccard`: overlap of thresholded saliency maps with annotated objects."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from rich.table import Table
from torch import Tensor

from vitrail.data.contract import BadSampleError
from vitrail.data.decode.colours import fill_no_range, in_colours
from vitrail.encoder import Encoder
from vitrail.evals.contract import Context
from vitrail.evals.figures.grid import Cell, cell_side, save_grid
from vitrail.evals.patches.saliency import (
    KEEP,
    mark,
    mass_mask,
    pixel_maps,
    token_backbone,
    whole_patches,
)

Array = np.ndarray


@dataclass(frozen=True)
class Jaccard:
    """Jaccard similarities as means over the images, in [0, 1].

    Attributes:
        heads: mean of each head's map.
        best_head: number of the head with the highest mean, from 0.
        best: mean of that head.
        best_per_image: mean of the head that is best for each image, chosen by the annotation.
        average: mean of the map averaged over heads.
        images: number of images.
    """

    heads: list[float]
    best_head: int
    best: float
    best_per_image: float
    average: float
    images: int


def saliency_jaccard(
    maps: Float[Array, "B h H W"],
    masks: Iterable[Bool[Array, "_ _"]],
    ignored: Iterable[Bool[Array, "_ _"]] | None = None,
    keep: float = KEEP,
) -> Jaccard:
    """Computes the Jaccard similarity of thresholded maps and foreground, averaged over images.

    Args:
        maps: maps of 0 or more as `vitrail.evals.patches.saliency.token_maps` returns them, float
            [B, h, H, W].
        masks: foreground of each image, bool [y, x], of any size; it covers the same part of the
            image as the maps.
        ignored: pixels of each image that do not count, bool [y, x], such as VOC's borders of
            objects; none if not given.
        keep: share of a map's mass inside its threshold, in (0, 1].

    Raises:
        ValueError: no maps, different numbers of masks and maps, sizes that differ, or no
            foreground.
    """
    n, n_heads = maps.shape[:2]
    masks = list(masks)
    voids = [np.zeros_like(mask) for mask in masks] if ignored is None else list(ignored)
    if not n or not n_heads or not n == len(masks) == len(voids):
        raise ValueError(
            f"jaccard: maps of {n} images and {n_heads} heads, masks of {len(masks)} and ignored "
            f"pixels of {len(voids)}; there must be as many of each, and at least one"
        )
    scores_Bh = np.zeros((n, n_heads + 1))  # the last: of the average map
    for b, (mask, void) in enumerate(zip(masks, voids, strict=True)):
        if mask.shape != void.shape:
            raise ValueError(f"jaccard: image {b} has a mask {mask.shape}, ignored {void.shape}")
        counted = ~void
        if not (mask & counted).any():
            raise ValueError(f"jaccard: image {b} has no foreground to compare with; leave it out")
        every_hHW = [*maps[b], maps[b].mean(0)]
        for h, values_HW in enumerate(every_hHW):
            shown = _nearest(mass_mask(values_HW, keep), mask.shape) & counted
            scores_Bh[b, h] = (shown & mask).sum() / (shown | (mask & counted)).sum()
    heads = scores_Bh[:, :-1].mean(0)
    best = int(heads.argmax())
    return Jaccard(
        heads=[round(float(x), 6) for x in heads],
        best_head=best,
        best=float(heads[best]),
        best_per_image=float(scores_Bh[:, :-1].max(1).mean()),
        average=float(scores_Bh[:, -1].mean()),
        images=n,
    )


def _nearest(mask: Bool[Array, "H W"], size: tuple[int, ...]) -> Bool[Array, "_ _"]:
    """Resizes a mask of patches: each pixel has the value of the patch that its centre is in."""
    rows, columns = (
        ((2 * np.arange(pixels) + 1) * patches // (2 * pixels)).astype(int)
        for pixels, patches in zip(size, mask.shape, strict=True)
    )
    return mask[np.ix_(rows, columns)]


TOGETHER = 16  # images whose maps are in memory at a time

Marked = tuple[Tensor, Bool[Array, "y x"], Bool[Array, "y x"]]


def jaccard(context: Context) -> dict[str, Any]:
    """Runs the protocol on the untrained and the trained encoder; writes figures/jaccard.png.

    All test images with objects are used, resized to squares of `image_size` pixels (the encoder's
    own size, or 480 as published). "foreground" is the Jaccard similarity of a mask of all pixels.
    Images that cannot be read, and those without an object, are left out and counted.

    Raises:
        ValueError: a backbone without tokens, data without masks, or no image that can be used.
    """
    token_backbone(context.encoder, "jaccard")
    source = context.test.source
    if not source.masked:
        raise ValueError(
            f"jaccard: {source.spec} has no masks of objects; name data that has by --data "
            "(voc:DIR, pets:DIR or coco:DIR)"
        )
    size = context.image_size or context.encoder.preprocess.size
    side = whole_patches(context.encoder, size, "jaccard")
    encoders = {"untrained": context.encoder.untrained(), "trained": context.encoder}
    parts: dict[str, list[Jaccard]] = {kind: [] for kind in encoders}
    shares: list[float] = []
    total = len(context.test.index)
    turn = np.argsort(context.chosen(total))  # of each row to be drawn, if its turn comes
    looked_at: dict[int, Marked] = {}
    for start in range(0, total, TOGETHER):
        chunk = _chunk(context, range(start, min(start + TOGETHER, total)))
        if not chunk:
            continue
        images, masks, ignored = zip(*chunk.values(), strict=True)
        shares += [float(a[~b].mean()) for a, b in zip(masks, ignored, strict=True)]
        for kind, encoder in encoders.items():
            maps = _maps(encoder, images, side)
            parts[kind].append(saliency_jaccard(maps, masks, ignored))
        looked_at |= {int(turn[row]): marked for row, marked in chunk.items()}
        looked_at = dict(sorted(looked_at.items())[: context.pictures])
    if not shares:
        raise ValueError(
            f"jaccard: {source.spec}: none of its {total} images has a mask of an object "
            "that can be read"
        )
    found = {kind: merged(of_kind) for kind, of_kind in parts.items()}
    _figure(encoders, found, list(looked_at.values()), side, context.figures / "jaccard.png")
    numbers: dict[str, Any] = {kind: asdict(result) for kind, result in found.items()}
    for of_kind in numbers.values():
        del of_kind["images"]
    facts = {"images": len(shares), "left_out": total - len(shares), "size": side}
    return numbers | facts | {"foreground": float(np.mean(shares))}


def merged(parts: list[Jaccard]) -> Jaccard:
    """Combines the means over parts of the images to means over all."""
    counts = np.array([part.images for part in parts])

    def mean(values: list[Any]) -> Any:
        return np.average(np.array(values), axis=0, weights=counts)

    heads = mean([part.heads for part in parts])
    best = int(heads.argmax())
    return Jaccard(
        heads=[round(float(x), 6) for x in heads],
        best_head=best,
        best=float(heads[best]),
        best_per_image=float(mean([part.best_per_image for part in parts])),
        average=float(mean([part.average for part in parts])),
        images=int(counts.sum()),
    )


def jaccard_table(numbers: dict[str, Any]) -> Table:
    """Returns the results as a table for the terminal, in percent."""
    title = f"Jaccard of what {KEEP:.0%} of the saliency lies in, %, {numbers['images']} images"
    everything = 100 * numbers["foreground"]
    table = Table(title=f"{title} (everything: {everything:.1f})", title_justify="left")
    for name in ("", "best head", "best of each image", "average map"):
        table.add_column(name, justify="right" if name else "left")
    for kind in ("untrained", "trained"):
        row = numbers[kind]
        cells = [row["best"], row["best_per_image"], row["average"]]
        texts = [f"{100 * cell:.1f}" for cell in cells]
        texts[0] += f" (head {row['best_head'] + 1})"
        table.add_row(kind, *texts)
    return table


def _chunk(context: Context, rows: range) -> dict[int, Marked]:
    """Returns image, foreground and ignored pixels for each row that can be used."""
    found: dict[int, Marked] = {}
    for row in rows:
        index = int(context.test.index[row])
        try:
            image, mask = context.test.source.read(index).image, context.test.source.mask(index)
        except BadSampleError:
            continue
        if mask is None or mask.foreground.shape != image.shape[1:]:
            continue
        foreground, ignored = mask.foreground.numpy(), mask.ignored.numpy()
        if (foreground & ~ignored).any():
            found[row] = image, foreground, ignored
    return found


def _maps(encoder: Encoder, images: tuple[Tensor, ...], side: int) -> Array:
    """Returns the saliency maps of images resized to squares of `side` pixels."""
    pixels = [encoder.preprocess.stretched(image, (side, side)) for image in images]
    return pixel_maps(encoder, torch.stack(pixels), "jaccard")


def _figure(
    encoders: dict[str, Encoder],
    found: dict[str, Jaccard],
    looked_at: list[Marked],
    side: int,
    path: Path,
) -> Path:
    """Writes a column per image: the image, its objects, and each encoder's best head's mask."""
    images = tuple(image for image, _, _ in looked_at)
    maps = {kind: _maps(encoder, images, side) for kind, encoder in encoders.items()}
    own = encoders["trained"].preprocess
    mean, std = (torch.tensor(v)[:, None, None] for v in (own.mean, own.std))
    columns = []
    for i, (image, foreground, _) in enumerate(looked_at):
        seen_CSS = own.stretched(image, (side, side)) * std + mean
        picture = in_colours(seen_CSS[None], fill_no_range(image))[0].permute(1, 2, 0).numpy()
        rows, across = (_middles(length, side) for length in foreground.shape)
        cells = [Cell(picture), Cell(mark(picture, foreground[np.ix_(rows, across)], 0.0))]
        for kind, result in found.items():
            seen = mass_mask(maps[kind][i, result.best_head])
            cells.append(Cell(mark(picture, seen, 0.0)))
        columns.append(cells)
    return save_grid(
        [list(row) for row in zip(*columns, strict=True)],
        path,
        side=cell_side(side),
        margin=["image", "marked", *encoders],
    )


def _middles(length: int, side: int) -> Array:
    """Returns, for each of `side` pixels, the pixel of `length` that its centre is in."""
    return (2 * np.arange(side) + 1) * length // (2 * side)
