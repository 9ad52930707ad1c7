"""Images and captions by a table of paths: CSV, TSV, JSON lines or Parquet."""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from vitrail.data.batch import BadSampleError, NoTestSplitError, Sample, Source
from vitrail.data.decode import decode_file
from vitrail.data.detail import Detail
from vitrail.data.tables import READERS, Table, Value, read_table

# Names of columns, in whatever case. A file may have one of each kind.
COLUMNS = {
    "image": ("path", "filepath", "file", "filename", "file_name", "image", "image_path", "img"),
    "caption": ("caption", "text", "title", "description"),
    "label": ("label", "class", "category"),
    "split": ("split",),
}
NEEDED = ("image", "caption")
SPLITS = {"train": ("train",), "test": ("test", "val", "validation")}  # the first that any row has


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
        image = decode_file(self._root / self._rows.paths[index], self.channels, id)
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
        columns = _find_columns(table)
        chosen = _choose_rows(columns.get("split"), split, table.rows)
        labels, classes = _number_labels(columns.get("label"))
        paths, captions = (_texts(columns[kind], kind) for kind in NEEDED)
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


def _find_columns(table: Table) -> dict[str, list[Value]]:
    """The columns by kind. ValueError where one is missing or has two candidates, or no rows."""
    found = ", ".join(map(repr, table.names[:20])) or "none"
    columns = {}
    for kind, names in COLUMNS.items():
        matches = [name for name in table.names if name.strip().lower() in names]
        if len(matches) > 1:
            raise ValueError(
                f"its columns {', '.join(map(repr, matches))} could each be the {kind}; rename or "
                "remove all but one"
            )
        if matches:
            columns[kind] = table.columns[matches[0]]
        elif kind in NEEDED:
            raise ValueError(
                f"it has no column for the {kind}; its columns are {found}; name one of them "
                f"{', '.join(names[:-1])} or {names[-1]}"
            )
    if not table.rows:
        raise ValueError("it has no rows below its header")
    return columns


def _choose_rows(column: list[Value] | None, split: str, n_rows: int) -> list[int]:
    """Positions of a split's rows, in order."""
    remedy = "add a column 'split', or hold samples out with vitrail.data.memory.hold_out"
    if column is None:
        if split == "test":
            raise NoTestSplitError(f"has no test split: it lacks a column 'split'; {remedy}")
        return list(range(n_rows))
    known = [name for names in SPLITS.values() for name in names]
    values = [str(value).strip().lower() for value in column]
    if unknown := set(values).difference(known):
        first = next(i for i, value in enumerate(values) if value in unknown)
        raise ValueError(
            f"its row {first + 1} has the split {column[first]!r}; it must be one of "
            f"{', '.join(known)}"
        )
    name = next((name for name in SPLITS[split] if name in values), None)
    if name is None and split == "test":
        raise NoTestSplitError(f"has no test split: no row's 'split' is test or val; {remedy}")
    if name is None:
        raise ValueError("no row's 'split' is train; without them there is nothing to train on")
    return [i for i, value in enumerate(values) if value == name]


def _number_labels(column: list[Value] | None) -> tuple[list[int] | None, list[str] | None]:
    """(class of each row, -1 for none; class names), None and None where no row has one."""
    column = column or []
    names = {value: "" if value is None else str(value).strip() for value in set(column)}
    present = set(names.values()) - {""}
    if not present:
        return None, None
    numeric = all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in present)
    classes = sorted(present, key=(lambda name: (int(name), name)) if numeric else None)
    number = {name: i for i, name in enumerate(classes)}
    return [number.get(names[value], -1) for value in column], classes


def _texts(column: list[Value], kind: str) -> list[str]:
    """The values as text, blank where there is none."""
    for row, value in enumerate(column, 1):
        if not isinstance(value, str | None):
            raise ValueError(f"its row {row} has the {kind} {value!r}, which is not text")
    return [str(value or "") for value in column]
