"""The row groups and labels of Parquet files, read before any image and cached."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from vitrail.data.sources.cache import load_arrays, save_arrays
from vitrail.data.sources.formats.columns import Columns
from vitrail.data.sources.labels import encode_labels

VERSION = 1  # of the cached arrays
THREADS = 8  # waiting for the disk or the network while footers are read


class Files(NamedTuple):
    """Parquet files.

    Attributes:
        paths: of the files.
        filesystem: of fsspec, None for the local disk.
    """

    paths: tuple[str, ...]
    filesystem: Any = None

    def open(self, number: int) -> Any:
        from pyarrow import parquet

        path = self.paths[number]
        if self.filesystem is None:
            return parquet.ParquetFile(path)
        file = self.filesystem.open(path, "rb", cache_type="none")
        return parquet.ParquetFile(file, pre_buffer=True)

    def state(self, number: int) -> str:
        """Returns a text that changes with the file."""
        if self.filesystem is None:
            status = os.stat(self.paths[number])
            return repr((status.st_size, status.st_mtime_ns))
        return str(self.filesystem.ukey(self.paths[number]))

    def names(self) -> list[str]:
        """Returns the paths within the folder that holds all, so no two names are equal."""
        root = os.path.commonpath([os.path.dirname(path) for path in self.paths])
        return [os.path.relpath(path, root or os.curdir) for path in self.paths]


class Footers(NamedTuple):
    """The row groups and labels of Parquet files. Empty row groups are left out.

    Attributes:
        of_file: int64 [G], the number of each row group's file.
        group: int64 [G], its number in the file.
        rows: int64 [G], its rows.
        size: int64 [G], its images in memory, in bytes.
        codes: int [N], the label of each sample, into `values`, -1 for no label.
        values: labels as text, each once.
    """

    of_file: np.ndarray
    group: np.ndarray
    rows: np.ndarray
    size: np.ndarray
    codes: np.ndarray
    values: np.ndarray


def read_footers(files: Files, columns: Columns) -> Footers:
    """Reads the row groups and labels of files, or takes them from the cache."""
    states = [files.state(i) for i in range(len(files.paths))]
    paths = files.paths if files.filesystem else [os.path.abspath(path) for path in files.paths]
    key = repr((VERSION, list(zip(paths, states, strict=True)), columns))
    cached = load_arrays("parquet", key)
    if cached is not None and set(cached) == set(Footers._fields):
        return Footers(**cached)

    def read_one(number: int) -> tuple[list[tuple[int, int, int, int]], list[Any]]:
        with files.open(number) as file:
            _require_columns(files.names()[number], file.schema_arrow.names, columns)
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            rows = [
                (number, i, group.num_rows, _group_bytes(group, columns.image))
                for i, group in enumerate(groups)
            ]
            if columns.label is None:
                return rows, [None] * file.metadata.num_rows
            table = file.read(columns=[columns.label], use_threads=False)
            return rows, table.column(columns.label).to_pylist()

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(read_one, range(len(files.paths))))
    table = np.array([row for rows, _ in found for row in rows], dtype=np.int64).reshape(-1, 4)
    table = table[table[:, 2] > 0]
    values, codes = encode_labels(label for _, labels in found for label in labels)
    of_file, group, rows, size = table.T
    footers = Footers(of_file, group, rows, size, codes, np.array(values, dtype=np.str_))
    save_arrays("parquet", key, footers._asdict())
    return footers


def _require_columns(name: str, names: Sequence[str], columns: Columns) -> None:
    """ValueError for a file of another table, such as the features that `vitrail embed` writes."""
    wanted = [column for column in (columns.image, columns.label, columns.text) if column]
    if lacking := [column for column in wanted if column not in names]:
        raise ValueError(
            f"{name} has no column {lacking[0]!r}, which the first file has; its columns are "
            f"{', '.join(names)}: move it away, or name the files by a pattern"
        )


def _group_bytes(group: Any, name: str) -> int:
    """Returns the size of a row group's images in memory."""
    columns = (group.column(i) for i in range(group.num_columns))
    mine = (c for c in columns if c.path_in_schema.split(".")[0] == name)
    return sum(column.total_uncompressed_size for column in mine)
