"""Images inside Parquet files, in Hugging Face's layout: row groups are read as they are needed."""

import errno
import hashlib
import logging
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.data.contract import WINDOW, BadSampleError, Detail, Header, Sample, Source, Split
from vitrail.data.decode.headers import header_of_bytes
from vitrail.data.decode.image import MACHINE_ERRNOS, decode_bytes
from vitrail.data.sources.channels import choose_channels
from vitrail.data.sources.files import stamps
from vitrail.data.sources.formats.columns import Columns, find_schema_columns, not_taken
from vitrail.data.sources.formats.parquet_index import Files, Footers, read_footers
from vitrail.data.sources.formats.shard_paths import REMOTE, find_shards
from vitrail.data.sources.labels import number_classes
from vitrail.data.sources.spec import check_regular, errors_of, split_options

logger = logging.getLogger(__name__)

OPTIONS = ("image", "label", "text")
KEPT_GROUPS = WINDOW + 2  # row groups in memory: those of a window, and of the next as it begins
LARGE = 2**30  # bytes in memory above which a warning is logged


class ParquetSource(Source):
    """Rows of Parquet files.

    An id is the file's name, within the folder that holds all, and the row: train-0000.parquet/17.
    """

    def __init__(
        self,
        spec: str,
        files: Files,
        footers: Footers,
        columns: Columns,
        classes: tuple[Sequence[str] | None, np.ndarray],
        channels: int,
    ):
        self.spec = spec
        self.channels = channels
        self.classes, self._labels = classes
        self.captioned = columns.text is not None
        self._files, self._footers, self._columns = files, footers, columns
        self._names = files.names()
        self._ends = np.cumsum(footers.rows).tolist()
        # for every group, the first group of its file
        first = np.searchsorted(footers.of_file, footers.of_file)
        self._first_row = (np.cumsum(footers.rows) - footers.rows)[first].tolist()
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._open: OrderedDict[int, Any] = OrderedDict()
        self._tables: OrderedDict[int, Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None, "_tables": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def __len__(self) -> int:
        return len(self._labels)

    def read(self, index: int, detail: Detail | None = None) -> Sample:
        id, columns = self.id(index), self._columns
        wanted = [columns.image] if columns.text is None else [columns.image, columns.text]
        row = self._row(index, wanted)
        data = image_bytes(row[columns.image], id)
        text = None if columns.text is None else plain_text(row[columns.text])
        if self.captioned and text is None:
            raise BadSampleError(id, "its row has no caption")
        image = decode_bytes(data, self.channels, id, detail)
        return Sample(image, self.label(index), text, id)

    def id(self, index: int) -> str:
        group = bisect_right(self._ends, index)
        name = self._names[int(self._footers.of_file[group])]
        return f"{name}/{index - self._first_row[group]}"

    def header(self, index: int) -> Header | None:
        try:
            row = self._row(index, [self._columns.image])
            return header_of_bytes(image_bytes(row[self._columns.image], self.id(index)))
        except BadSampleError:
            return None

    def text(self, index: int) -> str | None:
        """Reads the caption from the file; None if it is blank or damaged."""
        name = self._columns.text
        try:
            return None if name is None else plain_text(self._row(index, [name])[name])
        except BadSampleError:
            return None

    def fingerprint(self) -> str:
        """Returns a digest of the files' names, their row groups, and the labels, not of images."""
        names = (self._names, self._columns, self._footers.size.tolist())
        digest = hashlib.blake2b(repr(names).encode(), digest_size=16)
        for array in (self._footers.of_file, self._footers.rows, self._labels):
            digest.update(np.ascontiguousarray(array, dtype=np.int64).tobytes())
        return digest.hexdigest()

    def written(self) -> Sequence[tuple[str, int, int]]:
        if self._files.filesystem is not None:  # of the hub, whose files have a version
            return ()
        paths = self._files.paths
        return stamps(len(paths), lambda i: (self._names[i], Path(paths[i])))

    def blocks(self) -> Sequence[range]:
        return [range(a, b) for a, b in zip([0, *self._ends[:-1]], self._ends, strict=True)]

    def _row(self, index: int, columns: list[str]) -> dict[str, Any]:
        """Returns the values of a row by column.

        Raises:
            BadSampleError: the row group is damaged.
            OSError: the machine or the network has failed.
        """
        import pyarrow

        group = bisect_right(self._ends, index)
        row = index - (self._ends[group] - int(self._footers.rows[group]))
        try:
            table = self._table(group, columns)
        except (OSError, pyarrow.ArrowException) as error:
            fails = isinstance(error, OSError) and error.errno in MACHINE_ERRNOS
            if fails or self._files.filesystem is not None:
                raise OSError(errno.EIO, f"{error}", self.id(index)) from error
            why = f"its row group cannot be read ({error})"
            raise BadSampleError(self.id(index), why) from error
        try:
            return {name: table.column(name)[row].as_py() for name in columns}
        except UnicodeDecodeError as error:
            raise BadSampleError(self.id(index), "its text is not UTF-8") from error

    def _table(self, group: int, columns: list[str]) -> Any:
        """Returns a row group's columns; the KEPT_GROUPS used last stay in memory."""
        if self._process != os.getpid():  # forked: open files belong to the parent
            self._start()
        table = self._tables.get(group)
        if table is None or not set(columns) <= set(table.column_names):
            file = self._file(int(self._footers.of_file[group]))
            number = int(self._footers.group[group])
            # no threads: a forked process has none of its parent's
            self._tables[group] = file.read_row_group(number, columns=columns, use_threads=False)
            _drop_oldest(self._tables, KEPT_GROUPS)
        self._tables.move_to_end(group)
        return self._tables[group]

    def _file(self, number: int) -> Any:
        if number not in self._open:
            self._open[number] = self._files.open(number)
            for file in _drop_oldest(self._open, KEPT_GROUPS):
                file.close()
        self._open.move_to_end(number)
        return self._open[number]


def _drop_oldest(items: OrderedDict[Any, Any], most: int) -> list[Any]:
    return [items.popitem(last=False)[1] for _ in range(len(items) - most)]


def image_bytes(value: Any, id: str) -> bytes:
    """Returns the image in a column's value, bytes or {"bytes", "path"}. BadSampleError if none."""
    data = value.get("bytes") if isinstance(value, dict) else value
    if data is None:
        path = value.get("path") if isinstance(value, dict) else None
        there = f", only the path {path!r}, which is not followed" if path else ""
        raise BadSampleError(id, f"its row has no bytes of an image{there}")
    return data


def plain_text(value: Any) -> str | None:
    """Returns a caption, None for a blank one."""
    return (value.strip() or None) if isinstance(value, str) else None


def open_parquet(rest: str, split: Split, channels: int | None) -> Source:
    """Opens `parquet:PATTERN[,test=PATTERN][,image=COLUMN][,label=COLUMN][,text=COLUMN]`.

    PATTERN as `shard_paths.find_shards`; the columns as `columns.find_schema_columns`.

    Raises:
        ValueError: nothing is there, it is no Parquet or lacks columns, a class that training
            lacks, channels other than 1 and 3, or pyarrow is not installed.
        NoTestSplitError: "test" of files that have none.
    """
    spec = f"parquet:{rest}"
    pattern, options = split_options("parquet", rest, (*OPTIONS, "test"))
    if remote := REMOTE.search(pattern):
        raise ValueError(
            f"{spec}: {remote[1]}: is not a local file; data sets of the Hugging Face hub are read "
            "by hf:NAME or, without a download, by hf:NAME,stream=yes"
        )
    shards = find_shards("parquet", pattern, options.pop("test", None), ".parquet")
    for path in (*shards.train, *shards.test):
        check_regular(path)
    chosen, train = (Files(tuple(map(str, of))) for of in (shards.of(split, spec), shards.train))
    source = parquet_source(spec, chosen, train, options, channels)
    source.notes = (*shards.notes, *source.notes)
    return source


def parquet_source(
    spec: str, files: Files, train: Files, asked: dict[str, str], channels: int | None
) -> ParquetSource:
    """Opens Parquet files.

    Args:
        spec: of the source.
        files: of the split.
        train: of the training split, whose labels are the classes.
        asked: names of columns that the user gives, by option.
        channels: of every image, None for 3.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"{spec}: Parquet files need pyarrow: pip install 'vitrail[parquet]'"
        ) from error
    channels = choose_channels(spec, channels)
    with translate_errors(spec), files.open(0) as first:
        schema = first.schema_arrow
    with errors_of(f"{spec}: {files.names()[0]}"):
        columns = find_schema_columns(schema, asked)
    with translate_errors(spec):
        footers = read_footers(files, columns)
        same = files.paths == train.paths or columns.classes is not None
        of_train = footers if same else read_footers(train, columns)
    if not footers.rows.sum():
        raise ValueError(f"{spec}: it has no rows")
    largest = int(footers.size.max())
    if largest * KEPT_GROUPS > LARGE:
        logger.warning(
            "%s: its row groups are large: every process that reads may hold %.1f GB; write them "
            "with fewer rows each (row_group_size=...), or use fewer workers",
            spec,
            largest * KEPT_GROUPS / 1e9,
        )
    values, train_values = ([str(value) for value in of.values] for of in (footers, of_train))
    classes = number_classes(spec, footers.codes, values, train_values, columns.classes)
    source = ParquetSource(spec, files, footers, columns, classes, channels)
    add_reasons(source, schema, columns, classes[1])
    return source


def add_reasons(source: Source, schema: Any, columns: Columns, labels: np.ndarray) -> None:
    """Adds to a source the notes on columns that are not taken, and why it has no labels.

    Args:
        source: of rows.
        schema: of its table.
        columns: those that are taken.
        labels: class numbers, -1 for no label.
    """
    reasons = not_taken(schema, columns)
    if columns.label is not None and (labels < 0).all():
        reasons["label"] = f"its column {columns.label!r} is blank, or negative, in every row"
    source.unlabelled = reasons.get("label", "")
    # a table without labels or captions is nothing to remark on, one with an unused column is
    odd = [reason for reason in reasons.values() if "does not hold" in reason]
    source.notes += tuple(f"{reason}, and is not read" for reason in odd)


@contextmanager
def translate_errors(spec: str) -> Iterator[None]:
    """Raises ValueError for what pyarrow raises for damaged files; the machine's errors stay."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno in MACHINE_ERRNOS:
            raise
        raise ValueError(f"{spec}: it cannot be read as Parquet ({error})") from error
