"""What Parquet files say of their rows before any is read: row groups, labels."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from vitrail.data.sources.cache import load_arrays, save_arrays
from vitrail.data.sources.parquet_columns import Columns

VERSION = 1  # of what is kept in the cache
THREADS = 8  # that wait for the disk or the net while footers are read


class Files(NamedTuple):
    """Parquet files on a filesystem of fsspec, or on the disk where it is None."""

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
        """Another one where the file has changed."""
        if self.filesystem is None:
            status = os.stat(self.paths[number])
            return repr((status.st_size, status.st_mtime_ns))
        return str(self.filesystem.ukey(self.paths[number]))

    def names(self) -> list[str]:
        """Within the folder that holds all, so that no two are called alike."""
        root = os.path.commonpath([os.path.dirname(path) for path in self.paths])
        return [os.path.relpath(path, root or os.curdir) for path in self.paths]


class Footers(NamedTuple):
    """What is found out once. of_file, group, rows: of each row group, int64. size: of the largest,
    in bytes. codes: of each sample, into `values`, -1 for none."""

    of_file: np.ndarray
    group: np.ndarray
    rows: np.ndarray
    size: np.ndarray
    codes: np.ndarray
    values: np.ndarray


def read_footers(files: Files, columns: Columns) -> Footers:
    """What the files say of their row groups, and the labels; kept in the cache."""
    states = [files.state(i) for i in range(len(files.paths))]
    paths = files.paths if files.filesystem else [os.path.abspath(path) for path in files.paths]
    key = repr((VERSION, list(zip(paths, states, strict=True)), columns))
    kept = load_arrays("parquet", key)
    if kept is not None and set(kept) == set(Footers._fields):
        return Footers(**kept)

    def look(number: int) -> tuple[list[tuple[int, int, int, int]], list[Any]]:
        with files.open(number) as file:
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
        found = list(pool.map(look, range(len(files.paths))))
    table = np.array([row for rows, _ in found for row in rows], dtype=np.int64).reshape(-1, 4)
    table = table[table[:, 2] > 0]
    labels = [None if v is None else str(v).strip() or None for _, some in found for v in some]
    values = sorted({label for label in labels if label is not None})
    number = {value: i for i, value in enumerate(values)}
    codes = np.array([-1 if v is None else number[v] for v in labels], dtype=np.int32)
    of_file, group, rows, size = table.T
    footers = Footers(of_file, group, rows, size, codes, np.array(values, dtype=np.str_))
    save_arrays("parquet", key, footers._asdict())
    return footers


def _group_bytes(group: Any, name: str) -> int:
    """Of a row group's images, in memory."""
    columns = (group.column(i) for i in range(group.num_columns))
    mine = (c for c in columns if c.path_in_schema.split(".")[0] == name)
    return sum(column.total_uncompressed_size for column in mine)
