"""Zero-shot classification: an image is assigned to the class with the most similar prompts.

Radford et al. 2021 (CLIP), section 3.1: each class is described by prompts, which are templates
with its name in the place of {}; its vector is the mean of theirs (3.1.4, prompt ensembling).

Departure: a class of several names, such as "Food & Drink" or ImageNet's "tench, Tinca tinca", has
the prompts of all its names.

Shape legend: N images · K classes · Z dimensions of the joint space.
"""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int64

from vitrail.evals.retrieval.caption_recall import require_finite
from vitrail.text_encoder import TextEncoder

Array = np.ndarray

TEMPLATES = ("{}",)  # the bare name: no template fits the captions of every source


def zeroshot(
    text: TextEncoder,
    images: Float32[Array, "N Z"],
    labels: Int64[Array, " N"],
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
) -> Float32[Array, "K Z"]:
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
