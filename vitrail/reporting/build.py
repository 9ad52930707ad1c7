"""The report on a run or several: one self-contained page without scripts or network access."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vitrail.atomic import write_atomically
from vitrail.evals.registry import PROTOCOLS
from vitrail.reporting.commands import evaluate_again, report_again, train_again
from vitrail.reporting.compare import comparison, read_runs
from vitrail.reporting.curves import health_curves, training_curves
from vitrail.reporting.exposure import exposure, test_words
from vitrail.reporting.facts import data_note, facts, flat, rank, sentences, state, visible
from vitrail.reporting.pictures import Picture, Words, picture_words, pictures
from vitrail.reporting.rows import (
    KINDS,
    Cell,
    Row,
    accuracy_rows,
    as_dict,
    kind_cells,
    listed,
    trained_cell,
    transfer,
    transfer_protocols,
    word_rows,
)
from vitrail.reporting.run_files import RunFiles, read_run

MAX_LISTED = 100  # quarantined files listed by name
MAX_WARNINGS = 20
BY_WORDS = ("trained", "chance")

TableRow = tuple[Row, list[Cell]]


def build_report(run: str | Path, *more: str | Path, out: str | Path | None = None) -> Path:
    """Writes a page about a run, finished or not, or about several side by side.

    Args:
        run: folder of a run.
        more: folders of further runs.
        out: path of the page; None for RUN/report.html, which is for a single run.

    Returns:
        path of the page.

    Raises:
        ValueError: no such folder, a folder without a run, the same run twice, or several runs
            without `out`.
    """
    paths = [Path(path) for path in (run, *more)]
    if more and out is None:
        raise ValueError(
            f"the page of {len(paths)} runs needs a name: give --out, as in --out compared.html"
        )
    page_at = paths[0] / "report.html" if out is None else Path(out)
    if page_at.is_dir() or page_at.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out {page_at} is no name of a page; end it in .html")
    page = render_several(read_runs(paths), page_at) if more else render(read_run(paths[0]))
    page_at.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(page_at, page)
    return page_at


def render(files: RunFiles) -> str:
    """Returns the page of one run. All text from the run is escaped."""
    return _page("page.html", _context(files))


def render_several(runs: Sequence[RunFiles], page: Path) -> str:
    """Returns the page of several runs, to be written to `page`. All text from them is escaped."""
    return _page("compare.html", comparison(runs, page))


def _page(name: str, context: dict[str, Any]) -> str:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=PackageLoader("vitrail.reporting", ""),
    )
    style = environment.loader.get_source(environment, "style.css")[0]  # type: ignore[union-attr]
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = environment.get_template(name).render(**context, style=Markup(style), written=written)
    # a lone surrogate (an undecodable byte of a file name) cannot be encoded as UTF-8
    return page.encode("utf-8", "replace").decode("utf-8")


def _context(files: RunFiles) -> dict[str, Any]:
    warnings = [visible(str(row["warning"])) for row in files.rows if row.get("warning")]
    shown = _pictures(files)  # first, as it adds a remark for each picture left out
    return {
        "name": files.name,
        "facts": facts(files),
        "command": files.config.get("command"),
        "config": flat(files.config),
        "state": state(files),
        "remarks": files.remarks,
        "evaluation": files.evaluation,
        "per_class": files.evaluation.get("metric") == "mean_per_class",
        "data_note": data_note(files),
        "test_words": test_words(files),
        "exposure": exposure(files),
        **_tables(files),
        "pictures": shown,
        "curves": training_curves(files.rows),
        "health": health_curves(files.rows),
        "rank": rank(files),
        "warnings": warnings[:MAX_WARNINGS],
        "more_warnings": max(0, len(warnings) - MAX_WARNINGS),
        "bad": [(visible(id), visible(reason)) for id, reason in files.bad[:MAX_LISTED]],
        "n_bad": len(files.bad),
        "found": sentences(files.found.get("lines")),
        "notes": sentences(files.found.get("notes")),
        "trained_by": train_again(files),
        "ranked_by": evaluate_again(files, ["knn"]),
        "made_by": report_again([files]),
    }


def _pictures(files: RunFiles) -> list[tuple[Picture, Words]]:
    return [(found[0], picture_words(name)) for name, found in pictures([files]).items()]


def _tables(files: RunFiles) -> dict[str, Any]:
    """Returns the tables of numbers, each with the command that measures them again."""
    known = files.evaluation
    accuracies, words = accuracy_rows(known), word_rows(known)
    protocols = transfer_protocols(known)
    tables = {
        "accuracies": [(row, kind_cells(row)) for row in accuracies],
        "words": [(row, kind_cells(row, BY_WORDS)) for row in words],
        "transfer": _transfer_rows(known, protocols),
        "transfer_to": [PROTOCOLS[name].title for name in protocols],
        "kinds": KINDS,
        "by_words": BY_WORDS,
        "listed": [(entry, evaluate_again(files, [entry.name])) for entry in listed(known)],
    }
    again: dict[str, str] = {
        "accuracies": evaluate_again(files, _names(row.name for row in accuracies)),
        "words": evaluate_again(files, _names(row.name for row in words)),
        "transfer": evaluate_again(files, protocols, list(transfer(known))),
    }
    return tables | {"again": again}


def _names(protocols: Any) -> list[str]:
    return list(dict.fromkeys(protocols))


def _transfer_rows(evaluation: dict[str, Any], protocols: Sequence[str]) -> list[TableRow]:
    """Returns a row for each source, with a cell for each protocol."""
    return [
        (
            Row("transfer", visible(spec), "", {}),
            [trained_cell(as_dict(numbers.get(name))) for name in protocols],
        )
        for spec, numbers in transfer(evaluation).items()
    ]
