"""Images and captions by a table of paths: CSV, TSV, JSON lines or Parquet."""

import hashlib
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from vitrail.data.contract import BadSampleError, Detail, Sample, Source, Split
from vitrail.data.sources.channels import choose_channels
from vitrail.data.sources.files import FileSource
from vitrail.data.sources.formats.columns import choose_rows, number_labels, read_columns, texts
from vitrail.data.sources.formats.read_table import READERS
from vitrail.data.sources.spec import errors_of

NEEDED = ("image", "caption")


class PairsSource(FileSource):
    """Image files and a caption each. An id is the path as written.

    A path of several rows (an image with several captions) is that many samples; from the second
    they are called PATH#2, PATH#3, ... A row without a caption is a bad sample.
    """

    def read(self, index: int, detail: Detail | None = None) -> Sample:
        if self.text(index) is None:
            raise BadSampleError(
                self.id(index), "its row has no caption, or one of half characters"
            )
        if not self._paths[index]:
            raise BadSampleError(self.id(index), "its row has no path of an image")
        return super().read(index, detail)

    def path(self, index: int) -> Path:
        """Returns the path of an image; if only the other Unicode form of its name exists, that."""
        path = super().path(index)
        if self._paths[index].isascii() or os.path.lexists(path):
            return path
        forms = (path.parent / unicodedata.normalize(form, path.name) for form in ("NFC", "NFD"))
        return next(filter(os.path.lexists, forms), path)

    def picture(self, index: int) -> str:
        return os.path.normpath(self._paths[index])

    def fingerprint(self) -> str:
        """Returns a digest of paths, captions and labels; a table may list millions of files."""
        digest = hashlib.blake2b(digest_size=16)
        for i, path in enumerate(self._paths):
            row = repr((path, self.text(i), self.label(i)))
            digest.update(row.encode() + b"\0")
        return digest.hexdigest()


def unique_ids(paths: Sequence[str]) -> tuple[str, ...]:
    """Returns the paths, with #2, #3, ... after repeated ones."""
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


def open_pairs(rest: str, split: Split, channels: int | None) -> Source:
    """Opens `pairs:FILE`, FILE ending in .csv, .tsv, .jsonl or .parquet (`read_table`).

    Columns are found by name, in any case (`columns.COLUMNS`): an image's path, absolute or
    relative to FILE's folder; its caption; if there, a label (text or a whole number; blank for
    none) and a split (`splits.WORDS`). Classes are those of the whole file, in the order of numbers
    if all are numbers, else of text. Other columns are ignored.

    Raises:
        ValueError: no such file or of an unknown kind, columns missing or ambiguous, no rows, a
            row that cannot be understood, or channels other than 1 and 3.
        NoTestSplitError: "test" of a file without such rows.
    """
    spec = f"pairs:{rest}"
    choose_channels(spec, channels)
    path = Path(rest).expanduser()
    _check_file(spec, rest, path)
    try:
        with errors_of(spec):
            found = read_columns(path, NEEDED)
            columns = found.by_kind
            chosen = choose_rows(spec, columns.get("split"), split, len(columns["image"]))
            labels, classes = number_labels(columns.get("label"))
            paths, captions = (texts(columns[kind], kind) for kind in NEEDED)
    except OSError as error:
        raise ValueError(f"{spec}: it cannot be read ({error.strerror or error})") from error
    paths = [paths[i] for i in chosen]
    source = PairsSource(
        spec,
        path.parent,
        paths,
        None if labels is None else [labels[i] for i in chosen],
        classes,
        channels,
        captions=[_usable(captions[i]) for i in chosen],
        ids=unique_ids([path or "(no path)" for path in paths]),
    )
    source.notes = tuple(found.notes())
    if labels is None:
        source.unlabelled = found.why_unlabelled()
    return source


def _usable(caption: str) -> str | None:
    """Returns the caption, None if it is blank or has half a character (a lone surrogate)."""
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
