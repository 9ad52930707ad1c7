"""What shards and tables hold as labels, as numbers of classes."""

import re
from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Int

Array = np.ndarray
_NUMBER = re.compile(r"-?[0-9]{1,18}")


def _by_number(value: str) -> tuple[int, str]:
    return int(value), value  # 09 and 9 are two


def are_numbers(values: Collection[str]) -> bool:
    return all(_NUMBER.fullmatch(value) for value in values)


def in_order(values: Collection[str], numeric: bool) -> list[str]:
    """Classes of such names: of numbers by number, negative ones left out; else of text."""
    if not numeric:
        return sorted(values)
    return sorted((value for value in values if int(value) >= 0), key=_by_number)


def number_classes(
    spec: str,
    codes: Int[Array, " N"],
    values: Sequence[str],
    train_values: Sequence[str],
    names: Sequence[str] | None,
) -> tuple[tuple[str, ...] | None, Int[Array, " N"]]:
    """(class names, int64 [N] the class of each sample, -1 for none).

    Classes are the values of training, in the order of numbers if all are, else of text. With
    `names`, numbers are places among them, and values that are no numbers must be some of them.
    Negative numbers stand for none.

    Args:
        codes: of each sample, into `values`; -1 for none.
        values: labels as they are written, each once. train_values: those of the training split.

    Raises:
        ValueError: a class that training, or `names`, lacks.
    """
    numeric = are_numbers((*values, *train_values))
    train_values = in_order(train_values, numeric)
    if not train_values and names is None:
        return None, np.full(len(codes), -1)
    places = range(len(names)) if names is not None and numeric else names or train_values
    known = {str(place): number for number, place in enumerate(places)}
    table = np.full(len(values) + 1, -1)
    for code, value in enumerate(values):
        if numeric and int(value) < 0:
            continue
        number = known.get(str(int(value)) if numeric and names is not None else value)
        if number is None:
            lacking = "training lacks" if names is None else "is none of the class names"
            raise ValueError(f"{spec}: a sample has the class {value!r}, which {lacking}")
        table[code] = number
    return tuple(train_values if names is None else names), table[codes]
