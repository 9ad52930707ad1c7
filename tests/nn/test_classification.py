"""Classification by given labels, beside the formula. Two ranks: tests/objectives."""

import numpy as np
import pytest
import torch

from tests.rounding import EXACT, float64_kept, rounding_bound
from vitrail.nn.classification import UNLABELLED, classify


@float64_kept()
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("missing", [(), (1, 4)])
def test_loss_and_accuracy_are_means_over_the_labelled(
    smoothing: float, missing: tuple[int, ...]
) -> None:
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(6, 4)), random.integers(0, 4, 6)
    labels[0] = logits[0].argmax()  # one at least is right
    labels[list(missing)] = UNLABELLED
    found = classify(torch.from_numpy(logits), torch.from_numpy(labels), smoothing)
    losses, hits = [], []
    for x, y in zip(logits, labels, strict=True):
        if y == UNLABELLED:
            continue
        log_p = x - np.log(np.exp(x).sum())
        losses.append(-(1 - smoothing) * log_p[y] - smoothing * log_p.mean())
        hits.append(x.argmax() == y)
    assert found.loss.item() == pytest.approx(np.mean(losses), rel=EXACT["rtol"])
    # Two whole numbers, divided in float32.
    assert found.accuracy.item() == pytest.approx(np.mean(hits), rel=rounding_bound(1))


def test_without_any_label_both_are_zero_and_so_is_the_gradient() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    found = classify(logits, torch.full((3,), UNLABELLED), 0.1)
    assert found == (0, 0)
    found.loss.backward()
    assert not logits.grad.any()


def test_it_is_float32_under_autocast() -> None:
    # In bf16 the two logits are one.
    logits, labels = torch.tensor([[8.0, 8.015625]]), torch.tensor([0])
    with torch.autocast("cpu", torch.bfloat16):
        loss = classify(logits, labels).loss
    assert loss.dtype == torch.float32
    # The logits less the larger are exact. Rounded are an exponential, a sum of two, its logarithm
    # and a difference, none above 2.
    expected = np.log1p(np.exp(0.015625))
    assert loss.item() == pytest.approx(expected, abs=rounding_bound(4, scale=2))
