"""One self-contained page about a run: no network, no script, nothing that was not measured."""

import base64
import json
from datetime import UTC, datetime
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined

from vitrail.data.digits import CANVAS, SIDES
from vitrail.durable import write_atomically
from vitrail.report.curves import health_curves, training_curves
from vitrail.report.files import RunFiles, read_run
from vitrail.report.words import word_rows

MAX_LISTED = 100  # quarantined files named on the page
MAX_WARNINGS = 20


class Measure(NamedTuple):
    title: str
    meaning: str


# What evaluation.json may hold, in the page's order, in plain words.
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
    "linear": Measure(
        "Linear, all labels", "A linear classifier that sees the label of every training image."
    ),
}

# How the data came to be, where a name does not tell.
DATA_NOTES: dict[str, str] = {
    "digits:scattered": "scikit-learn's 1,797 handwritten digits (8 × 8 pixels), each enlarged to "
    f"between {SIDES[0]} and {SIDES[1]} pixels a side and put at a random place on a black "
    f"{CANVAS} × {CANVAS} canvas. Size and place are drawn once, from the image's index alone, in "
    "training and test images alike: at their original size and centred, raw pixels would already "
    "tell the digits apart.",
    "digits": "scikit-learn's 1,797 handwritten digits, 8 × 8 pixels, as they come.",
    "emoji": "Noto Color Emoji, drawn at 64 × 64 pixels on white, each with its Unicode name as "
    "caption and its group as label. Skin tones are left out; variants of one emoji (man, "
    "woman, person) are all for training or all for testing.",
    "fashion-mnist": "Fashion-MNIST: 60,000 training and 10,000 test photographs of clothes in "
    "ten classes, grey, 28 × 28 pixels.",
}


class Words(NamedTuple):
    """kind: of picture, for those who cannot see it."""

    title: str
    kind: str
    meaning: str


PICTURE_WORDS: dict[str, Words] = {
    "reconstruction": Words(
        "What it fills in",
        "a grid of training images",
        "A training image as the method is given it, the patches that are left visible, what is "
        "predicted from these alone, and the prediction with the visible patches in it. Only the "
        "hidden patches are trained; where they are predicted after normalisation (norm_pix), "
        "each is drawn with the brightness and contrast of the true one.",
    ),
    "neighbours": Words(
        "Nearest neighbours",
        "a grid of images",
        "On the left of each row a test image, then the training images whose features are most "
        "similar, with the cosine similarity (1 is the same direction). Where labels are known, ✓ "
        "and green mark the same class, ✗ and red another.",
    ),
    "retrieval": Words(
        "What captions find",
        "a grid of test images",
        "On the left of each row the image that a caption was written for, then the images most "
        "similar to the caption, with the cosine similarity. ✓ and green mark its own.",
    ),
    "saliency": Words(
        "Where it looks",
        "a grid of test images",
        "How much each patch of the image gives to the image's feature in the last layer: on "
        "average over the attention heads, as the fewest patches that hold 60 % of the average, "
        "and for each head. Brighter is more.",
    ),
    "pca": Words(
        "What it tells apart",
        "a grid of test images",
        "Principal components of the features of all patches in these images. The first "
        "separates the foreground; the next three are drawn in it as red, green and blue: patches "
        "of like colour have like features.",
    ),
    "xray": Words(
        "Layer by layer",
        "curves over the layers, 0 being the embedding",
        "What the layers do to the tokens of an image, before and after training. Where the coding "
        "rate falls, tokens grow alike; where the encoder's attention works within subspaces, a "
        "stroke of the compression term that falls is a layer whose attention compresses, as CRATE "
        "is designed to. Shades are the standard deviation over images.",
    ),
}


def build_report(run: str | Path) -> Path:
    """Writes RUN/report.html from the files of the run, finished or not, and returns its path.

    Raises:
        ValueError: no such folder, or one without a run.
    """
    run = Path(run)
    page = render(read_run(run))
    write_atomically(run / "report.html", page)
    return run / "report.html"


def render(files: RunFiles) -> str:
    """The page. Everything that comes from the run is escaped."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = percent
    template = package_files("vitrail.report").joinpath("page.html").read_text(encoding="utf-8")
    page = environment.from_string(template).render(**_context(files))
    # A lone surrogate (an undecodable byte of a file name) cannot be written as UTF-8.
    return page.encode("utf-8", "replace").decode("utf-8")


def _context(files: RunFiles) -> dict[str, Any]:
    warnings = [str(row["warning"]) for row in files.rows if row.get("warning")]
    data = str(files.evaluation.get("data") or files.config.get("data") or "")
    return {
        "name": files.name,
        "recipe": files.config.get("name"),
        "facts": _facts(files),
        "command": files.config.get("command"),
        "config": _flat(files.config),
        "state": _state(files),
        "remarks": files.remarks,
        "table": _table(files.evaluation),
        "kinds": ("raw", "untrained", "trained"),
        "words": word_rows(files.evaluation),
        "evaluation": files.evaluation,
        "data_note": DATA_NOTES.get(data) or DATA_NOTES.get(data.partition(":")[0]),
        "pictures": [
            (name, *PICTURE_WORDS[name], base64.b64encode(png).decode("ascii"))
            for name, png in files.pictures.items()
        ],
        "curves": training_curves(files.rows),
        "health": health_curves(files.rows),
        "rank": _rank(files),
        "warnings": warnings[:MAX_WARNINGS],
        "more_warnings": max(0, len(warnings) - MAX_WARNINGS),
        "bad": [(visible(id), visible(reason)) for id, reason in files.bad[:MAX_LISTED]],
        "n_bad": len(files.bad),
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _facts(files: RunFiles) -> list[tuple[str, str]]:
    config, description, evaluation = files.config, files.description, files.evaluation
    objective = config.get("objective", description.get("objective"))
    optim = config.get("optim")
    steps = files.rows[-1].get("step") if files.rows else None
    speeds = sorted(r["images_per_s"] for r in files.rows if _positive(r.get("images_per_s")))
    facts = {
        "Recipe": config.get("name"),
        "Data": config.get("data", description.get("data")),
        "Objective": objective.get("kind") if isinstance(objective, dict) else objective,
        "Backbone": config.get("backbone", description.get("backbone")),
        "Optimizer": optim.get("name") if isinstance(optim, dict) else None,
        "Batch": config.get("batch_size"),
        "Epochs": None if config.get("steps") else config.get("epochs"),
        "Steps taken": steps + 1 if isinstance(steps, int) else None,
        "Seed": config.get("seed", description.get("seed")),
        "Speed": f"{speeds[len(speeds) // 2]:,.0f} images/s (median)" if speeds else None,
        "Machine": evaluation.get("hardware"),
        "vitrail": config.get("version", description.get("vitrail")),
        "Commit": str(config["commit"])[:12] if config.get("commit") else None,
    }
    return [
        (name, f"{value:g}" if isinstance(value, float) else str(value))
        for name, value in facts.items()
        if value is not None
    ]


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and value > 0


def _state(files: RunFiles) -> str | None:
    """A sentence where the run is not simply done."""
    rows = files.rows
    last = rows[-1] if rows else {}
    if rows and any(last.get(name, 0.0) is None or last.get(name) != last.get(name)
                    for name in ("loss", "grad_norm")):  # fmt: skip
        return (
            f"This run stopped at step {last.get('step')}: its loss was no longer a finite number. "
            "Try a lower learning rate or a longer warm-up."
        )
    total, step = files.description.get("steps"), last.get("step")
    if isinstance(total, int) and isinstance(step, int) and step + 1 < total:
        done = f"{step + 1} of {total} steps are taken"
        return f"This run is not finished: {done}. Go on with it by `vitrail resume`."
    if not rows:
        return "Nothing was logged yet."
    if not files.description:
        return "This run is not finished: it has no encoder yet. Go on by `vitrail resume`."
    return None


def _table(evaluation: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    settings = evaluation.get("settings")
    words = {"k": 20, "draws": 10} | (settings if isinstance(settings, dict) else {})
    return [
        (measure.title, measure.meaning.format(**words), evaluation[name])
        for name, measure in MEASURES.items()
        if isinstance(evaluation.get(name), dict)
    ]


def _rank(files: RunFiles) -> str | None:
    numbers = files.evaluation.get("features")
    if not isinstance(numbers, dict) or "effective_rank" not in numbers:
        return None
    text = f"{numbers['effective_rank']} of {numbers.get('dimensions', '?')} dimensions"
    before = numbers.get("effective_rank_untrained")
    return text if before is None else f"{text} (untrained: {before})"


def percent(value: Any) -> tuple[str, str, float]:
    """(percent, ± deviation or nothing, width of its bar in percent)."""
    mean, std = (value.get("mean"), value.get("std")) if isinstance(value, dict) else (value, None)
    if not isinstance(mean, (int, float)):
        return "–", "", 0.0
    deviation = f"± {100 * std:.1f}" if isinstance(std, (int, float)) else ""
    return f"{100 * mean:.1f}", deviation, min(100.0, max(0.0, 100.0 * mean))


def visible(text: str, limit: int = 300) -> str:
    """A name on one line: what does not print is shown by its escape."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= limit else f"{shown[:limit]}…"


def _flat(config: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in config.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            rows.append((visible(f"{prefix}{key}"), visible(text)))
    return rows
