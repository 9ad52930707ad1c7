"""Notes on files that lose bits or pages when read with 8 bits and one page, from their headers.

A folder's type is one for all of its files, as declared by its SPEC: 8 bits unless bits=16 is
given, and the channels asked for. It does not depend on any file's pixels.
"""

import io
import logging
import os
from collections.abc import Sequence
from multiprocessing import current_process
from pathlib import Path

from PIL import Image

from vitrail.data.decode.image import FORMATS, File, check_status
from vitrail.data.decode.tiff_tags import is_tiff, read_tags

logger = logging.getLogger(__name__)

SUFFIXES = (".png", ".tif", ".tiff", ".gif", ".webp")  # of files that may have more
STARTS = (b"\x89PNG", b"II", b"MM", b"GIF8", b"RIFF")  # of such files
PNG_MAGIC, PNG_DEPTH = b"\x89PNG\r\n\x1a\n", 24
LOOKED_AT = 200  # files of a source, spread over all of it
LOST = {
    "bits": "have 16 bits a value and are read with 8; {bits}",
    "pages": "have several pages or frames, of which the first is read; {pages}",
}
_said: set[str] = set()  # keys of LOST


def lost(file: File, channels: int) -> set[str]:
    """Returns what 8 bits and one page leave out of a file: "bits", "pages", both or nothing.

    Of a damaged file nothing: whoever reads it says so.
    """
    try:
        if is_tiff(file):
            tags = read_tags(file)
            as_channels = tags.samples == 1 and tags.pages == channels
            deep, several = tags.bits == 16, tags.pages > 1 and not as_channels
        else:
            start = file.read(PNG_DEPTH + 1)
            file.seek(0)
            deep = start.startswith(PNG_MAGIC) and start[PNG_DEPTH:] == b"\x10"
            with Image.open(file, formats=FORMATS) as image:
                several = image.format in ("GIF", "WEBP", "PNG") and bool(
                    getattr(image, "is_animated", False)
                )
    except MemoryError:
        raise
    except Exception:  # parsers raise anything for damaged bytes
        return set()
    finally:
        file.seek(0)
    return {name for name, is_lost in (("bits", deep), ("pages", several)) if is_lost}


def lost_notes(paths: Sequence[Path], channels: int, bits: int, keeps: str) -> list[str]:
    """Returns a sentence on each thing that is lost of files, by their headers.

    Args:
        paths: of the files looked at.
        channels: of every image read.
        bits: of every image read.
        keeps: the option that keeps 16 bits, "" if the source has none.
    """
    found: dict[str, int] = dict.fromkeys(LOST, 0)
    for path in paths:
        try:
            check_status(path)  # opening a pipe would wait for ever
            with open(path, "rb") as file:
                for name in lost(file, channels):
                    found[name] += 1
        except (OSError, ValueError):  # whoever reads it says so
            continue
    if bits == 16:
        found["bits"] = 0
    return [
        f"{count} of {len(paths)} files looked at {_remedy(name, keeps)}"
        for name, count in found.items()
        if count
    ]


def note_lost(data: bytes | memoryview, channels: int, id: str) -> None:
    """Logs, once for each kind, what is lost of a file in memory; `id` names it."""
    if not bytes(data[:4]).startswith(STARTS):
        return
    if _may_speak() and LOST.keys() - _said:
        for name in lost(io.BytesIO(data), channels):
            _say(name, f"{id}, and perhaps others, {_remedy(name, '')}")


def _remedy(name: str, keeps: str) -> str:
    return LOST[name].format(
        bits=f"{keeps} keeps them" if keeps else "a folder of such files keeps them by bits=16",
        pages="--channels N keeps N pages of one channel as channels; else write each as a file",
    )


def _may_speak() -> bool:
    """Returns True in one process of all: the first rank, and the first of its workers."""
    name = current_process().name
    return os.environ.get("RANK", "0") == "0" and (name == "MainProcess" or name.endswith("-1"))


def _say(name: str, line: str) -> None:
    if name not in _said and _may_speak():
        _said.add(name)
        logger.warning("%s", line)
