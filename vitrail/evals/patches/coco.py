"""Object detection and segmentation by COCO's rules, class-agnostic, on a COCO-format folder.

Class-agnostic means that all categories count as one, as CutLER (Wang et al. 2023) and other
methods without labels report it. The evaluator is pycocotools' COCOeval itself: IoU from 0.50 to
0.95, up to 100 predictions per image, crowds ignored.

Scores: MaskCut has none; as its authors do (facebookresearch/CutLER issue 18), every mask gets 1.
Among equal scores the evaluator's order is fixed: images by their id, and within an image the order
of the file, which is the order in which masks were found. The result is therefore reproducible, but
AP depends on this arbitrary order: another numbering of the images changes it.

Shape legend: M masks of an image · y, x its pixels.
"""

import contextlib
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from torch import Tensor

from vitrail.atomic import parse_json, write_atomically
from vitrail.data.contract import BadSampleError
from vitrail.data.decode.image import decode_file
from vitrail.encoder import Encoder
from vitrail.evals.patches.coco_objects import check_size, faults_line, usable_objects
from vitrail.evals.patches.maskcut import MaskCut, Refine, segment

OBJECT = 1  # id of the only category
MEASURES = {"AP": 0, "AP50": 1, "AP75": 2}  # positions in COCOeval's summary
KINDS = {"box": "bbox", "mask": "segm"}


@dataclass(frozen=True)
class CocoFolder:
    """An opened COCO-format data set.

    Attributes:
        folder: folder of the image files.
        images: COCO's image entries (id, file_name, width, height), ordered by id.
        truth: content of the annotation file, its objects without the faulty ones.
        faults: of the objects that are left out.
    """

    folder: Path
    images: list[dict[str, Any]]
    truth: dict[str, Any]
    faults: tuple[str, ...] = ()

    def read(self, image: Mapping[str, Any], channels: int) -> UInt8[Tensor, "{channels} y x"]:
        """Decodes an image of the list `images`.

        Raises:
            BadSampleError: a file that cannot be decoded, or of another size than annotated.
        """
        name = image["file_name"]
        pixels = decode_file(self.folder / name, channels, name)
        if tuple(pixels.shape[1:]) != (image["height"], image["width"]):
            raise BadSampleError(
                name,
                f"it has {pixels.shape[2]} x {pixels.shape[1]} pixels, its annotations are for "
                f"{image['width']} x {image['height']}",
            )
        return pixels

    def first(self, count: int) -> "CocoFolder":
        """Returns the first `count` images with their annotations."""
        images = self.images[:count]
        ids = {image["id"] for image in images}
        rows = [row for row in self.truth["annotations"] if row["image_id"] in ids]
        truth = self.truth | {"images": images, "annotations": rows}
        return replace(self, images=images, truth=truth)


def open_coco(
    root: str | Path, annotations: str = "annotations.json", images: str = "images"
) -> CocoFolder:
    """Opens a folder in COCO's format, such as `vitrail.data.tools.scenes.write_scenes` makes.

    COCO itself: open_coco(DIR, "annotations/instances_val2017.json", "val2017").

    Args:
        root: folder of the data set.
        annotations: annotation file within root.
        images: image folder within root.

    Raises:
        ValueError: no such file, a file not in COCO's "instances" format, no images in it, no
            object that can be used, or an image name that leads out of the folder.
    """
    path = Path(root).expanduser() / annotations
    try:
        truth = parse_json(path.read_text(encoding="utf-8"))
        listed = sorted(truth["images"], key=lambda image: image["id"])
        names = [str(image["file_name"]) for image in listed]
        sizes = [(image["height"], image["width"]) for image in listed]
        rows = list(truth["annotations"])
        ids = [image["id"] for image in listed]
        known = dict(zip(ids, sizes, strict=True))
    except FileNotFoundError as error:
        raise ValueError(
            f"coco: there is no file {path}; a COCO-format folder has {annotations} and {images}/"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"coco: {path} does not hold COCO's images and annotations ({error!r})"
        ) from error
    if not ids:
        raise ValueError(f"coco: {path} lists no images")
    if len(known) < len(ids):
        raise ValueError(f"coco: {path} has two images of one id")
    for name, size in zip(names, sizes, strict=True):
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or "\\" in name:
            raise ValueError(f"coco: {path} names the image {name!r}, outside of its folder")
        if wrong := check_size(name, size):
            raise ValueError(f"coco: {path} {wrong}")
    objects, faults = usable_objects(rows, known)
    if faults and not objects:
        raise ValueError(f"coco: {path}: none of its objects can be used: {faults[0]}")
    if faults:
        warnings.warn(faults_line(faults, str(path)), stacklevel=2)
    truth = truth | {"annotations": objects}
    return CocoFolder(Path(root).expanduser() / images, listed, truth, tuple(faults))


def evaluate_maskcut(
    encoder: Encoder,
    coco: CocoFolder,
    out: str | Path,
    config: MaskCut | None = None,
    refine: Refine | None = None,
) -> dict[str, Any]:
    """Runs MaskCut on all images, writes its predictions and measures their precision.

    An image that cannot be read is skipped and counted; its objects count as missed.

    Args:
        encoder: encoder with a token backbone.
        coco: images and annotations.
        out: path of the predictions, in COCO's results format.
        config: settings of MaskCut; `MaskCut()` if None.
        refine: refinement of each mask, if any.

    Returns:
        "box" and "mask": AP, AP50 and AP75, fractions in [0, 1], "mask" only if every object has
        one; "images", "unreadable", "predictions", and "objects_left_out" if any: counts.

    Raises:
        ValueError: as `segment` and `average_precision`; no image can be read.
    """
    rows: list[dict[str, Any]] = []
    unreadable: list[str] = []
    for image in coco.images:
        try:
            pixels = coco.read(image, encoder.channels)
        except BadSampleError as error:
            unreadable.append(str(error))
            continue
        rows += predictions(image["id"], segment(encoder, [pixels], config, refine)[0])
    if len(unreadable) == len(coco.images):
        raise ValueError(f"coco: none of the images can be read; the first: {unreadable[0]}")
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json.dumps(rows) + "\n")
    counts = {"images": len(coco.images), "unreadable": len(unreadable), "predictions": len(rows)}
    if coco.faults:
        counts["objects_left_out"] = len(coco.faults)
    return {**average_precision(coco.truth, rows), **counts}


def predictions(
    image_id: int, masks: Bool[np.ndarray, "M y x"], scores: Sequence[float] | None = None
) -> list[dict[str, Any]]:
    """Returns COCO's results of one image: masks as compressed run lengths, and their boxes.

    Args:
        image_id: COCO's id of the image.
        masks: masks of the objects, bool [M, y, x], none empty.
        scores: score of each mask; 1 if None.
    """
    code = _pycocotools("mask")
    scores = [1.0] * len(masks) if scores is None else scores
    rows = []
    for mask, score in zip(masks, scores, strict=True):
        lengths = code.encode(np.asfortranarray(mask.astype(np.uint8)))
        segmentation = {"size": list(mask.shape), "counts": lengths["counts"].decode("ascii")}
        rows.append(
            {
                "image_id": image_id,
                "category_id": OBJECT,
                "segmentation": segmentation,
                "bbox": code.toBbox(lengths).tolist(),
                "score": float(score),
            }
        )
    return rows


def truth_masks(coco: CocoFolder, image: Mapping[str, Any]) -> Bool[np.ndarray, "M y x"]:
    """Returns the masks of an image's annotated objects without crowds, in the file's order."""
    rows = [row for row in coco.truth["annotations"] if row["image_id"] == image["id"]]
    rows = [row for row in rows if not row.get("iscrowd")]
    api = _as_coco({"images": [image], "annotations": rows})
    masks = [
        api.annToMask(row).astype(bool) if row.get("segmentation") else _box_mask(row, image)
        for row in rows
    ]
    return np.stack(masks) if masks else np.zeros((0, image["height"], image["width"]), dtype=bool)


def _box_mask(row: Mapping[str, Any], image: Mapping[str, Any]) -> Bool[np.ndarray, "y x"]:
    """Returns the box of an object without an outline as a mask."""
    mask = np.zeros((image["height"], image["width"]), dtype=bool)
    x, y, width, height = row["bbox"]
    mask[
        max(0, round(y)) : max(0, round(y + height)), max(0, round(x)) : max(0, round(x + width))
    ] = 1
    return mask


def average_precision(
    truth: Mapping[str, Any], found: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """Computes class-agnostic AP, AP50 and AP75 of "box" and "mask", as fractions in [0, 1].

    Where an object has a box alone, only "box" is measured.

    Args:
        truth: COCO's images, annotations and categories; all categories count as one.
        found: predictions in COCO's results format, with `segmentation`, `bbox` and `score`.

    Raises:
        ValueError: no object in the truth but crowds, or a prediction in an unknown image.
    """
    if not any(not row.get("iscrowd") for row in truth["annotations"]):
        raise ValueError("coco: nothing is annotated, so there is no precision to measure")
    ids = {image["id"] for image in truth["images"]}
    unknown = [row["image_id"] for row in found if row["image_id"] not in ids]
    if unknown:
        raise ValueError(f"coco: a prediction is of image {unknown[0]}, which is not in the truth")
    outlined = all(row.get("segmentation") for row in truth["annotations"])
    kinds = KINDS if outlined else {"box": KINDS["box"]}
    if not found:  # pycocotools cannot load an empty list
        return {kind: dict.fromkeys(MEASURES, 0.0) for kind in kinds}
    expected = _as_coco(truth)
    # a copy, as pycocotools adds fields to its argument
    with contextlib.redirect_stdout(io.StringIO()):
        results = expected.loadRes(deepcopy(_of_one_class(found)))
    return {kind: _summary(expected, results, iou) for kind, iou in kinds.items()}


def _summary(expected: Any, results: Any, kind: str) -> dict[str, float]:
    """Runs COCOeval for "bbox" or "segm", without its prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _pycocotools("cocoeval").COCOeval(expected, results, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(evaluation.stats[at]) for name, at in MEASURES.items()}


def _as_coco(truth: Mapping[str, Any]) -> Any:
    """Returns pycocotools' index of the truth, with a single category."""
    coco = _pycocotools("coco").COCO()
    coco.dataset = {
        "images": list(truth["images"]),
        "annotations": deepcopy(_of_one_class(truth["annotations"])),
        "categories": [{"id": OBJECT, "name": "object"}],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _of_one_class(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "category_id": OBJECT} for row in rows]


def _pycocotools(module: str) -> ModuleType:
    """Returns a module of pycocotools, which is an optional dependency (it is compiled).

    Raises:
        ValueError: pycocotools is not installed.
    """
    try:
        from pycocotools import coco, cocoeval, mask
    except ImportError as error:
        raise ValueError("coco needs pycocotools: pip install 'vitrail[coco]'") from error
    return {"coco": coco, "cocoeval": cocoeval, "mask": mask}[module]
