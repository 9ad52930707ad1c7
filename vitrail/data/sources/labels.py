"""Labels as shards and tables write them, and the class numbers that they stand for."""

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from jaxtyping import Int

_NUMBER = re.compile(r"-?[0-9]{1,18}")


def nfc(name: str) -> str:
    """Returns a name in Unicode's composed form, in which names are compared.

    macOS and some archives write an accented letter as two characters, other systems as one.
    """
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def number_names(names: Iterable[str]) -> tuple[dict[str, int], list[str]]:
    """Numbers names in their order; two Unicode forms of one name have one number.

    Returns:
        numbers: by the names' composed form.
        names: the first of each form.
    """
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(nfc(name), name)
    return {key: number for number, key in enumerate(first)}, list(first.values())


def _by_number(value: str) -> tuple[int, str]:
    return int(value), value  # 09 and 9 are two


def _are_numbers(values: Collection[str]) -> bool:
    return all(_NUMBER.fullmatch(value) for value in values)


def _in_order(values: Collection[str], numeric: bool) -> list[str]:
    """Returns class names in order: numbers by value without negative ones, else text."""
    if not numeric:
        return sorted(values)
    return sorted((value for value in values if int(value) >= 0), key=_by_number)


def encode_labels(column: Iterable[object]) -> tuple[list[str], Int[np.ndarray, " N"]]:
    """Returns the labels of a column as text, each once and sorted, and the place of each row's.

    Args:
        column: N values; None and blank text stand for no label.

    Returns:
        values: the labels.
        codes: int64 [N], into `values`, -1 for no label.
    """
    texts = ["" if value is None else str(value).strip() for value in column]
    written = sorted(set(texts) - {""})
    number, values = number_names(written)
    places = {value: number[nfc(value)] for value in written} | {"": -1}
    return values, np.array([places[text] for text in texts], dtype=np.int64)


def number_classes(
    spec: str,
    codes: Int[np.ndarray, " N"],
    values: Sequence[str],
    train_values: Sequence[str],
    names: Sequence[str] | None,
) -> tuple[tuple[str, ...] | None, Int[np.ndarray, " N"]]:
    """Returns the class names, and the class number of each sample.

    Classes are the labels of training, in the order of numbers if all are numbers, else of text.
    With `names`, numeric labels are places among them, and others must be some of them. Negative
    numbers stand for no label.

    Args:
        spec: of the source, for messages.
        codes: of each sample, into `values`; -1 for no label.
        values: labels as they are written, each once.
        train_values: those of the training split.
        names: of the classes, if they are known.

    Returns:
        names: of the classes, None without labels.
        numbers: int64 [N], -1 for no label.

    Raises:
        ValueError: a class that training, or `names`, lacks.
    """
    numeric = _are_numbers((*values, *train_values))
    train_values = _in_order(train_values, numeric)
    if not train_values and names is None:
        return None, np.full(len(codes), -1)
    places = range(len(names)) if names is not None and numeric else names or train_values
    known = {nfc(str(place)): number for number, place in enumerate(places)}
    table = np.full(len(values) + 1, -1)
    for code, value in enumerate(values):
        if numeric and int(value) < 0:
            continue
        number = known.get(str(int(value)) if numeric and names is not None else nfc(value))
        if number is None:
            lacking = "training lacks" if names is None else "is none of the class names"
            raise ValueError(f"{spec}: a sample has the class {value!r}, which {lacking}")
        table[code] = number
    return tuple(train_values if names is None else names), table[codes]
