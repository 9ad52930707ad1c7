"""The numbers of evaluation.json as tables, for the terminal and for a notebook."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rich.table import Table

from vitrail.evals.contract import KINDS
from vitrail.evals.registry import PROTOCOLS
from vitrail.evals.seen.words import WITH, is_no_test

METRICS = {"accuracy": "test accuracy", "mean_per_class": "test accuracy, mean over classes,"}


def results_table(results: Mapping[str, Any]) -> Table:
    """Returns accuracies in percent with a row for each protocol, or for each k of k-NN.

    Protocols with their own table are left out.
    """
    table = Table(title=results_title(results), title_justify="left")
    table.add_column("")
    for kind in KINDS:
        table.add_column(kind, justify="right")
    for title, cells in results_rows(results):
        table.add_row(title, *cells)
    return table


def results_title(results: Mapping[str, Any]) -> str:
    """Returns the title of `results_table`: the metric and the data."""
    return f"{_metric(results)} on {results['data']}, %"


def results_rows(results: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Returns a title and a percentage for each of KINDS, for each row of `results_table`."""
    found = []
    for name in accuracy_names(results):
        for title, numbers in _by_value(name, results[name]).items():
            found.append((title, [percent(numbers.get(kind)) for kind in KINDS]))
    return found


def _by_value(name: str, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the numbers of each k by title, or of a protocol without several k."""
    for field in PROTOCOLS[name].by[:1]:
        if several := numbers.get(f"by_{field}"):
            return {f"{name}, {field} = {value}": found for value, found in several.items()}
    return {name: numbers}


def accuracy_names(results: Mapping[str, Any]) -> list[str]:
    """Returns the names of the protocols of `results_table`."""
    return [name for name in _measured(results) if PROTOCOLS[name].table is None]


def transfer_table(results: Mapping[str, Any]) -> Table:
    """Returns the trained encoder's accuracies in percent: rows are sources, columns protocols."""
    rows: dict[str, Any] = {results["data"]: results} | results["transfer"]
    names = [name for name in PROTOCOLS if any(name in _measured(row) for row in rows.values())]
    metrics = {METRICS[row["metric"]] for row in rows.values()}
    of = metrics.pop() if len(metrics) == 1 else "test accuracy (of each source what it asks for)"
    title = f"transfer: {of} of the trained encoder, %"
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for spec, numbers in rows.items():
        name = f"{spec} {no_test(numbers)}" if is_no_test(numbers) else spec
        table.add_row(name, *(percent(numbers.get(name, {}).get("trained")) for name in names))
    return table


def rank_line(features: Mapping[str, Any]) -> str:
    """Returns RankMe as a line of text."""
    text = f"RankMe {features['rankme']:.1f} of {features['dimensions']} dimensions"
    before = features.get("rankme_untrained")
    return text if before is None else f"{text} (untrained {before:.1f})"


def percent(value: Any) -> str:
    """Formats 0.914 as "91.4", or with a standard deviation as "91.4 ± 0.6"."""
    if isinstance(value, dict):
        return f"{100 * value['mean']:.1f} ± {100 * value['std']:.1f}"
    return "–" if value is None else f"{100 * value:.1f}"


def _measured(results: Mapping[str, Any]) -> list[str]:
    return [name for name, protocol in PROTOCOLS.items() if name in results and protocol.accuracies]


def _metric(results: Mapping[str, Any]) -> str:
    words = METRICS[results["metric"]]
    return f"{words} {no_test(results)}," if is_no_test(results) else words


def no_test(results: Mapping[str, Any]) -> str:
    """Returns the words that stand beside accuracies on images trained on with labels."""
    return f"(not a test: images trained on {WITH[results['seen_in_training']['with']]})"


class Evaluation(dict[str, Any]):
    """The content of evaluation.json, by the names of protocols and facts.

    In a notebook it is shown as a table of the accuracies.
    """

    def to_dict(self) -> dict[str, Any]:
        """Returns the results as a plain dict, which can be written as JSON."""
        return dict(self)

    def _repr_html_(self) -> str:
        """Returns a table of accuracies, or the names of all results if there are none."""
        if not accuracy_names(self):
            return f"<p>{escape(', '.join(self) or 'no results')}</p>"
        rows = "".join(_row([title, *cells], "td") for title, cells in results_rows(self))
        caption = f"<caption>{escape(results_title(self))}</caption>"
        return f"<table>{caption}{_row(['', *KINDS], 'th')}{rows}</table>"


def _row(cells: Sequence[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"
