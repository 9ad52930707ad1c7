"""Sentences on test images that took part in training."""

from collections.abc import Mapping, Sequence
from typing import Any

# what a training run takes from its data; what tells most comes first
WITH = {"labels": "with their labels", "captions": "with their captions", "images": "unlabelled"}


def exposure_lines(facts: Mapping[str, Any], spec: str) -> list[str]:
    """Returns sentences on what `facts_of_exposure` found; none where everything is a test.

    Args:
        facts: of evaluation.json, maybe damaged.
        spec: the data that were measured.
    """
    lines = []
    seen = facts.get("seen_in_training")
    if isinstance(seen, Mapping) and seen.get("with") in WITH:
        lines.append(_seen_line(seen, facts.get("n_test"), spec))
    identical = facts.get("identical")
    if isinstance(identical, Mapping):
        names = identical.get("examples")
        listed = ", ".join(map(str, names)) if isinstance(names, Sequence) else ""
        lines.append(
            f"{identical.get('images')} test images of {spec} are also among its training images, "
            f"pixel for pixel ({listed}): accuracy counts what was seen with its label"
        )
    return lines


def _seen_line(seen: Mapping[str, Any], n_test: Any, spec: str) -> str:
    count, compared, of = seen.get("images"), seen.get("compared"), seen.get("of")
    how = WITH[str(seen["with"])]
    which = f"the {count} test images" if count == n_test else f"{count} of {n_test} test images"
    bound = "at least " if isinstance(compared, int) and compared != of else ""
    if seen["with"] == "images":
        return (
            f"{spec} has no test split, and {bound}{which} were seen in training, {how}; labels "
            "were not"
        )
    return (
        f"{bound}{which} of {spec} are images that this encoder was trained on {how} (in "
        f"{seen.get('data')}): these numbers are not a test, and say nothing of new images; "
        "measure on data with a test split by --data"
    )


def is_no_test(facts: Mapping[str, Any]) -> bool:
    """Returns true if test images were seen in training with labels or captions."""
    seen = facts.get("seen_in_training")
    return isinstance(seen, Mapping) and seen.get("with") in ("labels", "captions")
