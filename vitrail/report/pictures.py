"""Pictures of a run as data URIs, few enough bytes that the page stays below 10 MB."""

import base64
import io
import struct
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from vitrail.report.commands import evaluate_again, train_again
from vitrail.report.rows import describe
from vitrail.report.run_files import RunFiles

BUDGET = 6_800_000  # bytes of all pictures of a page; base64 makes 4/3 of it
QUALITY = 80  # of the WebP that a picture becomes where they are more
PNG, WEBP = "image/png", "image/webp"
FITS = 500  # pixels of width that a phone shows without scrolling, shrunk a little


class Words(NamedTuple):
    """kind: of picture, for those who cannot see it."""

    title: str
    kind: str
    meaning: str


PICTURE_WORDS: dict[str, Words] = {
    "reconstruction": Words(
        "What it fills in",
        "a grid of training images",
        "A training image as the method is given it, the patches that are left visible, what is "
        "predicted from these alone, and the prediction with the visible patches in it. Only the "
        "hidden patches are trained; where they are predicted after normalisation (norm_pix), "
        "each is drawn with the brightness and contrast of the true one.",
    ),
    "confusion": Words(
        "What it takes for what",
        "a table of classes",
        "Of the test images of each class (row), the percentage that k-nearest neighbours take for "
        "each class (column), with trained features. What is right lies on the diagonal.",
    ),
    "neighbours": Words(
        "Nearest neighbours",
        "a grid of images",
        "On the left of each row a test image, then the training images whose features are most "
        "similar, with the cosine similarity (1 is the same direction). Where labels are known, ✓ "
        "and green mark the same class, ✗ and red another.",
    ),
    "retrieval": Words(
        "What captions find",
        "a grid of test images",
        "On the left of each row the image that a caption was written for, then the images most "
        "similar to the caption, with the cosine similarity. ✓ and green mark its own.",
    ),
    "saliency": Words(
        "Where it looks",
        "a grid of test images",
        "How much each patch of the image gives to the image's feature in the last layer: on "
        "average over the attention heads, as the fewest patches that hold 60 % of the average, "
        "and for each head. Brighter is more.",
    ),
    "pca": Words(
        "What it tells apart",
        "a grid of test images",
        "Principal components of the features of all patches in these images. The first, in the "
        "second row, separates the foreground, in the third; the next three are drawn in it as "
        "red, green and blue: patches of like colour have like features, in whichever image.",
    ),
    "parts": Words(
        "Like parts",
        "a grid of test images",
        "Four images of a class, and beside each its parts: principal components of the patches of "
        "these four images alone, the first for the foreground, the next three as red, green and "
        "blue. Parts of one colour are alike to the encoder.",
    ),
    "jaccard": Words(
        "Where it looks, and what is marked",
        "a grid of test images",
        "The patches that hold 60 % of the last layer's map, of the best head and of the average, "
        "over the objects that people have marked.",
    ),
    "map": Words(
        "Where the images lie",
        "three maps of points",
        "Each point is a test image, brought from its features to a plane: of raw pixels, of the "
        "untrained encoder and of the trained one. Colours are classes, where they are known.",
    ),
    "maskcut": Words(
        "Objects it finds by itself",
        "a grid of test images",
        "Objects that MaskCut separates by the last layer's keys, without any label: the graph of "
        "an image's patches is cut where they are least alike.",
    ),
    "detection": Words(
        "Objects found, and objects marked",
        "a grid of annotated images",
        "Objects that MaskCut separates without any label, above those that people have marked. A "
        "marked object has the colour of the found one that it shares most with; white: none.",
    ),
    "xray": Words(
        "Layer by layer",
        "curves over the layers, 0 being the embedding",
        "What the layers do to the tokens of an image, before and after training. Where the coding "
        "rate falls, tokens grow alike; where the encoder's attention works within subspaces, a "
        "stroke of the compression term that falls is a layer whose attention compresses, as CRATE "
        "is designed to. Shades are the standard deviation over images.",
    ),
}
WHILE_TRAINING = ("reconstruction",)  # drawn by `vitrail pretrain`


class Picture(NamedTuple):
    """width, height: in pixels. run: the label of its run."""

    name: str
    run: str
    uri: str
    width: int
    height: int
    again: str | None

    @property
    def scrolls(self) -> bool:
        """Whether it is wider than a phone."""
        return self.width > FITS


def picture_words(name: str) -> Words:
    """What a picture shows; of one that is not in the table, its protocol's help."""
    if name in PICTURE_WORDS:
        return PICTURE_WORDS[name]
    title, help_ = describe(name)
    what = help_.removeprefix("Picture: ")
    return Words(title, "a picture", f"{what[:1].upper()}{what[1:]}.")


def pictures(runs: Sequence[RunFiles]) -> dict[str, list[Picture]]:
    """name -> the picture of each run that has it, in the page's order.

    What does not fit the page is left out, and the run's remarks say so.
    """
    names = list(dict.fromkeys(name for files in runs for name in files.pictures))
    slots = [(files, name) for name in names for files in runs if name in files.pictures]
    shown: dict[str, list[Picture]] = {}
    for (files, name), (kind, content) in zip(slots, _fitted(slots), strict=True):
        if not content:
            continue
        width, height = _sides(files.pictures[name])
        text = base64.b64encode(content).decode("ascii")
        again = train_again(files) if name in WHILE_TRAINING else evaluate_again(files, [name])
        picture = Picture(name, files.label, f"data:{kind};base64,{text}", width, height, again)
        shown.setdefault(name, []).append(picture)
    return shown


def _fitted(slots: Sequence[tuple[RunFiles, str]]) -> list[tuple[str, bytes]]:
    """(kind, bytes) of each picture; as WebP, the largest first, while all of them are too many.

    Those that are still too many have no bytes, and their runs a remark.
    """
    found = [(PNG, files.pictures[name]) for files, name in slots]
    largest = sorted(range(len(found)), key=lambda at: -len(found[at][1]))
    for at in largest:
        small = _webp(found[at][1]) if _size(found) > BUDGET else b""
        if 0 < len(small) < len(found[at][1]):
            found[at] = WEBP, small
    for at in sorted(largest, key=lambda at: -len(found[at][1])):
        if _size(found) > BUDGET:
            found[at] = PNG, b""
    for (files, name), (_, content) in zip(slots, found, strict=True):
        if not content:
            files.remarks.append(f"figures/{name}.png is too large for this page and is left out")
    return found


def _size(found: Sequence[tuple[str, bytes]]) -> int:
    return sum(len(content) for _, content in found)


def _sides(png: bytes) -> tuple[int, int]:
    """Width and height, from the PNG's first chunk."""
    width, height = struct.unpack(">II", png[16:24])
    return int(width), int(height)


def _webp(png: bytes) -> bytes:
    """The same picture in fewer bytes, or in none where it cannot be read."""
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            image.load()
            target = io.BytesIO()
            image.convert("RGBA").save(target, "WEBP", quality=QUALITY)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return b""
    return target.getvalue()
