"""Zero-shot classification: an image is assigned to the class with the most similar prompts.

Radford et al. 2021 (CLIP), section 3.1: each class is described by prompts, which are templates
with its name in the place of {}; its vector is the mean of theirs (3.1.4, prompt ensembling).

Departure: a class of several names, such as "Food & Drink" or ImageNet's "tench, Tinca tinca", has
the prompts of all its names.

Shape legend: N images · K classes · Z dimensions of the joint space.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from rich.table import Table

from vitrail.evals.contract import Context
from vitrail.evals.protocol import ResultRow
from vitrail.evals.retrieval.caption_recall import require_finite, require_text
from vitrail.text_encoder import TextEncoder

TEMPLATES = ("{}",)  # the bare name: no template fits the captions of every source


@dataclass(frozen=True)
class Zeroshot:
    """The settings of zero-shot classification.

    Attributes:
        templates: of the prompts that are made of a class's name, each with a {} for it.
    """

    templates: tuple[str, ...] = TEMPLATES


def zeroshot(
    text: TextEncoder,
    images: Float32[np.ndarray, "N Z"],
    labels: Int64[np.ndarray, " N"],
    classes: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
) -> dict[str, float]:
    """Measures the accuracy of choosing the class whose vector is most similar to the image's.

    Args:
        text: text encoder of the run.
        images: unit vectors of the images, as from `TextEncoder.place`, float32 [N, Z].
        labels: classes, int64 [N], in [0, K); images with -1 are left out.
        classes: names of the K classes.
        templates: at least one, each with a {} for the name.

    Returns:
        fractions in [0, 1]: "accuracy", "mean_per_class" over the classes that occur, and two
        baselines: "chance" (1 / K) and "majority" (always the most frequent class).

    Raises:
        ValueError: templates that hold no {}, fewer than two classes, or no labelled image.
    """
    labelled = labels >= 0
    if len(classes) < 2 or not labelled.any():
        raise ValueError(
            f"zeroshot: {len(classes)} classes and {int(labelled.sum())} labelled images; it needs "
            "two classes or more, and at least one image with a label"
        )
    names = class_vectors(text, classes, templates)
    require_finite("zeroshot", images, names)
    truth = labels[labelled]
    right = (images[labelled] @ names.T).argmax(axis=1) == truth
    counts = np.bincount(truth, minlength=len(classes))
    hits = np.bincount(truth, weights=right, minlength=len(classes))
    return {
        "accuracy": float(right.mean()),
        "mean_per_class": float((hits[counts > 0] / counts[counts > 0]).mean()),
        "chance": 1 / len(classes),
        "majority": float(counts.max() / len(truth)),
    }


def class_vectors(
    text: TextEncoder, classes: Sequence[str], templates: Sequence[str]
) -> Float32[np.ndarray, "K Z"]:
    """Returns a unit vector for each class: the normalised mean of its prompts' unit vectors.

    Args:
        text: text encoder of the run.
        classes: names of the K classes.
        templates: at least one, each with a {} for the name.

    Raises:
        ValueError: no template, or one without {}.
    """
    wrong = [template for template in templates if "{}" not in template]
    if wrong or not templates:
        raise ValueError(
            f"zeroshot: templates are {list(templates)}; each needs a {{}} where the class's name "
            "goes, as in 'a photo of a {}'"
        )
    of_class = [[t.replace("{}", name) for name in _names(c) for t in templates] for c in classes]
    vectors = text.transform([prompt for prompts in of_class for prompt in prompts])
    ends = np.cumsum([len(prompts) for prompts in of_class])[:-1]
    means = np.stack([part.mean(axis=0) for part in np.split(vectors, ends)])
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)


def _names(name: str) -> list[str]:
    """Returns the names of a class, split at commas and &; underscores become spaces."""
    parts = [part.strip() for part in re.split(r",|&", name.replace("_", " "))]
    return [part for part in parts if part] or [name]


def name_classes(context: Context, config: Zeroshot) -> dict[str, Any]:
    """Measures zero-shot classification of the test images by the names of their classes."""
    text, test = require_text(context, "zeroshot"), context.test
    if test.source.classes is None:
        why = f" ({test.source.unlabelled})" if test.source.unlabelled else ""
        raise ValueError(
            f"zeroshot: {test.source.spec} has no labels{why}; name labelled data by --data"
        )
    images, templates = text.place(test.features["trained"]), config.templates
    numbers = zeroshot(text, images, test.labels, test.source.classes, templates)
    return numbers | {"templates": list(templates)}


def zeroshot_table(numbers: dict[str, Any]) -> Table:
    """Returns a table for the terminal, in percent."""
    table = Table(title="classes told by their names alone, %", title_justify="left")
    names = ("accuracy", "mean_per_class", "majority", "chance")
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_row(*(f"{100 * numbers[name]:.1f}" for name in names))
    return table


def zeroshot_rows(numbers: Any) -> Iterator[ResultRow]:
    """Returns the report's row; numbers may be of a damaged file."""
    if not isinstance(numbers, dict):
        return
    templates = numbers.get("templates")
    prompts = ", ".join(f"“{t}”" for t in templates) if isinstance(templates, list) else "its name"
    majority = numbers.get("majority")
    always = f"{100 * majority:.1f} %" if isinstance(majority, (int, float)) else "unknown"
    yield ResultRow(
        "Class from its name, no label seen",
        f"Each test image is given the class whose name, written as {prompts}, is most similar "
        f"to it. Always naming the most frequent class: {always}.",
        {"trained": numbers.get("accuracy"), "chance": numbers.get("chance")},
    )
