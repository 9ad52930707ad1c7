"""Which column of a table is which, and what splits and labels mean in all of them."""

from collections.abc import Collection

from vitrail.data.contract import NoTestSplitError
from vitrail.data.sources.formats.read_table import Table, Value
from vitrail.data.sources.labels import are_numbers, in_order

# Names of columns, in whatever case. A file may have one of each kind.
COLUMNS = {
    "image": ("path", "filepath", "file", "filename", "file_name", "image", "image_path", "img"),
    "caption": ("caption", "text", "title", "description"),
    "label": ("label", "class", "category"),
    "split": ("split",),
}
SPLITS = {"train": ("train",), "test": ("test", "val", "validation")}  # the first that any row has


def find_columns(
    table: Table, needed: Collection[str], kinds: Collection[str] = tuple(COLUMNS)
) -> dict[str, list[Value]]:
    """The columns by kind. ValueError where one is missing or has two candidates, or no rows.

    kinds: those looked for; needed: those that must be there.
    """
    found = ", ".join(map(repr, table.names[:20])) or "none"
    columns = {}
    for kind in kinds:
        names = COLUMNS[kind]
        matches = [name for name in table.names if name.strip().lower() in names]
        if len(matches) > 1:
            raise ValueError(
                f"its columns {', '.join(map(repr, matches))} could each be the {kind}; rename or "
                "remove all but one"
            )
        if matches:
            columns[kind] = table.columns[matches[0]]
        elif kind in needed:
            raise ValueError(
                f"it has no column for the {kind}; its columns are {found}; name one of them "
                f"{', '.join(names[:-1])} or {names[-1]}"
            )
    if not table.rows:
        raise ValueError("it has no rows below its header")
    return columns


def choose_rows(column: list[Value] | None, split: str, n_rows: int) -> list[int]:
    """Positions of a split's rows, in order."""
    remedy = "add a column 'split', or hold samples out with vitrail.data.subset.hold_out"
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


def number_labels(column: list[Value] | None) -> tuple[list[int] | None, list[str] | None]:
    """(class of each row, -1 for none; class names), None and None where no row has one.

    Blanks and negative numbers stand for none.
    """
    column = column or []
    names = {value: "" if value is None else str(value).strip() for value in set(column)}
    present = set(names.values()) - {""}
    classes = in_order(present, are_numbers(present))
    if not classes:
        return None, None
    number = {name: i for i, name in enumerate(classes)}
    return [number.get(names[value], -1) for value in column], classes


def texts(column: list[Value], kind: str) -> list[str]:
    """The values as text, blank where there is none."""
    for row, value in enumerate(column, 1):
        if not isinstance(value, str | None):
            raise ValueError(f"its row {row} has the {kind} {value!r}, which is not text")
    return [str(value or "") for value in column]
