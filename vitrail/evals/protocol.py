"""The row of an evaluation protocol: all that the evaluation and the report have to know of it.

A row imports no code: what it refers to is "package.module:name" (or the object itself, in another
package's row).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from vitrail.config import suggest
from vitrail.registry import Row

# What a protocol may need, and a source or an encoder has or has not.
NEEDS = {
    "labels": "labelled data",
    "captions": "data with captions",
    "masks": "data with masks of objects",
    "text": "an encoder with a text side",
    "patches": "a backbone with tokens",
    "features": "the features of all images, which are computed once for all protocols",
}


class ResultRow(NamedTuple):
    """A row of the report that a protocol makes of its numbers.

    Attributes:
        title: of the row.
        meaning: a sentence or two below it.
        numbers: fractions in [0, 1] by column, such as "trained" and "chance".
    """

    title: str
    meaning: str
    numbers: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """The picture of a protocol, `figures/NAME.png`, as the report shows it.

    Attributes:
        kind: what is seen, for readers who cannot see it: "a grid of test images".
        caption: what it shows.
        title: its heading; the protocol's where empty.
        shared: the shared settings that it depends on, beside those of the protocol's own groups.
    """

    kind: str
    caption: str
    title: str = ""
    shared: tuple[str, ...] = ("seed", "pictures")


@dataclass(frozen=True, kw_only=True)
class Protocol(Row):
    """A row of PROTOCOLS.

    Attributes:
        run: `run(context, *configs)`: takes a `Context` and a config of each group of `configs`;
            returns numbers for `evaluation.json` (None if there are none), and draws its figure
            to `context.figures / "NAME.png"`.
        title: of its row in the report.
        meaning: one line that says what it measures or draws, for `vitrail list protocols`.
        explanation: a sentence or two for the report instead of `meaning`; {field} is replaced by
            the value of a field of its configs.
        needs: names of NEEDS. It is left out by default where one of them is missing.
        configs: the dataclass of its settings by the group that these form on the command line
            (`--GROUP.FIELD`). Protocols may share a group.
        ignores: fields of its groups ("GROUP.FIELD") that do not change its numbers.
        shared: the shared settings ("seed", "metric", "image_size") that change its numbers.
        unit: "percent" if `run` returns fractions in [0, 1] by kind of features ("raw",
            "untrained", "trained"), which stand in the tables of accuracies and of transfer. Other
            numbers are listed one by one, in this unit ("" if they have none). None if there are
            no numbers, only the figure.
        figure: the picture that it draws, if any.
        optional: it runs only where it is asked for by name.
        compares: it needs features of the raw pixels and the untrained encoder too; those that
            need labels get them in any case.
        by: fields of its config whose values have results of their own: that of the first value
            beside "by_FIELD" of all, as k-NN of several k.
        table: `table(numbers)` returns a rich.table.Table for the terminal.
        rows: `rows(numbers)` returns ResultRows for the report: with "trained" and "chance" for
            its table "By words" if the protocol needs "text", else for its table of accuracies.
        listed: the report lists numbers that stand in no table; False if its figure shows them.
    """

    run: str | Callable[..., Any]
    title: str
    meaning: str
    explanation: str = ""
    needs: frozenset[str] = frozenset()
    configs: Mapping[str, str | type] = field(default_factory=dict)
    ignores: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()
    unit: str | None = "percent"
    figure: Figure | None = None
    optional: bool = False
    compares: bool = False
    by: tuple[str, ...] = ()
    table: str | Callable[[Any], Any] | None = None
    rows: str | Callable[[Any], Any] | None = None
    listed: bool = True

    def __post_init__(self) -> None:
        for need in self.needs:
            if need not in NEEDS:
                raise ValueError(f"needs: {need!r} is not a need{suggest(need, NEEDS)}")

    @property
    def summary(self) -> str:  # type: ignore[override]
        """The line of `vitrail list protocols`."""
        return f"{self.meaning} Only by name." if self.optional else self.meaning

    @property
    def accuracies(self) -> bool:
        """True if its numbers are fractions by kind of features, shown in percent."""
        return self.unit == "percent"
