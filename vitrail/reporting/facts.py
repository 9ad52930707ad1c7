"""Facts about a run for its report: data, settings, machine and progress."""

import json
from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

from vitrail.config import printable
from vitrail.data.loading.wait_time import UNTYPICAL_STEPS
from vitrail.data.sources.datasets.digits import CANVAS, SIDES
from vitrail.reporting.run_files import RunFiles

# origin of the data, for sources whose name does not explain it
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


def data_note(files: RunFiles) -> str | None:
    """Returns a note on the origin of a run's data, if any."""
    data = str(files.evaluation.get("data") or files.config.get("data") or "")
    return DATA_NOTES.get(data) or DATA_NOTES.get(data.partition(":")[0])


def facts(files: RunFiles) -> list[tuple[str, str]]:
    """Returns (name, value) of each known fact about a run."""
    config, description, evaluation = files.config, files.description, files.evaluation
    objective = config.get("objective", description.get("objective"))
    optim = config.get("optim")
    steps = files.rows[-1].get("step") if files.rows else None
    speeds = sorted(r["images_per_s"] for r in files.rows if _positive(r.get("images_per_s")))
    found = {
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
        "Waiting for data": waiting(files.rows),
        "Left out": left_out(evaluation.get("bad")),
        "Machine": evaluation.get("hardware"),
        "vitrail": config.get("version", description.get("vitrail")),
        "Commit": str(config["commit"])[:12] if config.get("commit") else None,
    }
    return [
        (name, f"{value:g}" if isinstance(value, float) else str(value))
        for name, value in found.items()
        if value is not None
    ]


def waiting(rows: Sequence[dict[str, Any]]) -> str | None:
    """Returns the median share of a step spent waiting for data, and the usual bottleneck.

    The first steps of a run are left out, as they are not typical.
    """
    rows = rows[UNTYPICAL_STEPS:] or rows
    shares = [row["data_wait"] for row in rows if isinstance(row.get("data_wait"), (int, float))]
    if not shares:
        return None
    text = f"{median(shares):.0%} of a step (median)"
    limits = Counter(row["limited_by"] for row in rows if isinstance(row.get("limited_by"), str))
    often = limits.total() > len(rows) / 2
    return f"{text}, limited by {limits.most_common(1)[0][0]}" if often else text


def left_out(bad: Any) -> str | None:
    """Returns a text on the images of an evaluation that could not be read, if any."""
    if not isinstance(bad, dict) or not bad:
        return None
    each = ", ".join(f"{count} {split}" for split, count in bad.items())
    return f"{each} images that cannot be read, of the evaluation"


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and value > 0


def state(files: RunFiles) -> str | None:
    """Returns a sentence about a run that diverged or is not finished; None for a finished one."""
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


def rank(files: RunFiles) -> str | None:
    """Returns the effective rank of the features as text, if measured."""
    numbers = files.evaluation.get("features")
    if not isinstance(numbers, dict) or "effective_rank" not in numbers:
        return None
    text = f"{numbers['effective_rank']} of {numbers.get('dimensions', '?')} dimensions"
    before = numbers.get("effective_rank_untrained")
    return text if before is None else f"{text} (untrained: {before})"


def visible(text: str, limit: int = 300) -> str:
    """Returns a text on one line, cut to `limit` characters, with unprintable ones escaped."""
    shown = printable(text).replace("\n", "\\n")
    return shown if len(shown) <= limit else f"{shown[:limit]}…"


def sentences(value: Any) -> list[str]:
    """Returns the texts of a list in found.json, and nothing of a damaged one."""
    return [visible(str(line)) for line in value] if isinstance(value, list) else []


def flat(config: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Returns (dotted name, value) of each field of a nested configuration."""
    rows: list[tuple[str, str]] = []
    for key, value in config.items():
        if isinstance(value, dict):
            rows += flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            rows.append((visible(f"{prefix}{key}"), visible(text)))
    return rows
