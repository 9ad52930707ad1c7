"""What a run found: images, sizes, classes, splits, and everything that was left out."""

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from vitrail.data.contract import Header, NoTestSplitError, Source
from vitrail.data.sources.registry import open_source

MEASURED = 64  # images whose headers are read
BLOCKS = 4  # of a source in blocks, since one image of a block may read the whole of it
CLASSES = 8  # listed by name


def find(source: Source, more: Sequence[str] = ()) -> dict[str, Any]:
    """Describes the images of a run, as found.json holds it.

    Args:
        source: the images that are trained on.
        more: further notes.

    Returns:
        data, images, channels, bits, sizes, modes, classes, unlabelled, captions, test, notes, and
        lines: all of it but the notes, in sentences.
    """
    headers = _headers(source)
    missing = sum(source.label(index) is None for index in range(len(source)))
    test, notes = _test_split(source)
    found: dict[str, Any] = {
        "data": source.spec,
        "images": len(source),
        "channels": source.channels,
        "bits": source.bits,
        "sizes": _sizes(headers),
        "modes": dict(Counter(header.mode for header in headers).most_common()),
        "classes": None if source.classes is None else len(source.classes),
        "unlabelled": missing,
        "captions": source.captioned,
        "test": test,
        "notes": list(dict.fromkeys((*source.notes, *notes, *more))),
    }
    return found | {"lines": _lines(source, found)}


def _headers(source: Source) -> list[Header]:
    """Reads the headers of a sample that is spread over the source."""
    blocks = source.blocks()
    if blocks is None:
        index = np.linspace(0, len(source) - 1, min(MEASURED, len(source))).astype(int)
    else:
        chosen = np.linspace(0, len(blocks) - 1, min(BLOCKS, len(blocks))).astype(int)
        each = MEASURED // len(chosen)
        rows = [blocks[number] for number in chosen]
        index = np.concatenate(
            [np.linspace(r.start, r.stop - 1, min(each, len(r))).astype(int) for r in rows if r]
        )
    headers = (source.header(int(number)) for number in index)
    return [header for header in headers if header is not None]


def _sizes(headers: Sequence[Header]) -> dict[str, Any] | None:
    """Returns the smallest and the median size, by the shorter side, and how many were read."""
    if not headers:
        return None
    smallest = min(headers, key=lambda header: (min(header[:2]), max(header[:2])))
    return {
        "smallest": [smallest.height, smallest.width],
        "median": [
            round(median(header.height for header in headers)),
            round(median(header.width for header in headers)),
        ],
        "measured": len(headers),
    }


def _test_split(source: Source) -> tuple[int | str, Sequence[str]]:
    """Returns the size of the test split, or why there is none, and its notes."""
    try:
        test = open_source(source.spec, "test", source.channels, quiet=True)
    except NoTestSplitError:
        return "none: an evaluation holds a fifth of the samples out", ()
    except (ValueError, OSError) as error:
        return f"cannot be used: {error}", ()
    return len(test), test.notes


def _lines(source: Source, found: dict[str, Any]) -> list[str]:
    """Returns what was found in sentences, one a line."""
    noun = "image" if found["images"] == 1 else "images"
    kind = f"{found['channels']} channel{'s' * (found['channels'] != 1)} of {found['bits']} bits"
    lines = [f"{found['data']}: {found['images']:,} {noun}, read as {kind}"]
    if sizes := found["sizes"]:
        modes = ", ".join(f"{mode} {count}" for mode, count in found["modes"].items())
        small, middle = (" x ".join(map(str, sizes[key])) for key in ("smallest", "median"))
        lines.append(
            f"height x width: smallest {small}, median {middle} (headers of {sizes['measured']}: "
            f"{modes})"
        )
    lines.append(_of_labels(source, found))
    test = found["test"]
    lines.append(f"test split: {f'{test:,} images' if isinstance(test, int) else test}")
    return lines


def _of_labels(source: Source, found: dict[str, Any]) -> str:
    captions = ", with captions" if found["captions"] else ""
    if source.classes is None:
        return f"no labels{f': {source.unlabelled}' if source.unlabelled else ''}{captions}"
    names = ", ".join(map(str, source.classes[:CLASSES]))
    more = ", ..." if len(source.classes) > CLASSES else ""
    without = f"; {found['unlabelled']:,} images without a label" if found["unlabelled"] else ""
    return f"{len(source.classes)} classes ({names}{more}){without}{captions}"
