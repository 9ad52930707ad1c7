import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.objectives.tiny import N_CLASSES, build, in_float64, make_batch
from tests.rounding import EXACT, float64_kept, rounding_bound
from vitrail.data.views.plan import RandomResizedCrop
from vitrail.objectives.supervised import Config

TINY = Config(views=RandomResizedCrop(size=16))


@float64_kept()
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("unlabelled", [0, 3])
def test_loss_is_smoothed_cross_entropy_over_the_labelled(
    smoothing: float, unlabelled: int
) -> None:
    objective = build(replace(TINY, label_smoothing=smoothing)).double()
    torch.nn.init.normal_(objective.network.head.weight)
    batch = in_float64(make_batch(objective.views(), 8))
    batch.label[:unlabelled] = -1
    out = objective(batch, 0)
    with torch.no_grad():
        pooled = objective.encoder(batch.views[0]).pooled
        logits = objective.network.head(pooled).numpy()
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    target = (1 - smoothing) * np.eye(N_CLASSES)[batch.label] + smoothing / N_CLASSES
    losses = -(target * log_p).sum(1)[unlabelled:]
    hits = (logits.argmax(1) == batch.label.numpy())[unlabelled:]
    assert math.isclose(out["loss"].item(), losses.mean(), rel_tol=EXACT["rtol"])
    # Two whole numbers, divided in float32.
    assert math.isclose(out["accuracy"].item(), hits.mean(), rel_tol=rounding_bound(1))
    torch.testing.assert_close(out["features"], pooled, **EXACT)


def test_no_label_at_all_is_no_loss() -> None:
    objective = build(TINY)
    batch = make_batch(objective.views(), 4)
    batch.label.fill_(-1)
    assert objective(batch, 0)["loss"] == 0


@float64_kept()
def test_chance_is_the_loss_of_equal_logits() -> None:
    objective = build(TINY).double()
    torch.nn.init.zeros_(objective.network.head.weight)
    loss = objective(in_float64(make_batch(objective.views(), 8)), 0)["loss"].item()
    assert math.isclose(loss, objective.chance_loss, rel_tol=EXACT["rtol"])


def test_smoothing_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="label_smoothing is 1"):
        Config(label_smoothing=1.0)
