"""Pictures of a run as data URIs, made small enough for a page below 10 MB."""

import base64
import io
import struct
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from vitrail.evals.registry import PROTOCOLS
from vitrail.reporting.commands import evaluate_again, train_again
from vitrail.reporting.run_files import WHILE_TRAINING, RunFiles

BUDGET = 6_800_000  # bytes of all pictures of a page; base64 makes 4/3 of it
QUALITY = 80  # of the WebP that a picture becomes where they are more
PNG, WEBP = "image/png", "image/webp"
FITS = 500  # pixels of width that a phone shows without scrolling, shrunk a little


class Words(NamedTuple):
    """The text about a picture.

    Attributes:
        title: its heading.
        kind: what is seen, for readers who cannot see it.
        meaning: what it shows.
    """

    title: str
    kind: str
    meaning: str


# pictures that are drawn while training, by no protocol
TRAINING_WORDS: dict[str, Words] = {
    "reconstruction": Words(
        "What it fills in",
        "a grid of training images",
        "A training image as the method is given it, the patches that are left visible, what is "
        "predicted from these alone, and the prediction with the visible patches in it. Only the "
        "hidden patches are trained; where they are predicted after normalisation (norm_pix), "
        "each is drawn with the brightness and contrast of the true one.",
    ),
}


class Picture(NamedTuple):
    """A picture of a run.

    Attributes:
        name: of the protocol, or of a picture of training.
        run: label of its run.
        uri: the file as a data URI.
        width: in pixels.
        height: in pixels.
        again: the command that makes it again, if known.
    """

    name: str
    run: str
    uri: str
    width: int
    height: int
    again: str | None

    @property
    def scrolls(self) -> bool:
        """True if it is wider than a phone."""
        return self.width > FITS


def picture_words(name: str) -> Words:
    """Returns what a picture shows, by the figure of its protocol's row."""
    if name in TRAINING_WORDS:
        return TRAINING_WORDS[name]
    row = PROTOCOLS[name]
    assert row.figure is not None
    return Words(row.figure.title or row.title, row.figure.kind, row.figure.caption)


def pictures(runs: Sequence[RunFiles]) -> dict[str, list[Picture]]:
    """Returns the picture of each run that has it, by name, in the page's order.

    What does not fit the page is left out, and remarked on.
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
    """Returns the type and bytes of each picture.

    The largest ones become WebP while all together are too many bytes. Those that still do not fit
    have no bytes, and their runs a remark.
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
    """Returns width and height in pixels, from the PNG's first chunk."""
    width, height = struct.unpack(">II", png[16:24])
    return int(width), int(height)


def _webp(png: bytes) -> bytes:
    """Returns a picture as WebP; no bytes if it cannot be read."""
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            image.load()
            target = io.BytesIO()
            image.convert("RGBA").save(target, "WEBP", quality=QUALITY)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return b""
    return target.getvalue()
