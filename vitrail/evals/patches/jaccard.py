"""Saliency maps against the objects that people have marked: the protocol `jaccard`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from rich.table import Table
from torch import Tensor

from vitrail.data.contract import BadSampleError
from vitrail.encoder import Encoder
from vitrail.evals.colours import fill_no_range, in_colours
from vitrail.evals.contract import Material
from vitrail.evals.figures.grid import Cell, cell_side, save_grid
from vitrail.evals.jaccard import Jaccard, saliency_jaccard
from vitrail.evals.patches.saliency import (
    KEEP,
    mark,
    mass_mask,
    pixel_maps,
    token_backbone,
    whole_patches,
)

Array = np.ndarray
TOGETHER = 16  # images whose maps are held at once

Marked = tuple[Tensor, Bool[Array, "y x"], Bool[Array, "y x"]]


def jaccard(m: Material) -> dict[str, Any]:
    """Untrained and trained encoder on all test images with objects; figures/jaccard.png.

    Images are seen whole, as squares of `image_size` pixels (the encoder's own size, or 480 as
    published). "foreground" is the Jaccard similarity of marking everything. Images that cannot be
    read, and those without an object, are left out and counted.

    Raises:
        ValueError: a backbone without tokens, data without masks, or none that can be used.
    """
    token_backbone(m.encoder, "jaccard")
    source = m.test.source
    if not source.masked:
        raise ValueError(
            f"jaccard: {source.spec} has no masks of objects; name data that has by --data "
            "(voc:DIR, pets:DIR or coco:DIR)"
        )
    side = whole_patches(m.encoder, m.settings.image_size or m.encoder.preprocess.size, "jaccard")
    encoders = {"untrained": m.encoder.untrained(), "trained": m.encoder}
    parts: dict[str, list[Jaccard]] = {kind: [] for kind in encoders}
    shares: list[float] = []
    total = len(m.test.index)
    turn = np.argsort(m.chosen(total))  # of each row to be drawn, if its turn comes
    looked_at: dict[int, Marked] = {}
    for start in range(0, total, TOGETHER):
        chunk = _chunk(m, range(start, min(start + TOGETHER, total)))
        if not chunk:
            continue
        images, masks, ignored = zip(*chunk.values(), strict=True)
        shares += [float(a[~b].mean()) for a, b in zip(masks, ignored, strict=True)]
        for kind, encoder in encoders.items():
            maps = _maps(encoder, images, side)
            parts[kind].append(saliency_jaccard(maps, masks, ignored))
        looked_at |= {int(turn[row]): marked for row, marked in chunk.items()}
        looked_at = dict(sorted(looked_at.items())[: m.settings.pictures])
    if not shares:
        raise ValueError(
            f"jaccard: {source.spec}: none of its {total} images has a mask of an object "
            "that can be read"
        )
    found = {kind: merged(of_kind) for kind, of_kind in parts.items()}
    _figure(encoders, found, list(looked_at.values()), side, m.figures / "jaccard.png")
    numbers: dict[str, Any] = {kind: asdict(result) for kind, result in found.items()}
    for of_kind in numbers.values():
        del of_kind["images"]
    facts = {"images": len(shares), "left_out": total - len(shares), "size": side}
    return numbers | facts | {"foreground": float(np.mean(shares))}


def merged(parts: list[Jaccard]) -> Jaccard:
    """The means over all images, from those over some of them."""
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
    """For a terminal, in percent."""
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


def _chunk(m: Material, rows: range) -> dict[int, Marked]:
    """row -> image, foreground and ignored pixels, of those that can be used."""
    found: dict[int, Marked] = {}
    for row in rows:
        index = int(m.test.index[row])
        try:
            image, mask = m.test.source.read(index).image, m.test.source.mask(index)
        except BadSampleError:
            continue
        if mask is None or mask.foreground.shape != image.shape[1:]:
            continue
        foreground, ignored = mask.foreground.numpy(), mask.ignored.numpy()
        if (foreground & ~ignored).any():
            found[row] = image, foreground, ignored
    return found


def _maps(encoder: Encoder, images: tuple[Tensor, ...], side: int) -> Array:
    pixels = [encoder.preprocess.stretched(image, (side, side)) for image in images]
    return pixel_maps(encoder, torch.stack(pixels), "jaccard")


def _figure(
    encoders: dict[str, Encoder],
    found: dict[str, Jaccard],
    looked_at: list[Marked],
    side: int,
    path: Path,
) -> Path:
    """A column an image: it, its objects, and what the best head of each encoder looks at."""
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
    """The pixel of `length` that the middle of each of `side` lies in."""
    return (2 * np.arange(side) + 1) * length // (2 * side)
