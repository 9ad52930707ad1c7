"""The declared type of a TIFF file: the few tags that say what its numbers mean.

Read without another package, so every reader of TIFF files decides by the same tags. What is read
is bounded, whatever the file says.
"""

import struct
from typing import NamedTuple

from vitrail.data.decode.image import File

# tags
SUBFILE, WIDTH, HEIGHT, BITS, PHOTOMETRIC = 254, 256, 257, 258, 262
SAMPLES, EXTRA_SAMPLES, SAMPLE_FORMAT = 277, 338, 339

WANTED = {SUBFILE, WIDTH, HEIGHT, BITS, PHOTOMETRIC, SAMPLES, EXTRA_SAMPLES, SAMPLE_FORMAT}

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE = 0, 1, 2, 3  # photometric interpretations
UNSIGNED, SIGNED, FLOAT, UNDEFINED = 1, 2, 3, 4  # sample formats
REDUCED, MASK = 1, 4  # bits of SUBFILE: a preview, or a mask of another page
ALPHA = (1, 2)  # extra samples that are alpha: premultiplied, and not

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two of BigTIFF
TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # of the numbers of tags
VALUES, ENTRIES, PAGES = 16, 4096, 1000  # read at most


class Tags(NamedTuple):
    """The declared type of the first page.

    Attributes:
        height: in pixels.
        width: in pixels.
        bits: of a value, the largest of its channels.
        samples: channels, alpha included.
        photometric: interpretation of the channels.
        formats: the sample formats of the channels.
        extra: kinds of the channels beyond the colours.
        pages: number of pages, without previews and masks; at most PAGES.
    """

    height: int
    width: int
    bits: int
    samples: int
    photometric: int
    formats: frozenset[int]
    extra: tuple[int, ...]
    pages: int

    @property
    def kind(self) -> str:
        """The numbers: "unsigned", "signed" or "floating-point"."""
        if self.formats <= {UNSIGNED, UNDEFINED}:
            return "unsigned"
        return "floating-point" if FLOAT in self.formats else "signed"

    @property
    def colours(self) -> int:
        """The channels without alpha."""
        return self.samples - sum(kind in ALPHA for kind in self.extra)


def is_tiff(file: File) -> bool:
    """Returns True for the first bytes of a TIFF file; the position is 0 afterwards."""
    file.seek(0)
    start = file.read(4)
    file.seek(0)
    return start in MAGIC


def read_tags(file: File) -> Tags:
    """Reads the declared type; the position is 0 afterwards.

    Raises:
        ValueError, struct.error: a file that is cut short or is no TIFF.
    """
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = head[2:4] in (b"+\0", b"\0+")
    (offset,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
    first: dict[int, tuple[int, ...]] | None = None
    pages, seen = 0, set[int]()
    while offset and offset not in seen and len(seen) < PAGES:
        seen.add(offset)
        found, offset = _directory(file, offset, order, big)
        pages += not found.get(SUBFILE, (0,))[0] & (REDUCED | MASK)
        first = found if first is None else first
    file.seek(0)
    if first is None or WIDTH not in first or HEIGHT not in first:
        raise ValueError("its first page has no size")
    return Tags(
        first[HEIGHT][0],
        first[WIDTH][0],
        max(first.get(BITS, (1,))),
        first.get(SAMPLES, (1,))[0],
        first.get(PHOTOMETRIC, (BLACK_IS_ZERO,))[0],
        frozenset(first.get(SAMPLE_FORMAT, (UNSIGNED,))),
        first.get(EXTRA_SAMPLES, ()),
        max(1, pages),
    )


def _directory(
    file: File, offset: int, order: str, big: bool
) -> tuple[dict[int, tuple[int, ...]], int]:
    """Returns the whole numbers of a page's tags, and the place of the next page."""
    counter, entry, place = ("Q", 20, "Q") if big else ("H", 12, "I")
    (count,) = struct.unpack(order + counter, _at(file, offset, struct.calcsize("=" + counter)))
    if not 0 < count <= ENTRIES:
        raise ValueError(f"a page has {count} tags")
    body = _at(file, file.tell(), count * entry + struct.calcsize("=" + place))
    found = {}
    for i in range(count):
        tag, kind = struct.unpack_from(order + "HH", body, i * entry)
        (n,) = struct.unpack_from(order + place, body, i * entry + 4)
        if kind not in TYPES or not n:
            continue
        form = f"{order}{min(n, VALUES)}{TYPES[kind]}"
        start, size = i * entry + 4 + struct.calcsize("=" + place), struct.calcsize(form)
        fits = n * struct.calcsize("=" + TYPES[kind]) <= struct.calcsize("=" + place)
        if tag in WANTED:
            (elsewhere,) = struct.unpack_from(order + place, body, start)
            values = body[start : start + size] if fits else _at(file, elsewhere, size)
            found[tag] = struct.unpack(form, values)
    (after,) = struct.unpack_from(order + place, body, count * entry)
    return found, after


def _at(file: File, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) < size:
        raise ValueError("it is cut short")
    return data
