"""The numbers of evaluation.json as rows of tables, in plain words."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from vitrail.evals.registry import PROTOCOLS
from vitrail.evals.retrieval.caption_recall import KS

KINDS = ("raw", "untrained", "trained")
ELSEWHERE = ("zeroshot", "retrieval", "xray")  # shown by words, and by a figure
OF_K = ("knn", "knn_majority")
THE_SAME = "The same."
MAX_NUMBERS = 40  # of a protocol that is only listed


class Measure(NamedTuple):
    title: str
    meaning: str


# What evaluation.json may hold, in the page's order. Protocols that are not here follow, with
# their help as the meaning.
MEASURES: dict[str, Measure] = {
    "knn": Measure(
        "k-nearest neighbours",
        "Each test image is given the class that its {k} most similar training images vote for. "
        "Nothing is trained: images of one class simply have to lie together.",
    ),
    "knn_majority": Measure(
        "k-nearest neighbours, one vote each",
        "The same, with every one of the {k} neighbours' votes counting alike.",
    ),
    "linear_10_per_class": Measure(
        "Linear, 10 labels per class",
        "A linear classifier that sees only 10 labelled images of each class; the mean and the "
        "standard deviation over {draws} random choices of these.",
    ),
    "linear_1_percent": Measure(
        "Linear, 1 % of the labels",
        "A linear classifier that sees the labels of one training image in a hundred; the mean and "
        "the standard deviation over 3 fixed choices of these.",
    ),
    "linear_10_percent": Measure(
        "Linear, 10 % of the labels",
        "The same with one image in ten.",
    ),
    "linear": Measure(
        "Linear, all labels", "A linear classifier that sees the label of every training image."
    ),
    "linear_sweep": Measure(
        "Linear, best features",
        "The same, looking at whichever of several features of the encoder predicts a held-out "
        "part of the training images best.",
    ),
    "finetune_1_percent": Measure(
        "Fine-tuned, 1 % of the labels",
        "The whole encoder is trained on, with one label in a hundred; the mean and the standard "
        "deviation over 3 fixed choices of these.",
    ),
    "finetune_10_percent": Measure(
        "Fine-tuned, 10 % of the labels", "The same with one label in ten."
    ),
    "finetune": Measure(
        "Fine-tuned, all labels",
        "The whole encoder is trained on with all labels. Untrained: it has only these.",
    ),
}


class Cell(NamedTuple):
    """colour: of the bar, which is width percent wide, or None for no bar; small: a line below."""

    main: str
    deviation: str = ""
    width: float = 0.0
    colour: str | None = None
    small: str = ""
    best: bool = False


class Row(NamedTuple):
    """name: of the protocol. k: of k-NN, where several rows differ in it."""

    name: str
    title: str
    meaning: str
    numbers: dict[str, Any]
    k: int | None = None
    warning: str = ""


class Listed(NamedTuple):
    """A protocol of which nothing is known but its help."""

    name: str
    title: str
    help: str
    numbers: list[tuple[str, str]]


def accuracy_rows(evaluation: dict[str, Any], *, name_k: bool = False) -> list[Row]:
    """A row for each protocol that gave accuracies, and for each k of k-NN.

    Args:
        name_k: whether a row says its k where it is the only one, too.
    """
    known = [name for name, protocol in PROTOCOLS.items() if protocol.labels]
    order = [*MEASURES, *(name for name in known if name not in MEASURES)]
    found = [name for name in order if isinstance(evaluation.get(name), dict)]
    return [row for name in found for row in _rows(name, evaluation, name_k)]


def _rows(name: str, evaluation: dict[str, Any], name_k: bool) -> list[Row]:
    settings, numbers = as_dict(evaluation.get("settings")), evaluation[name]
    words = {"k": 20, "draws": 10} | settings
    title, meaning = describe(name)
    if name in MEASURES:
        meaning = meaning.format(**words)
    chosen = as_dict(numbers.get("chosen"))
    if chosen:
        meaning += f" Chosen: {'; '.join(f'{kind}: {what}' for kind, what in chosen.items())}."
    by_k = as_dict(numbers.get("by_k"))
    if name_k and name in OF_K and not by_k:
        by_k = {str(settings.get("k")): numbers}
    ks = sorted((int(k), as_dict(found)) for k, found in by_k.items() if k.isdecimal())
    if not ks:
        return [Row(name, title, meaning, numbers)]
    rows: list[Row] = []
    for k, found in ks:
        text = THE_SAME if rows else describe(name).meaning.format(**(words | {"k": k}))
        rows.append(Row(name, f"{title}, k = {k}", text, found, k))
    return rows


def describe(name: str) -> Measure:
    """Title and meaning of a protocol; of one without an entry above, its help."""
    if name in MEASURES:
        return MEASURES[name]
    title = name.replace("_", " ")
    help_ = PROTOCOLS[name].help.removeprefix("if named: ") if name in PROTOCOLS else ""
    return Measure(title[:1].upper() + title[1:], help_[:1].upper() + help_[1:])


def kind_cells(row: Row, kinds: Sequence[str] = KINDS) -> list[Cell]:
    """A cell for each kind of features; the trained one's stands out."""
    cells = []
    for kind in kinds:
        main, deviation, width = percent(row.numbers.get(kind))
        cells.append(Cell(main, deviation, width, kind, best=kind == "trained"))
    return cells


def trained_cell(numbers: dict[str, Any], below: str = "untrained") -> Cell:
    """The trained encoder's, with another value in small below it."""
    main, deviation, width = percent(numbers.get("trained"))
    other = percent(numbers.get(below))[0]
    return Cell(main, deviation, width, "trained", "" if other == "–" else f"{below} {other}")


def transfer(evaluation: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Results by source, its first one included; {} where there is only one."""
    others = {
        spec: numbers
        for spec, numbers in as_dict(evaluation.get("transfer")).items()
        if isinstance(numbers, dict)
    }
    return {str(evaluation.get("data", "")): evaluation} | others if others else {}


def transfer_protocols(evaluation: dict[str, Any]) -> list[str]:
    """Those that any source has accuracies of."""
    rows = [row for numbers in transfer(evaluation).values() for row in accuracy_rows(numbers)]
    found = {row.name for row in rows}
    return [name for name in dict.fromkeys((*MEASURES, *PROTOCOLS)) if name in found]


def listed(evaluation: dict[str, Any]) -> list[Listed]:
    """Protocols whose numbers are no accuracies and have no other place on the page."""
    names = [name for name, p in PROTOCOLS.items() if not p.labels and name not in ELSEWHERE]
    found = []
    for name in names:
        numbers = _scalars(as_dict(evaluation.get(name)))
        if numbers:
            found.append(Listed(name, *describe(name), numbers[:MAX_NUMBERS]))
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
    """(percent, ± deviation or nothing, width of its bar in percent)."""
    mean, std = (value.get("mean"), value.get("std")) if isinstance(value, dict) else (value, None)
    if not isinstance(mean, (int, float)) or not math.isfinite(mean):
        return "–", "", 0.0
    deviation = f"± {100 * std:.1f}" if isinstance(std, (int, float)) else ""
    return f"{100 * mean:.1f}", deviation, min(100.0, max(0.0, 100.0 * mean))


def as_dict(value: Any) -> dict[str, Any]:
    """A damaged file may hold anything."""
    return value if isinstance(value, dict) else {}


def word_rows(evaluation: dict[str, Any]) -> list[Row]:
    """The rows that `zeroshot` and `retrieval` of evaluation.json give, if they are there: numbers
    are fractions by "trained" and "chance", or whatever else a damaged file holds."""
    return [*_zeroshot(evaluation.get("zeroshot")), *_retrieval(evaluation.get("retrieval"))]


def _zeroshot(numbers: Any) -> Iterator[Row]:
    if not isinstance(numbers, dict):
        return
    templates = numbers.get("templates")
    prompts = ", ".join(f"“{t}”" for t in templates) if isinstance(templates, list) else "its name"
    yield Row(
        "zeroshot",
        "Class from its name, no label seen",
        f"Each test image is given the class whose name, written as {prompts}, is most similar "
        f"to it. Always naming the most frequent class: {_percent(numbers.get('majority'))}.",
        {"trained": numbers.get("accuracy"), "chance": numbers.get("chance")},
    )


def _retrieval(numbers: Any) -> Iterator[Row]:
    ways = {
        "image_to_text": ("Caption of an image", "captions"),
        "text_to_image": ("Image of a caption", "images"),
    }
    for way, (title, candidates) in ways.items():
        found = numbers.get(way) if isinstance(numbers, dict) else None
        if not isinstance(found, dict):
            continue
        for k in KS:
            among = "the most similar" if k == 1 else f"among the {k} most similar"
            yield Row(
                "retrieval",
                f"{title}, @{k}",
                f"How often it is {among} of {found.get('candidates', 'all')} {candidates}.",
                {"trained": found.get(f"recall@{k}"), "chance": found.get(f"chance@{k}")},
            )


def _percent(value: Any) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, (int, float)) else "unknown"
