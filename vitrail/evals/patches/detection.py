"""The protocol `detection`: precision of MaskCut's objects against annotated ones.

Shape legend: M masks of an image · y, x its pixels.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Bool
from rich.table import Table
from torch import Tensor

from vitrail.data.contract import BadSampleError
from vitrail.evals.contract import Context
from vitrail.evals.figures.overlays import overlays_figure
from vitrail.evals.patches.coco import CocoFolder, evaluate_maskcut, open_coco, truth_masks
from vitrail.evals.patches.maskcut import MaskCut, overlap, segment

MEASURES = ("AP", "AP50", "AP75")


@dataclass(frozen=True)
class CocoPlace:
    """Location of a COCO-format data set.

    Attributes:
        folder: folder of the data set; empty for none.
        annotations: annotation file within it; annotations/instances_val2017.json for COCO itself.
        images: image folder within it; val2017 for COCO itself.
    """

    folder: str = ""
    annotations: str = "annotations.json"
    images: str = "images"


def detect(context: Context, maskcut: MaskCut, place: CocoPlace) -> dict[str, Any]:
    """Measures class-agnostic AP of MaskCut on a COCO-format folder, trained beside untrained.

    Writes the predictions beside the figures, and draws figures/detection.png.
    """
    if not place.folder:
        raise ValueError(
            "detection: it needs annotated objects; name a folder in COCO's format by "
            "--coco.folder DIR (with --coco.annotations and --coco.images where they are called "
            "otherwise)"
        )
    coco = open_coco(place.folder, place.annotations, place.images)
    numbers: dict[str, Any] = {}
    encoders = {"untrained": context.encoder.untrained(), "trained": context.encoder}
    for kind, encoder in encoders.items():
        out = context.figures.parent / f"predictions_{kind}.json"
        numbers[kind] = evaluate_maskcut(encoder, coco, out, maskcut)
    _draw(context, coco, maskcut)
    return {"folder": place.folder, **numbers}


def _draw(context: Context, coco: CocoFolder, config: MaskCut) -> None:
    encoder = context.encoder
    readable = list(islice(_readable(coco, encoder.channels), context.pictures))
    images = [pixels for _, pixels in readable]
    found = segment(encoder, images, config)
    truth = [truth_masks(coco, entry) for entry, _ in readable]
    pairs = [partners(*masks) for masks in zip(truth, found, strict=True)]
    overlays_figure(images, found, context.figures / "detection.png", truth, pairs)


def _readable(coco: CocoFolder, channels: int) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Yields the images that can be read; the others are counted by `evaluate_maskcut`."""
    for image in coco.images:
        try:
            yield image, coco.read(image, channels)
        except BadSampleError:
            continue


def partners(
    truth: Bool[np.ndarray, "_ y x"], found: Bool[np.ndarray, "_ y x"]
) -> list[int | None]:
    """Returns, for each annotated mask, the number of the found one of largest overlap, if any."""
    numbers: list[int | None] = []
    for mask in truth:
        overlaps = [overlap(mask, other) for other in found]
        best = int(np.argmax(overlaps)) if overlaps else 0
        numbers.append(best if overlaps and overlaps[best] > 0 else None)
    return numbers


def detection_table(numbers: Mapping[str, Any]) -> Table:
    """Returns the results as a table for the terminal, in percent."""
    images = numbers["trained"]["images"]
    title = f"objects found by MaskCut in {images} images, class-agnostic, %"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for shape in ("box", "mask"):
        for measure in MEASURES:
            table.add_column(f"{shape} {measure}", justify="right")
    for kind in ("untrained", "trained"):
        found = numbers[kind]
        cells = [
            f"{100 * found[s][m]:.1f}" if s in found else "–"  # objects with boxes alone
            for s in ("box", "mask")
            for m in MEASURES
        ]
        table.add_row(kind, *cells)
    return table
