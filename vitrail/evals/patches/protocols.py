"""Objects that the encoder finds by itself: the protocols `maskcut` and `detection`."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from vitrail.encoder import Encoder
from vitrail.evals.contract import Material
from vitrail.evals.figures.overlays import maskcut_figure, overlays_figure
from vitrail.evals.patches.coco import CocoFolder, evaluate_maskcut, open_coco, truth_masks
from vitrail.evals.patches.maskcut import segment

MEASURES = ("AP", "AP50", "AP75")


def draw_objects(m: Material) -> None:
    """A picture of what MaskCut finds in a few test images."""
    images = m.images(m.settings.pictures)
    maskcut_figure(m.encoder, images, m.figures / "maskcut.png", m.settings.maskcut)


def detect(m: Material) -> dict[str, Any]:
    """Class-agnostic AP of MaskCut on a COCO-format folder, trained beside untrained."""
    place = m.settings.coco
    if not place.folder:
        raise ValueError(
            "detection: it needs annotated objects; name a folder in COCO's format by "
            "--coco.folder DIR (with --coco.annotations and --coco.images where they are called "
            "otherwise)"
        )
    coco = open_coco(place.folder, place.annotations, place.images)
    numbers: dict[str, Any] = {}
    for kind, encoder in {"untrained": m.encoder.untrained(), "trained": m.encoder}.items():
        out = m.figures.parent / f"predictions_{kind}.json"
        numbers[kind] = evaluate_maskcut(encoder, coco, out, m.settings.maskcut)
    _figure(m, m.encoder, coco)
    return {"folder": place.folder, **numbers}


def _figure(m: Material, encoder: Encoder, coco: CocoFolder) -> None:
    few = coco.first(m.settings.pictures)
    images = [few.read(image, encoder.channels) for image in few.images]
    found = segment(encoder, images, m.settings.maskcut)
    truth = [truth_masks(few, image) for image in few.images]
    overlays_figure(images, found, m.figures / "detection.png", truth)


def detection_table(numbers: Mapping[str, Any]) -> Table:
    """For a terminal, in percent."""
    images = numbers["trained"]["images"]
    title = f"objects found by MaskCut in {images} images, class-agnostic, %"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for shape in ("box", "mask"):
        for measure in MEASURES:
            table.add_column(f"{shape} {measure}", justify="right")
    for kind in ("untrained", "trained"):
        found = numbers[kind]
        cells = [f"{100 * found[s][m]:.1f}" for s in ("box", "mask") for m in MEASURES]
        table.add_row(kind, *cells)
    return table
