"""The facts of an evaluation's test images: which of them took part in training, and with what."""

from typing import Any

import numpy as np

from vitrail.data.contract import Source
from vitrail.data.sources.registry import open_source, resolve_spec
from vitrail.encoder import Encoder
from vitrail.evals.contract import Split
from vitrail.evals.seen.identical import digests_of, names_of, occurs_in
from vitrail.evals.seen.training import Stage, stages
from vitrail.evals.seen.words import WITH


def facts_of_exposure(
    encoder: Encoder, train: Split, test: Split, held_out: bool, workers: int = 0
) -> dict[str, Any]:
    """Returns the facts of evaluation.json on test images that are no test.

    Args:
        encoder: that is measured.
        train: the training split, of which classifiers are made.
        test: the test split.
        held_out: the test images are a part of the source's training split.
        workers: processes that decode images of the encoder's other sources.

    Returns:
        "seen_in_training": "with" (a key of WITH), "data" (SPEC), "images" (how many test images;
        a lower bound if "compared", the number of training images compared with them, is below
        "of"); left out if none is known to be. "identical": "images", the number of test images
        that are among the training split too, and "examples"; left out if there are none.
    """
    found: dict[str, Any] = {}
    seen = _seen(encoder, test, held_out, workers)
    if seen is not None:
        found["seen_in_training"] = seen
    if train.digests is not None and test.digests is not None:
        same = np.flatnonzero(occurs_in(test.digests, train.digests))
        if len(same):
            examples = names_of(test.source, test.index[same].tolist())
            found["identical"] = {"images": len(same), "examples": examples}
    return found


def _seen(encoder: Encoder, test: Split, held_out: bool, workers: int) -> dict[str, Any] | None:
    known = stages(encoder.info)
    order = list(WITH)  # what tells most comes first
    for stage in sorted(dict.fromkeys(known), key=lambda stage: order.index(stage.used)):
        same = _same_data(stage, test.source.spec, encoder.channels)
        if same and held_out:
            return {"with": stage.used, "data": stage.data, "images": len(test.index)}
        if same or stage.used == "images" or test.digests is None:
            continue  # a test split of its own; its identical images are counted
        if (found := _among(stage, test, encoder.channels, workers)) is not None:
            return found
    return None


def _same_data(stage: Stage, spec: str, channels: int) -> bool:
    if resolve_spec(stage.data) == resolve_spec(spec):
        return True
    if stage.data.partition(":")[0] != spec.partition(":")[0]:
        return False
    sources = [_opened(name, channels) for name in (stage.data, spec)]
    prints = {None if source is None else source.fingerprint() for source in sources}
    return len(prints) == 1 and None not in prints


def _among(stage: Stage, test: Split, channels: int, workers: int) -> dict[str, Any] | None:
    """Returns how many test images are among those that a stage was trained on, if any is."""
    source = _opened(stage.data, channels)
    if source is None or test.digests is None:
        return None
    digests = digests_of(source, workers)
    count = int(occurs_in(test.digests, digests).sum())
    if not count:
        return None
    facts = {"with": stage.used, "data": stage.data, "images": count}
    return facts | {"compared": len(digests), "of": len(source)}


def _opened(spec: str, channels: int) -> Source | None:
    """Returns the training split of a source; None if it is not on this machine any more."""
    try:
        return open_source(spec, "train", channels=channels)
    except (ValueError, OSError):
        return None
