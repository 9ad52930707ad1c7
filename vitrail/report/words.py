"""What an encoder that learned from captions makes of words, beside what guessing gives."""

from collections.abc import Iterator
from typing import Any

from vitrail.evals.retrieval.caption_recall import KS
from vitrail.report.rows import Row


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
