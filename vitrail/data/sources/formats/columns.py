"""The columns of tables: which holds the image, the caption, the label and the split.

A table of paths (`read_table.Table`) is searched by name. Of a table with images in it (a schema of
pyarrow) the types of the columns and Hugging Face's metadata count too.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vitrail.atomic import parse_json
from vitrail.data.sources.formats.read_table import Table, Value, read_table
from vitrail.data.sources.labels import encode_labels, number_classes
from vitrail.data.sources.splits import WORDS, choose_part, no_test_split, part_notes, part_of

# Names of columns, in any case.
COLUMNS = {
    "image": (
        *("path", "filepath", "file", "filename", "file_name", "image", "image_path", "img"),
        *("picture", "photo", "bytes", "image_bytes"),
    ),
    "caption": ("caption", "text", "title", "description", "txt"),
    "label": ("label", "labels", "class", "category", "cls"),
    "split": ("split",),
}
OF_PATHS = ("path", "filepath", "file", "filename", "file_name", "image_path")  # not of images
OF_IMAGES = ("bytes", "image_bytes")  # not of paths
# In a table of paths these count only if it would be refused without: one that other names
# describe is read as it was before these were known.
UNUSUAL = ("picture", "photo", "txt", "labels", "cls")


class Found(NamedTuple):
    """The columns of a table of paths.

    Attributes:
        by_kind: values of each kind that is there.
        names: of all columns.
    """

    by_kind: dict[str, list[Value]]
    names: list[str]

    def why_unlabelled(self) -> str:
        """Returns the reason why no row has a label."""
        if "label" in self.by_kind:
            return "its column of labels is blank, or negative, in every row"
        return f"none of its columns ({_some(self.names)}) is called {', '.join(COLUMNS['label'])}"

    def notes(self) -> list[str]:
        """Returns a sentence on the rows of parts that no split reads."""
        return part_notes([part_of(value) for value in self.by_kind.get("split", [])], "rows")


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:20])) or "none"


def read_columns(
    path: Path, needed: Collection[str], kinds: Collection[str] = tuple(COLUMNS)
) -> Found:
    """Reads the columns of a table of paths (`read_table`), by kind.

    Raises:
        OSError: the file cannot be read.
        ValueError: as `read_table` and `find_table_columns`.
    """
    wanted = {word for kind in kinds for word in COLUMNS[kind]}.difference(OF_IMAGES)
    table = read_table(path, wanted)
    return Found(find_table_columns(table, needed, kinds), table.names)


def find_table_columns(
    table: Table, needed: Collection[str], kinds: Collection[str]
) -> dict[str, list[Value]]:
    """Returns the columns of a table of paths by kind.

    Args:
        table: with the columns of these kinds.
        needed: kinds that must be there.
        kinds: those to find.

    Raises:
        ValueError: a column is missing, has two candidates or holds other values than text and
            whole numbers, or the table has no rows.
    """
    found = ", ".join(map(repr, table.names[:20])) or "none"
    columns = {}
    for kind in kinds:
        usual = [word for word in COLUMNS[kind] if word not in (*OF_IMAGES, *UNUSUAL)]
        matches = [name for name in table.columns if name.strip().lower() in usual]
        if not matches and kind in needed:
            matches = [name for name in table.columns if name.strip().lower() in COLUMNS[kind]]
        if len(matches) > 1:
            raise ValueError(
                f"its columns {', '.join(map(repr, matches))} could each be the {kind}; rename or "
                "remove all but one"
            )
        if matches:
            columns[kind] = table.column(matches[0])
        elif kind in needed:
            raise ValueError(
                f"it has no column for the {kind}; its columns are {found}; name one of them "
                f"{', '.join(usual[:-1])} or {usual[-1]}"
            )
    if not table.rows:
        raise ValueError("it has no rows below its header")
    return columns


def choose_rows(spec: str, column: list[Value] | None, split: str, n_rows: int) -> list[int]:
    """Returns the positions of a split's rows, in order.

    Args:
        spec: of the source, for messages.
        column: the split of each row, None for a table without splits.
        split: "train" or "test".
        n_rows: of the table.

    Raises:
        NoTestSplitError: "test" of a table without such rows.
        ValueError: a row has an unknown split, or no row is of "train".
    """
    remedy = "add a column 'split'"
    if column is None:
        if split != "train":
            raise no_test_split(spec, "it lacks a column 'split'", remedy)
        return list(range(n_rows))
    part_by_value = {value: part_of(value) for value in set(column)}
    parts = [part_by_value[value] for value in column]
    if None in parts:
        first = parts.index(None)
        raise ValueError(
            f"its row {first + 1} has the split {column[first]!r}; it must be one of "
            f"{', '.join(word for words in WORDS.values() for word in words)}"
        )
    part = choose_part(parts, split)
    if part is None and split != "train":
        raise no_test_split(spec, "no row's 'split' is test or val", remedy)
    if part is None:
        raise ValueError("no row's 'split' is train; without them there is nothing to train on")
    return [i for i, other in enumerate(parts) if other == part]


def number_labels(column: list[Value] | None) -> tuple[list[int] | None, list[str] | None]:
    """Returns the class number of each row, -1 for no label, and the names of the classes.

    Blanks and negative numbers stand for no label. None and None if no row has one.
    """
    values, codes = encode_labels(column or [])
    classes, numbers = number_classes("", codes, values, values, None)
    return (None, None) if classes is None else (numbers.tolist(), list(classes))


def texts(column: list[Value], kind: str) -> list[str]:
    """Returns the values as text, blank for None. ValueError for a number."""
    for row, value in enumerate(column, 1):
        if not isinstance(value, str | None):
            raise ValueError(f"its row {row} has the {kind} {value!r}, which is not text")
    return [str(value or "") for value in column]


KINDS = {"image": "image", "label": "label", "text": "caption"}  # by the option that gives a name


class Columns(NamedTuple):
    """The columns of a table with images in it.

    Attributes:
        image: name of the column of images.
        label: name of the column of labels, None for a table without.
        text: name of the column of captions, None for a table without.
        classes: names of the label's numbers, if known.
    """

    image: str
    label: str | None
    text: str | None
    classes: tuple[str, ...] | None


def not_taken(schema: Any, columns: Columns) -> dict[str, str]:
    """Returns the reason why a table with images has no "label", or no "text", of each that lacks.

    Args:
        schema: of the table.
        columns: those that were found.
    """
    reasons = {}
    for kind, needs in {"label": "text or whole numbers", "text": "text"}.items():
        if getattr(columns, kind) is not None:
            continue
        words = COLUMNS[KINDS[kind]]
        odd = [name for name in schema.names if name.lower() in words and name != columns.image]
        if odd:
            types = ", ".join(f"{name!r} ({schema.field(name).type})" for name in odd)
            reasons[kind] = f"its column {types} does not hold {needs}"
        elif kind == "label":
            reasons[kind] = (
                f"none of its columns ({_some(schema.names)}) is called {', '.join(words)}; name "
                "one by label=COLUMN"
            )
    return reasons


def find_schema_columns(schema: Any, asked: dict[str, str]) -> Columns:
    """Returns the columns of a pyarrow schema.

    Hugging Face's metadata decide, if any: features of type Image, and ClassLabel with its names.
    Else names and types: an image is binary, or a struct with the field `bytes`; a label is a whole
    number or text; a caption is text.

    Args:
        schema: of the table.
        asked: names of columns that the user gives for "image", "label" and "text".

    Raises:
        ValueError: a given column is missing or of another type, or there is no column of images,
            or several could be.
    """
    features = _features(schema)
    fits = {"image": _is_image, "label": _is_label, "text": _is_text}
    chosen: dict[str, str | None] = {}
    for kind, fit in fits.items():
        fitting = [name for name in schema.names if fit(schema.field(name).type)]
        name = asked.get(kind)
        if name is not None and name not in fitting:
            has = ", ".join(map(repr, fitting)) or "none"
            raise ValueError(f"{kind}={name}: columns that can be the {kind}: {has}")
        chosen[kind] = name or _guess(kind, fitting, features)
    if chosen["image"] is None:
        raise ValueError(
            "it has no column of images (binary, or a struct with the field bytes); its columns "
            f"are {', '.join(map(repr, schema.names))}"
        )
    feature = features.get(chosen["label"] or "", {})
    names = feature.get("names") if isinstance(feature, dict) else None
    known = isinstance(names, list) and all(isinstance(name, str) for name in names)
    classes = tuple(names) if known and names else None
    return Columns(chosen["image"], chosen["label"], chosen["text"], classes)


def _features(schema: Any) -> dict[str, Any]:
    """Returns Hugging Face's description of the columns, empty if there is none."""
    try:
        metadata = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = metadata.get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        return {}
    return features if isinstance(features, dict) else {}


def _guess(kind: str, fitting: Sequence[str], features: dict[str, Any]) -> str | None:
    wanted = {"image": "Image", "label": "ClassLabel"}.get(kind)
    described = [
        name
        for name in fitting
        if isinstance(features.get(name), dict) and features[name].get("_type") == wanted
    ]
    likely = described or list(fitting)
    words = [word for word in COLUMNS[KINDS[kind]] if word not in OF_PATHS]
    for name in (name for word in words for name in likely if name.lower() == word):
        return name
    if len(likely) == 1 and (described or kind == "image"):
        return likely[0]
    if kind == "image" and likely:
        several = ", ".join(map(repr, likely))
        raise ValueError(f"the columns {several} could each be the image; name one by image=NAME")
    return None


def _is_image(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(f.name == "bytes" and _is_image(f.type) for f in kind)
    return types.is_binary(kind) or types.is_large_binary(kind)


def _is_label(kind: Any) -> bool:
    from pyarrow import types

    return types.is_integer(kind) or _is_text(kind)


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind)
