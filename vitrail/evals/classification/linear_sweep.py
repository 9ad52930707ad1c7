"""The linear classifier of the best of several features, which held-out train rows choose."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vitrail.encoder import Encoder
from vitrail.evals.classification.knn import check_labels
from vitrail.evals.classification.linear import linear_predict
from vitrail.evals.classification.scores import score
from vitrail.evals.contract import Context
from vitrail.evals.features import LAST_BLOCKS, Embed, FeatureChoices, collect


@dataclass(frozen=True)
class LinearSweep:
    """The settings of the sweep.

    Attributes:
        last_blocks: blocks, from the last, whose class tokens may be chosen, at least 1.
    """

    last_blocks: int = LAST_BLOCKS

    def __post_init__(self) -> None:
        if self.last_blocks < 1:
            raise ValueError(f"last_blocks = {self.last_blocks}: it must be at least 1")


def linear_sweep(context: Context, config: LinearSweep) -> dict[str, Any]:
    """Measures accuracies by kind, with all labels; "chosen" names features and penalty by kind.

    Both splits are read once more. All choices lie in one float32 table, with (1 + last_blocks) D
    columns for each kind of encoder.
    """
    train, test = context.train, context.test
    check_labels(test.labels, "test")
    encoders = {"untrained": context.encoder.untrained(), "trained": context.encoder}
    result: dict[str, Any] = {}
    chosen = {}
    for kind in train.features:
        if kind in encoders:
            columns, train_rows, test_rows = _choices(context, encoders[kind], config.last_blocks)
        else:
            columns = {"pixels": slice(None)}
            train_rows, test_rows = train.features[kind], test.features[kind]
        found = linear_predict(
            train_rows,
            train.labels,
            test_rows,
            choices=columns,
            seed=context.seed,
            device=context.device,
        )
        result[kind] = score(found.predicted, test.labels, context.metric)
        chosen[kind] = f"{found.choice}, {found.setting}"
    return result | {"chosen": chosen}


def _choices(
    context: Context, encoder: Encoder, last_blocks: int
) -> tuple[dict[str, slice], np.ndarray, np.ndarray]:
    """Returns the columns of each choice, and the tables of train and test images."""
    choices = FeatureChoices(encoder, last_blocks)
    embeds: dict[str, Embed] = {"all": choices.embed}
    train, test = (
        collect(encoder.preprocess, embeds, split.source, split.quarantine, workers=context.workers)
        for split in (context.train, context.test)
    )
    return choices.columns, train[0]["all"], test[0]["all"]
