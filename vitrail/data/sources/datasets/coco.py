"""COCO's images (Lin et al. 2014, https://cocodataset.org), with all objects of one as its mask.

train2017/000000000009.jpg, val2017/...
annotations/instances_train2017.json, instances_val2017.json

Shape legend: H, W an image.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitrail.atomic import parse_json
from vitrail.data.contract import BadSampleError, Mask, Source, Split
from vitrail.data.decode.image import MAX_PIXELS
from vitrail.data.sources.files import FileSource
from vitrail.data.sources.left_out import Left, left_out_notes
from vitrail.data.sources.spec import find_place
from vitrail.data.sources.splits import no_test_split

FOLDERS = {"train": "train2017", "test": "val2017"}
INSIDE = ("", "coco")
SUFFIXES = (".jpg", ".jpeg", ".png")
REMEDY = (
    "download train2017.zip, val2017.zip and annotations_trainval2017.zip from "
    "https://cocodataset.org/#download and unpack them there"
)


class CocoSource(FileSource):
    """Images without labels: one shows objects of several classes."""

    def __init__(self, spec: str, root: Path, folder: str, names: list[str], channels: int | None):
        super().__init__(spec, root, names, channels=channels)
        self._annotations = root / "annotations" / f"instances_{folder}.json"
        self.masked = self._annotations.is_file()
        self._objects: dict[str, Any] | None = None

    def mask(self, index: int) -> Mask | None:
        """Returns the objects of all classes as one mask; crowds are ignored. None if unannotated.

        The whole file of annotations is read for the first mask. That of train2017 is 450 MB of
        JSON.

        Raises:
            BadSampleError: its annotation has another format than COCO's.
            ValueError: so has the file of annotations, or pycocotools is not installed.
        """
        if not self.masked:
            return None
        if self._objects is None:
            self._objects = _read_objects(self.spec, self._annotations)
        id = self.id(index)
        found = self._objects.get(id.rpartition("/")[2])
        return None if found is None else _union(id, *found)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_objects": None}


def open_coco_images(rest: str, split: Split, channels: int | None) -> Source:
    """Opens `coco:DIR`: the images of train2017, and as "test" those of val2017.

    Raises:
        ValueError: no such folder, no images in it, or channels other than 1 and 3.
        NoTestSplitError: "test" without val2017.
    """
    spec = f"coco:{rest}"
    folder = FOLDERS[split]
    has = next((f for f in FOLDERS.values() if _holds(rest, f)), FOLDERS["train"])
    root = find_place("coco", rest, INSIDE, has, REMEDY)
    if not (root / folder).is_dir():
        if split == "test":
            raise no_test_split(spec, f"there is no {root / folder}", "add it")
        raise ValueError(f"{spec}: there is no {root / folder}; {REMEDY}")
    # names are numbers of one width, so this is their order
    files = sorted(os.listdir(root / folder))
    names = [f"{folder}/{name}" for name in files if name.lower().endswith(SUFFIXES)]
    if not names:
        raise ValueError(f"{spec}: there are no images in {root / folder}; {REMEDY}")
    source = CocoSource(spec, root, folder, names, channels)
    left = Left()
    for name in files:
        if not name.startswith(".") and not name.lower().endswith(SUFFIXES):
            left.add_file(os.fsencode(f"{folder}/{name}"))
    source.notes = tuple(left_out_notes(left))
    return source


def _holds(rest: str, folder: str) -> bool:
    return any((Path(rest).expanduser() / sub / folder).is_dir() for sub in INSIDE)


def _read_objects(spec: str, path: Path) -> dict[str, tuple[int, int, list[tuple[Any, bool]]]]:
    """Returns height, width and (segmentation, true for a crowd) of each object, by file name."""
    try:
        content = parse_json(path.read_bytes())
        images = {
            image["id"]: (str(image["file_name"]), int(image["height"]), int(image["width"]))
            for image in content["images"]
        }
        found: dict[str, tuple[int, int, list[tuple[Any, bool]]]] = {
            name: (height, width, []) for name, height, width in images.values()
        }
        for row in content["annotations"]:
            name = images[row["image_id"]][0]
            found[name][2].append((row["segmentation"], bool(row.get("iscrowd"))))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{spec}: {path} does not hold COCO's images and annotations ({error!r})"
        ) from error
    return found


def _union(id: str, height: int, width: int, objects: list[tuple[Any, bool]]) -> Mask:
    try:
        from pycocotools import mask as code
    except ImportError as error:
        raise ValueError("coco needs pycocotools: pip install 'vitrail[coco]'") from error
    if not 0 < height * width <= MAX_PIXELS:
        raise BadSampleError(id, f"its annotation says that it has {width:,} x {height:,} pixels")
    masks = {False: np.zeros((height, width), bool), True: np.zeros((height, width), bool)}
    for shape, crowd in objects:
        try:
            lengths = _lengths(code, shape, height, width)
            masks[crowd] |= code.decode(lengths).astype(bool)
        # pycocotools raises many types for a damaged one
        except Exception as error:
            raise BadSampleError(
                id, f"an object of it is not marked as COCO does ({error})"
            ) from error
    foreground_HW, crowd_HW = (torch.from_numpy(masks[crowd]) for crowd in (False, True))
    return Mask(foreground_HW, crowd_HW & ~foreground_HW)


def _lengths(code: Any, shape: Any, height: int, width: int) -> Any:
    """Returns the run lengths of an object, made of its outlines or counts if need be."""
    if isinstance(shape, list):
        return code.merge(code.frPyObjects(shape, height, width))
    if shape["size"] != [height, width]:
        raise ValueError(f"its mask is of the size {shape['size']}")
    if isinstance(shape["counts"], list):
        return code.frPyObjects(shape, height, width)
    return shape
