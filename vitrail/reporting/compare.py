"""The comparison of several runs: their differences, and which of their numbers are comparable."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vitrail.evals.registry import PROTOCOLS
from vitrail.evals.settings import depends, flatten, is_known, make_settings, to_json
from vitrail.reporting.commands import evaluate_again, report_again, train_again
from vitrail.reporting.curves import health_overlays, set_apart, training_overlays
from vitrail.reporting.exposure import exposure
from vitrail.reporting.facts import facts, flat, state
from vitrail.reporting.pictures import Picture, Words, picture_words, pictures
from vitrail.reporting.rows import (
    THE_SAME,
    Cell,
    Row,
    accuracy_rows,
    as_dict,
    percent,
    trained_cell,
    transfer,
    word_rows,
)
from vitrail.reporting.run_files import WHILE_TRAINING, RunFiles, read_run

COUNTS = {"n_train": "training images", "n_test": "test images", "held_out": "the split"}
RANK = "RankMe"


class Matrix(NamedTuple):
    """A table of results on one source of data, with a column for each run.

    Attributes:
        data: SPEC of the source.
        rows: title and cells of each row.
        again: command for each run that measures the numbers again.
    """

    data: str
    rows: list[tuple[Row, list[Cell]]]
    again: list[str]


class Gallery(NamedTuple):
    """The pictures of one kind, side by side.

    Attributes:
        name: name of the picture.
        words: its heading and explanation.
        warning: settings, beside the encoder, in which the pictures differ; empty if none.
        shown: (run, its picture or None).
        again: commands that make the pictures again.
    """

    name: str
    words: Words
    warning: str
    shown: list[tuple[str, Picture | None]]
    again: list[str]


def read_runs(paths: Sequence[Path]) -> list[RunFiles]:
    """Reads the files of several runs and gives each a unique label.

    Raises:
        ValueError: a run that does not exist, or the same run twice.
    """
    resolved = [path.resolve() for path in paths]
    for path in resolved:
        if resolved.count(path) > 1:
            raise ValueError(f"{path} is named more than once; name each run once")
    runs = [read_run(path) for path in paths]
    for files, path in zip(runs, resolved, strict=True):
        files.label = _label(path, resolved)
    return runs


def _label(path: Path, others: Sequence[Path]) -> str:
    """Returns the shortest end of a path that is unique among the others."""
    for length in range(1, len(path.parts) + 1):
        end = path.parts[-length:]
        if sum(other.parts[-length:] == end for other in others) == 1:
            return str(Path(*end))
    return str(path)


def comparison(runs: Sequence[RunFiles], out: Path) -> dict[str, Any]:
    """Returns the context of the template for several runs."""
    galleries = _galleries(runs)  # first, as it adds a remark for each picture left out
    return {
        "names": [files.label for files in runs],
        "remarks": _remarks(runs),
        "differing": _differing([dict(facts(files)) for files in runs]),
        "same": _same([dict(facts(files)) for files in runs]),
        "settings": _differing([dict(flat(files.config)) for files in runs], leave=("command",)),
        "matrices": _matrices(runs),
        "unevaluated": [files.label for files in runs if not files.evaluation],
        "drawings": training_overlays(runs),
        "health": health_overlays(runs),
        "apart": set_apart(runs),
        "galleries": galleries,
        "counted": _counted(runs),
        "trained_by": [again for files in runs if (again := train_again(files))],
        "again": report_again(runs, out.name),
    }


def _remarks(runs: Sequence[RunFiles]) -> list[str]:
    """Returns the remarks on each run, and one on evaluations with different settings."""
    remarks = []
    for files in runs:
        sentences = [state(files), *files.remarks, *exposure(files)]
        remarks += [f"{files.label}: {sentence}" for sentence in sentences if sentence]
    evaluated = [files for files in runs if files.evaluation]
    unlike = _unlike([{"data": f.evaluation.get("data")} | _settings(f) for f in evaluated])
    rows = (*PROTOCOLS, "features")
    unlike = {
        name: values
        for name, values in unlike.items()
        if name == "data" or any(_touches(name, row) for row in rows)
    }
    if unlike:
        text = "; ".join(
            f"{name} ({', '.join(_pairs(evaluated, values))})" for name, values in unlike.items()
        )
        remarks.append(
            f"These runs were not evaluated alike: {text}. Numbers are not comparable where this "
            "changes what is measured; tables are by data, and rows say what else differs."
        )
    return remarks


def _pairs(runs: Sequence[RunFiles], values: Sequence[Any]) -> list[str]:
    return [
        f"{files.label}: {value if isinstance(value, str) else json.dumps(value)}"
        for files, value in zip(runs, values, strict=True)
    ]


def _settings(files: RunFiles) -> dict[str, Any]:
    """Returns settings as "GROUP.FIELD", with defaults for those that an older evaluation lacks."""
    known = as_dict(files.evaluation.get("settings"))
    return flatten(to_json(make_settings())) | flatten(known) if known else {}


def _unlike(tables: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Returns the values of each name for which they are not all the same."""
    names = dict.fromkeys(name for table in tables for name in table)
    columns = {name: [table.get(name) for table in tables] for name in names}
    return {name: column for name, column in columns.items() if _several(column)}


def _several(values: Iterable[Any]) -> bool:
    return len({json.dumps(value, sort_keys=True, default=str) for value in values}) > 1


def _differing(
    tables: Sequence[dict[str, str]], leave: Sequence[str] = ()
) -> list[tuple[str, list[Cell]]]:
    return [
        (name, [Cell(value if value is not None else "–") for value in column])
        for name, column in _unlike(tables).items()
        if name not in leave
    ]


def _same(tables: Sequence[dict[str, str]]) -> list[tuple[str, str]]:
    differs = _unlike(tables)
    return [(name, value) for name, value in tables[0].items() if name not in differs]


def _matrices(runs: Sequence[RunFiles]) -> list[Matrix]:
    """Returns a table for each source that any run was evaluated on."""
    results = [_by_source(files) for files in runs]
    sources = dict.fromkeys(spec for found in results for spec in found)
    return [m for spec in sources if (m := _matrix(spec, runs, results)).rows]


def _by_source(files: RunFiles) -> dict[str, dict[str, Any]]:
    if not files.evaluation:
        return {}
    return transfer(files.evaluation) or {
        str(files.evaluation.get("data", "unknown data")): files.evaluation
    }


def _matrix(
    spec: str, runs: Sequence[RunFiles], results: Sequence[dict[str, dict[str, Any]]]
) -> Matrix:
    numbers = [found.get(spec, {}) for found in results]
    tables = [
        {row.title: row for row in _rows(n | {"settings": files.evaluation.get("settings")})}
        for files, n in zip(runs, numbers, strict=True)
    ]
    rows: list[tuple[Row, list[Cell]]] = []
    for title in _titles(tables):
        found = [table.get(title) for table in tables]
        row = next(row for row in found if row is not None)
        here = [i for i, row in enumerate(found) if row is not None]
        warning = _warning(row.name, [runs[i] for i in here], [numbers[i] for i in here])
        more_k = row.k is not None and any(row.name == before.name for before, _ in rows)
        meaning = THE_SAME if more_k else row.meaning
        cells = [Cell("–") if row is None else _cell(row) for row in found]
        rows.append((row._replace(meaning=meaning, warning=warning), cells))
    again = [
        _measured_again(files, spec, [row.name for row in table.values()])
        for files, table in zip(runs, tables, strict=True)
        if table
    ]
    return Matrix(spec, rows, again)


def _measured_again(files: RunFiles, spec: str, names: Sequence[str]) -> str:
    """Returns the command that measures numbers again.

    A source other than the first is listed after it: alone, it would replace the first one's
    results.
    """
    first = str(files.evaluation.get("data"))
    sources = [] if spec == first else [first, spec]
    protocols = [name for name in PROTOCOLS if name in names]
    return evaluate_again(files, protocols or ["knn"], sources)


def _titles(tables: Sequence[dict[str, Row]]) -> list[str]:
    """Returns the titles of all tables, by the order of protocols, then by increasing k."""
    rows = {title: row for table in tables for title, row in table.items()}
    names = [*PROTOCOLS, "features"]
    return sorted(rows, key=lambda title: (names.index(rows[title].name), rows[title].k or 0))


def _rows(numbers: dict[str, Any]) -> list[Row]:
    """Returns a row for each result of a run on one source that is a single number."""
    rows = accuracy_rows(numbers, name_k=True)
    rows += word_rows(numbers)
    if isinstance(as_dict(numbers.get("features")).get("rankme"), (int, float)):
        text = (
            "How many directions the features of the test images make use of, out of as many as "
            "there are. Near 1, the encoder has collapsed."
        )
        rows.append(Row("features", RANK, text, numbers["features"]))
    return rows


def _cell(row: Row) -> Cell:
    if row.name != "features":
        return trained_cell(row.numbers, "chance" if "chance" in row.numbers else "untrained")
    rank, of = row.numbers["rankme"], row.numbers.get("dimensions")
    before = row.numbers.get("rankme_untrained")
    width = percent(rank / of)[2] if isinstance(of, (int, float)) and of else 0.0
    small = "" if before is None else f"untrained {before}"
    return Cell(str(rank), f"of {of}", width, "trained", small)


def _warning(name: str, runs: Sequence[RunFiles], numbers: Sequence[dict[str, Any]]) -> str:
    """Returns the reason why the numbers of a row are not comparable; empty if they are."""
    changed = [s for s in _unlike([_settings(files) for files in runs]) if _touches(s, name)]
    counts = _unlike([{key: n.get(key, False) for key in COUNTS} for n in numbers])
    unlike = [*changed, *(COUNTS[key] for key in counts)]
    return f"Not comparable: not the same {', '.join(unlike)}." if unlike else ""


def _touches(setting: str, name: str) -> bool:
    """Returns true if a setting affects a row, or may, as one of another version."""
    if name == "features":  # a rank depends on no other setting
        return setting == "seed"
    row = PROTOCOLS[name]
    if not is_known(setting):
        return True
    group, _, field = setting.partition(".")
    if field in row.by and group in row.configs:  # the row's title states it
        return False
    return depends(row, setting)


def _galleries(runs: Sequence[RunFiles]) -> list[Gallery]:
    galleries = []
    for name, found in pictures(runs).items():
        by_run = {picture.run: picture for picture in found}
        shown = [(files.label, by_run.get(files.label)) for files in runs]
        sights = [_sight(name, files) for files in runs if files.label in by_run]
        unlike = ", ".join(_unlike(sights))
        again = [picture.again for picture in found if picture.again]
        warning = f"These differ in more than the encoder: {unlike}." if unlike else ""
        galleries.append(Gallery(name, picture_words(name), warning, shown, again))
    return galleries


def _sight(name: str, files: RunFiles) -> dict[str, Any]:
    """Returns the settings, beside the encoder, that a picture depends on."""
    if name in WHILE_TRAINING:
        return {key: files.config.get(key) for key in ("data", "seed")}
    row = PROTOCOLS[name]
    assert row.figure is not None
    shared = row.figure.shared
    seen = {key: v for key, v in _settings(files).items() if depends(row, key, shared)}
    return {"data": files.evaluation.get("data")} | seen


def _counted(runs: Sequence[RunFiles]) -> list[tuple[str, list[Cell]]]:
    warnings = [Cell(str(sum(bool(row.get("warning")) for row in f.rows))) for f in runs]
    return [
        ("Warnings during training", warnings),
        ("Files left out", [Cell(str(len(files.bad))) for files in runs]),
    ]
