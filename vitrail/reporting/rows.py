"""The numbers of evaluation.json as rows of tables, in plain words."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from vitrail.evals.protocol import Protocol
from vitrail.evals.registry import PROTOCOLS
from vitrail.evals.settings import to_json
from vitrail.registry import resolve

KINDS = ("raw", "untrained", "trained")
THE_SAME = "The same."
MAX_NUMBERS = 40  # of a protocol that is only listed


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
        main: the number, as text.
        deviation: its standard deviation, as text, if any.
        width: of its bar, in percent.
        colour: class of its bar in the style sheet; None for no bar.
        small: a line below the number.
        best: it stands out.
    """

    main: str
    deviation: str = ""
    width: float = 0.0
    colour: str | None = None
    small: str = ""
    best: bool = False


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        name: of the protocol.
        title: of the row.
        meaning: a sentence or two below it.
        numbers: by column.
        k: of k-NN, if rows differ in it.
        warning: a sentence why numbers cannot be compared, if any.
    """

    name: str
    title: str
    meaning: str
    numbers: dict[str, Any]
    k: int | None = None
    warning: str = ""


class Listed(NamedTuple):
    """Numbers that stand in no table.

    Attributes:
        name: of the protocol.
        title: of the protocol, with the unit if there is one.
        meaning: a sentence.
        numbers: names and values, as text.
    """

    name: str
    title: str
    meaning: str
    numbers: list[tuple[str, str]]


def accuracy_rows(evaluation: dict[str, Any], *, name_k: bool = False) -> list[Row]:
    """Returns a row for each protocol that gave accuracies, and for each k of k-NN.

    Args:
        evaluation: the content of evaluation.json, its settings in today's form.
        name_k: a row says its k even if it is the only one.
    """
    rows: list[Row] = []
    for name, protocol in PROTOCOLS.items():
        if not isinstance(evaluation.get(name), dict):
            continue
        if protocol.rows and "text" not in protocol.needs:
            rows += _own_rows(name, protocol, evaluation[name])
        elif protocol.accuracies:
            rows += _rows(name, protocol, evaluation, name_k)
    return rows


def _rows(name: str, protocol: Protocol, evaluation: dict[str, Any], name_k: bool) -> list[Row]:
    numbers, words = evaluation[name], _words(protocol, evaluation.get("settings"))
    title, meaning = protocol.title, describe(protocol).format(**words)
    chosen = as_dict(numbers.get("chosen"))
    if chosen:
        meaning += f" Chosen: {'; '.join(f'{kind}: {what}' for kind, what in chosen.items())}."
    by = protocol.by[0] if protocol.by else ""
    several = as_dict(numbers.get(f"by_{by}"))
    if name_k and by and not several:
        several = {str(words.get(by)): numbers}
    values = sorted((int(k), as_dict(found)) for k, found in several.items() if k.isdecimal())
    if not values:
        return [Row(name, title, meaning, numbers)]
    rows: list[Row] = []
    for value, found in values:
        text = THE_SAME if rows else describe(protocol).format(**(words | {by: value}))
        rows.append(Row(name, f"{title}, {by} = {value}", text, found, value))
    return rows


def _words(protocol: Protocol, settings: Any) -> dict[str, Any]:
    """Returns the fields of a protocol's configs, as measured with, or their defaults."""
    words: dict[str, Any] = {}
    for group, config in protocol.configs.items():
        words |= to_json(resolve(config)()) | as_dict(as_dict(settings).get(group))
    return words


def describe(protocol: Protocol) -> str:
    """Returns what stands below a protocol's title."""
    return protocol.explanation or protocol.meaning


def kind_cells(row: Row, kinds: Sequence[str] = KINDS) -> list[Cell]:
    """Returns a cell for each kind of features; the trained one's stands out."""
    cells = []
    for kind in kinds:
        main, deviation, width = percent(row.numbers.get(kind))
        cells.append(Cell(main, deviation, width, kind, best=kind == "trained"))
    return cells


def trained_cell(numbers: dict[str, Any], below: str = "untrained") -> Cell:
    """Returns the trained encoder's cell, with another value in small below it."""
    main, deviation, width = percent(numbers.get("trained"))
    other = percent(numbers.get(below))[0]
    return Cell(main, deviation, width, "trained", "" if other == "–" else f"{below} {other}")


def transfer(evaluation: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns results by source, with the first one; {} if there is only one."""
    others = {
        spec: numbers
        for spec, numbers in as_dict(evaluation.get("transfer")).items()
        if isinstance(numbers, dict)
    }
    return {str(evaluation.get("data", "")): evaluation} | others if others else {}


def transfer_protocols(evaluation: dict[str, Any]) -> list[str]:
    """Returns the protocols that any source has accuracies of."""
    rows = [row for numbers in transfer(evaluation).values() for row in accuracy_rows(numbers)]
    found = {row.name for row in rows}
    return [name for name in PROTOCOLS if name in found]


def listed(evaluation: dict[str, Any]) -> list[Listed]:
    """Returns the numbers of protocols that have no other place on the page."""
    found = []
    for name, protocol in PROTOCOLS.items():
        numbers = _scalars(as_dict(evaluation.get(name)))
        if numbers and protocol.listed and not protocol.accuracies and not protocol.rows:
            title = ", in ".join(filter(None, (protocol.title, protocol.unit)))
            found.append(Listed(name, title, describe(protocol), numbers[:MAX_NUMBERS]))
    return found


def _scalars(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    numbers: list[tuple[str, str]] = []
    for key, inner in value.items():
        if isinstance(inner, dict):
            numbers += _scalars(inner, f"{prefix}{key} ")
        elif isinstance(inner, (int, float, str)):
            text = f"{inner:.4g}" if isinstance(inner, float) else str(inner)
            numbers.append((f"{prefix}{key}".replace("_", " "), text))
    return numbers


def percent(value: Any) -> tuple[str, str, float]:
    """Returns the percentage, its ± deviation or "", and the width of its bar in percent."""
    mean, std = (value.get("mean"), value.get("std")) if isinstance(value, dict) else (value, None)
    if not isinstance(mean, (int, float)) or not math.isfinite(mean):
        return "–", "", 0.0
    deviation = f"± {100 * std:.1f}" if isinstance(std, (int, float)) else ""
    return f"{100 * mean:.1f}", deviation, min(100.0, max(0.0, 100.0 * mean))


def as_dict(value: Any) -> dict[str, Any]:
    """Returns a dict as it is and {} for anything else, as damaged files may hold."""
    return value if isinstance(value, dict) else {}


def word_rows(evaluation: dict[str, Any]) -> list[Row]:
    """Returns the rows of protocols of a text side, whose numbers are by "trained" and "chance"."""
    return [
        row
        for name, protocol in PROTOCOLS.items()
        if protocol.rows and "text" in protocol.needs
        for row in _own_rows(name, protocol, evaluation.get(name))
    ]


def _own_rows(name: str, protocol: Protocol, numbers: Any) -> list[Row]:
    """Returns the rows that a protocol makes of its numbers itself."""
    return [Row(name, *row) for row in resolve(protocol.rows)(numbers)]
