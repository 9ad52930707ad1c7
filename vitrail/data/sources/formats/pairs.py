"""Images and captions by a table of paths: CSV, TSV, JSON lines or Parquet."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from vitrail.data.contract import BadSampleError, Detail, NoTestSplitError, Sample, Source
from vitrail.data.decode.image import decode_file
from vitrail.data.sources.formats.columns import (
    COLUMNS,
    choose_rows,
    find_columns,
    number_labels,
    texts,
)
from vitrail.data.sources.formats.read_table import READERS, read_table

NEEDED = ("image", "caption")


class Rows(NamedTuple):
    """A split's rows. paths: as written. captions: None where blank. labels: -1 for none."""

    paths: tuple[str, ...]
    captions: tuple[str | None, ...]
    labels: tuple[int, ...] | None


class PairsSource(Source):
    """Image files and a caption each. An id is the path as written.

    A path of several rows (an image with several captions) is as many samples; from the second
    they are called PATH#2, PATH#3, ... A row without a caption is a bad sample.
    """

    captioned = True

    def __init__(
        self, spec: str, root: Path, rows: Rows, classes: Sequence[str] | None, channels: int
    ):
        self.spec = spec
        self.channels = channels
        self.classes = classes
        self._root = root
        self._rows = rows
        self._ids = unique_ids([path or "(no path)" for path in rows.paths])

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, index: int, detail: Detail | None = None) -> Sample:
        id, text = self.id(index), self.text(index)
        if text is None:
            raise BadSampleError(id, "its row has no caption, or one of half characters")
        if not self._rows.paths[index]:
            raise BadSampleError(id, "its row has no path of an image")
        image = decode_file(self._root / self._rows.paths[index], self.channels, id, detail)
        return Sample(image, self.label(index), text, id)

    def id(self, index: int) -> str:
        return self._ids[index]

    def label(self, index: int) -> int | None:
        label = -1 if self._rows.labels is None else self._rows.labels[index]
        return None if label < 0 else label

    def text(self, index: int) -> str | None:
        return self._rows.captions[index]

    def picture(self, index: int) -> str:
        return os.path.normpath(self._rows.paths[index])

    def fingerprint(self) -> str:
        """Of paths, captions and labels. The files are not looked at: a table may name millions."""
        digest = hashlib.blake2b(digest_size=16)
        for i, (path, caption) in enumerate(
            zip(self._rows.paths, self._rows.captions, strict=True)
        ):
            row = repr((path, caption, self.label(i)))
            digest.update(row.encode() + b"\0")
        return digest.hexdigest()


def unique_ids(paths: Sequence[str]) -> tuple[str, ...]:
    """The paths, with #2, #3, ... after those that stand there before."""
    taken = set(paths)
    if len(taken) == len(paths):
        return tuple(paths)
    ids = []
    times: dict[str, int] = {}
    for path in paths:
        id, times[path] = path, times.get(path, 0) + 1
        while times[path] > 1 and (id := f"{path}#{times[path]}") in taken:
            times[path] += 1
        taken.add(id)
        ids.append(id)
    return tuple(ids)


def open_pairs(rest: str, split: Literal["train", "test"], channels: int | None) -> Source:
    """`pairs:FILE`, FILE ending in .csv, .tsv, .jsonl or .parquet (`tables.read_table`).

    Columns are found by name, in whatever case (COLUMNS): an image's path, absolute or relative to
    FILE's folder; its caption; where they are there, a label (text or a whole number; blank for
    none) and a split: `train`, and `test` or else `val` or `validation`. Classes are those of the
    whole file, in the order of numbers if all are, else of text. Other columns are ignored.

    Raises:
        ValueError: no such file or of an unknown kind, columns missing or ambiguous, no rows, a
            row that cannot be understood (named), or channels other than 1 and 3.
        NoTestSplitError: "test" of a file without such rows.
    """
    spec = f"pairs:{rest}"
    if channels not in (None, 1, 3):
        raise ValueError(f"{spec}: channels is {channels}; image files give 1 (grey) or 3 (RGB)")
    path = Path(rest).expanduser()
    _check_file(spec, rest, path)
    try:
        table = read_table(path, {name for names in COLUMNS.values() for name in names})
        columns = find_columns(table, NEEDED)
        chosen = choose_rows(columns.get("split"), split, table.rows)
        labels, classes = number_labels(columns.get("label"))
        paths, captions = (texts(columns[kind], kind) for kind in NEEDED)
    except NoTestSplitError as error:
        raise NoTestSplitError(f"{spec} {error}") from error
    except OSError as error:
        raise ValueError(f"{spec}: it cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise ValueError(f"{spec}: {error}") from error
    rows = Rows(
        tuple(paths[i] for i in chosen),
        tuple(_usable(captions[i]) for i in chosen),
        None if labels is None else tuple(labels[i] for i in chosen),
    )
    return PairsSource(spec, path.parent, rows, classes, channels or 3)


def _usable(caption: str) -> str | None:
    """None where it is blank, or holds half a character (a lone surrogate), which is no text."""
    halved = any("\ud800" <= letter <= "\udfff" for letter in caption)
    return None if halved else caption.strip() or None


def _check_file(spec: str, rest: str, path: Path) -> None:
    if not rest:
        raise ValueError("pairs: names no file; write pairs:FILE")
    if path.is_dir():
        raise ValueError(
            f"{spec}: {path} is a folder; name the file in it ({', '.join(READERS)}), or use "
            f"folder:{rest} for images without captions"
        )
    if not path.exists():
        raise ValueError(f"{spec}: there is no file {path}; check the path after 'pairs:'")
