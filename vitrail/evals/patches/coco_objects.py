"""The annotated objects of a COCO file, checked before they reach native code.

pycocotools allocates by what a file says, unchecked: a polygon far outside its image, or run
lengths that do not fit it, crash the process or take gigabytes. An object with a fault is left out,
listed by name; the others stay.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vitrail.data.decode.image import MAX_PIXELS

OUTSIDE = 1.0  # how far a coordinate may lie outside of the image, in sides of it
MAX_OUTLINE = 2_000_000  # pixels along all outlines of an object; pycocotools takes 120 bytes each
LISTED = 3  # faults listed by name

Size = tuple[int, int]


def check_size(name: str, size: Sequence[Any]) -> str:
    """Returns the fault of an image's height and width; an empty string for valid ones."""
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in size)
    if not whole or min(size) < 1:
        return f"gives {name!r} the size {_short(list(size))}"
    if size[0] * size[1] > MAX_PIXELS:
        return f"gives {name!r} {_short(list(size))} pixels, more than the limit of {MAX_PIXELS:,}"
    return ""


def usable_objects(
    rows: Iterable[Any], sizes: Mapping[Any, Size]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the objects that can be measured, complete, and the faults of the others.

    What a file may leave out is filled in: iscrowd is 0, area is the box's, the box is that of the
    polygons. Ids are numbered from 1, as the evaluator takes 0 for no object.

    Args:
        rows: "annotations" of a COCO file.
        sizes: height and width of every image, by its id.
    """
    usable: list[dict[str, Any]] = []
    faults = []
    for at, row in enumerate(rows):
        fault = _fault(row, sizes)
        if fault:
            faults.append(f"object {at} (counted from 0) has {fault}")
            continue
        box = row.get("bbox") or _box_of(row["segmentation"])
        area = row.get("area")
        usable.append(
            {
                **row,
                "id": len(usable) + 1,
                "bbox": box,
                "iscrowd": int(bool(row.get("iscrowd"))),
                "area": box[2] * box[3] if area is None else area,
            }
        )
    return usable, faults


def faults_line(faults: Sequence[str], where: str) -> str:
    """Returns a sentence on the objects that are left out."""
    more = "" if len(faults) <= LISTED else f"; and {len(faults) - LISTED} more"
    return f"coco: {where}: {len(faults)} objects are left out: {'; '.join(faults[:LISTED])}{more}"


def _fault(row: Any, sizes: Mapping[Any, Size]) -> str:
    """Returns the fault of an object; an empty string for a usable one."""
    if not isinstance(row, Mapping):
        return f"{_short(row)} instead of fields"
    image = row.get("image_id")
    if not isinstance(image, (int, str)) or image not in sizes:
        return f"the image_id {_short(image)}, of no image"
    area, crowd = row.get("area"), row.get("iscrowd")
    if area is not None and not (_is_number(area) and 0 <= area <= MAX_PIXELS):
        return f"the area {_short(area)}"
    if crowd not in (None, 0, 1):
        return f"iscrowd {_short(crowd)} instead of 0 or 1"
    size = sizes[image]
    return _box_fault(row, size) or _shape_fault(row.get("segmentation"), size)


def _box_fault(row: Mapping[str, Any], size: Size) -> str:
    box = row.get("bbox")
    if not box:
        outlines = isinstance(row.get("segmentation"), list) and row["segmentation"]
        return "" if outlines else "no bbox"
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return f"the bbox {_short(box)} instead of [x, y, width, height]"
    x, y, width, height = box
    inside = _is_near([x, x + width], size[1]) and _is_near([y, y + height], size[0])
    if not inside or width < 0 or height < 0:
        return f"the bbox {_short(box)}, far outside of its image of {size[1]} x {size[0]} pixels"
    return ""


def _shape_fault(shape: Any, size: Size) -> str:
    if shape is None or shape == []:
        return ""  # a box alone
    if isinstance(shape, list):
        return _outline_fault(shape, size)
    if isinstance(shape, Mapping) and {"size", "counts"} <= shape.keys():
        return _lengths_fault(shape, size)
    return "a segmentation that is neither polygons nor run lengths"


def _outline_fault(outlines: list[Any], size: Size) -> str:
    along = 0.0
    for outline in outlines:
        even = isinstance(outline, list) and len(outline) >= 6 and len(outline) % 2 == 0
        if not even or not all(map(_is_number, outline)):
            return "a segmentation that is neither polygons nor run lengths"
        if not _is_near(outline[::2], size[1]) or not _is_near(outline[1::2], size[0]):
            return f"a polygon far outside of its image of {size[1]} x {size[0]} pixels"
        points = list(zip(outline[::2], outline[1::2], strict=True))
        pairs = zip(points, [*points[1:], points[0]], strict=True)
        along += sum(max(abs(a - c), abs(b - d)) for (a, b), (c, d) in pairs)
    return f"outlines of {along:,.0f} pixels" if along > MAX_OUTLINE else ""


def _lengths_fault(shape: Mapping[str, Any], size: Size) -> str:
    if list(shape["size"]) != list(size) if isinstance(shape["size"], list) else True:
        return f"run lengths for {_short(shape['size'])}, its image has {list(size)}"
    counts, pixels = shape["counts"], size[0] * size[1]
    if isinstance(counts, str):
        counts = decoded_lengths(counts, pixels)
    if not isinstance(counts, list) or not all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= pixels for n in counts
    ):
        return "run lengths that are no numbers of pixels"
    total = sum(counts)
    return "" if total == pixels else f"run lengths of {total} pixels, its image has {pixels}"


def decoded_lengths(text: str, pixels: int) -> list[int] | None:
    """Decodes COCO's compressed run lengths; None for a text that is none.

    A number is written in groups of 5 bits, the lowest first, one letter of code 48 + 32 · more +
    group each; the highest bit of the last group is the sign. From the fourth number on, each is
    the difference from the second one before it.

    Args:
        text: the letters.
        pixels: of the image; there are no more numbers than that, and one.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        group = ord(letter) - 48
        if not 0 <= group < 64 or shift > 60 or len(counts) > pixels:
            return None
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    return None if shift else counts


def _box_of(outlines: list[list[float]]) -> list[float]:
    """Returns the box [x, y, width, height] around polygons."""
    xs = [x for outline in outlines for x in outline[::2]]
    ys = [y for outline in outlines for y in outline[1::2]]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _is_number(value: Any) -> bool:
    """Returns true for a number of a usual size; NaN compares false."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e9


def _is_near(values: Sequence[float], side: int) -> bool:
    return -OUTSIDE * side <= min(values) and max(values) <= (1 + OUTSIDE) * side


def _short(value: Any) -> str:
    """Returns a value as text, cut; a number of too many digits has none."""
    try:
        text = repr(value)
    except ValueError:
        return "of too many digits"
    return text if len(text) <= 60 else f"{text[:60]}…"
