"""The result of `evaluate`: the numbers of evaluation.json, shown as a table in a notebook."""

from collections.abc import Sequence
from html import escape
from typing import Any

from vitrail.evals.contract import KINDS
from vitrail.evals.tables import accuracy_names, results_rows, results_title


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
