"""Reads columns of table files: CSV, TSV, JSON lines and Parquet."""

import csv
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from vitrail.atomic import parse_json
from vitrail.data.sources.spec import check_regular

Value = str | int | None
MAX_LINE = 2**26  # bytes
TYPES = (str, int, type(None))  # exactly: True is no number here


class Table:
    """The wanted columns of a table, all equally long, and the names of all columns.

    Args:
        wanted: names of columns to keep, in lower case.

    Attributes:
        names: of all columns as written in the file, in order.
        columns: values of the wanted ones by name.
        rows: number of rows.
    """

    def __init__(self, wanted: Collection[str]):
        self.names: list[str] = []
        self.columns: dict[str, list[Value]] = {}
        self.rows = 0
        self._wanted = wanted
        self._refusals: dict[str, str] = {}

    def column(self, name: str) -> list[Value]:
        """Returns the values of a column. ValueError if one is no text, whole number or None."""
        if name in self._refusals:
            raise ValueError(self._refusals[name])
        return self.columns[name]

    def add_name(self, name: str) -> None:
        """Adds a column, None in the rows so far. ValueError if a wanted one is added twice."""
        if name in self.columns:
            raise ValueError(f"two of its columns are called {name!r}; rename or remove one")
        self.names.append(name)
        if name.strip().lower() in self._wanted:
            self.columns[name] = [None] * self.rows

    def add_row(self, row: dict[str, Any], number: int) -> None:
        """Adds values by column name, None for a missing one.

        A value of another type refuses its column, if that is used (`column`).
        """
        for name, values in self.columns.items():
            value = row.get(name)
            if type(value) not in TYPES:
                self._refusals.setdefault(
                    name,
                    f"row {number}: {name!r} is {str(value)[:40]!r} ({type(value).__name__}); it "
                    "must be text or a whole number",
                )
                value = None
            values.append(value)
        self.rows += 1


def read_table(path: Path, wanted: Collection[str]) -> Table:
    """Returns the columns whose names, in lower case, are wanted.

    The format goes by the suffix: .csv (commas) and .tsv (tabs) with a header, fields that hold
    separators, quotes or new lines quoted ("), quotes in them doubled; .jsonl, an object a line;
    .parquet. Text is UTF-8.

    Raises:
        ValueError: the table is damaged; names the row or line, and the caller the file.
        OSError: the file cannot be read.
    """
    if path.suffix.lower() not in READERS:
        raise ValueError(f"its name must end in {', '.join(READERS)}")
    check_regular(path)
    table = Table(wanted)
    READERS[path.suffix.lower()](path, table)
    return table


def _read_delimited(path: Path, table: Table, delimiter: str) -> None:
    reader = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        for name in header:
            table.add_name(name)
        wanted = [(header.index(name), name) for name in table.columns]
        for row in reader:
            if row and len(row) != len(header):
                raise ValueError(
                    f"line {reader.line_num} ends a row of {len(row)} fields, but the header has "
                    f"{len(header)}; fields that hold separators must be quoted"
                )
            if row:  # an empty line is no row
                table.add_row({name: row[i] for i, name in wanted}, reader.line_num)
    except csv.Error as error:
        raise ValueError(
            f"line {reader.line_num}: {error}; a field that holds separators, quotes or new lines "
            'must be in quotes ("), and quotes in it be doubled'
        ) from error


def _read_csv(path: Path, table: Table) -> None:
    _read_delimited(path, table, ",")


def _read_tsv(path: Path, table: Table) -> None:
    _read_delimited(path, table, "\t")


def _read_jsonl(path: Path, table: Table) -> None:
    names: set[str] = set()
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(
                f"line {number} is not a JSON object; each must be, as "
                '{"path": "a.jpg", "caption": "a cat"}'
            )
        for name in row:
            if name not in names:
                table.add_name(name)
        names.update(row)
        table.add_row(row, number)


def _lines(path: Path) -> Iterator[str]:
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), 1):
            if len(line) > MAX_LINE:
                raise ValueError(f"line {number} has more than {MAX_LINE:,} bytes; it is no table")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"line {number} is not UTF-8 text ({error.reason}); save the file as UTF-8"
                ) from error
            if "\0" in text:
                raise ValueError(
                    f"line {number} holds a NUL byte; the file is damaged, or not UTF-8 text"
                )
            yield text


def _read_parquet(path: Path, table: Table) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError("Parquet files need pyarrow: pip install 'vitrail[parquet]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            for name in file.schema_arrow.names:
                table.add_name(name)
            if not table.columns:
                return
            for batch in file.iter_batches(columns=list(table.columns)):
                for row in batch.to_pylist():
                    table.add_row(row, table.rows + 1)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"it cannot be read as Parquet ({error})") from error


READERS: dict[str, Callable[[Path, Table], None]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
