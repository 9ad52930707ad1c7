"""The choice of hidden patches, and the error of predictions for them."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from tests.rounding import EXACT, rounding_bound
from vitrail.nn.masking import count_visible, hidden_error, lowest_visible, patch_statistics
from vitrail.nn.random import Draws


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@given(n=st.integers(2, 60), ratio=st.floats(0.01, 0.99), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_every_image_hides_as_many_and_all_patches_have_one_place(
    n: int, ratio: float, seed: int
) -> None:
    scores = random(3, n, seed=seed)
    visible, restore, hidden = lowest_visible(scores, ratio)
    count = count_visible(n, ratio)
    assert visible.shape == (3, count)
    assert hidden.sum(1).tolist() == [n - count] * 3
    for i in range(3):
        assert not hidden[i, visible[i]].any()
        assert sorted(restore[i].tolist()) == list(range(n))
        if 0 < count < n:
            assert scores[i, ~hidden[i]].max() <= scores[i, hidden[i]].min()
        # (visible, hidden) shuffled back by `restore` is in the order of the grid.
        places = torch.cat([visible[i], (~torch.isin(torch.arange(n), visible[i])).nonzero()[:, 0]])
        assert torch.equal(places[restore[i]][~hidden[i]], torch.arange(n)[~hidden[i]])


def test_equal_scores_are_taken_in_the_order_of_the_grid() -> None:
    visible, _, hidden = lowest_visible(torch.zeros(1, 40), 0.75)
    assert visible[0].tolist() == list(range(10))
    assert hidden[0, 10:].all()


@pytest.mark.parametrize(("n", "ratio", "visible"), [(196, 0.75, 49), (64, 0.75, 16), (10, 0.6, 4)])
def test_published_numbers_of_visible_patches(n: int, ratio: float, visible: int) -> None:
    assert count_visible(n, ratio) == visible


def test_masks_are_uniform_over_patches() -> None:
    draws = Draws(seed=0, step=0, batch_size=4000, start=0, count=4000)
    hidden = lowest_visible(draws.uniform("mask", 16), 0.75).hidden
    # Standard deviation of a patch's share: sqrt(.75 · .25 / 4000) = 0.007.
    assert (hidden.float().mean(0) - 0.75).abs().max() < 0.03
    assert (lowest_visible(draws.uniform("mask", 16), 0.75).hidden == hidden).all()


def test_error_is_of_hidden_patches_only() -> None:
    predicted, target = random(2, 5, 4).double(), random(2, 5, 4, seed=1).double()
    hidden = random(2, 5) < 0.5
    total, count = 0.0, 0
    for i in range(2):
        for j in range(5):
            if hidden[i, j]:
                gap = (predicted[i, j] - target[i, j]).tolist()
                total += sum(x * x for x in gap) / 4
                count += 1
    found = hidden_error(predicted, target, hidden).item()
    assert found == pytest.approx(total / count, rel=EXACT["rtol"])
    disturbed = torch.where(hidden[..., None], predicted, predicted + 9)
    assert torch.equal(
        hidden_error(disturbed, target, hidden), hidden_error(predicted, target, hidden)
    )


def test_half_predictions_are_compared_in_float32() -> None:
    predicted, target, hidden = (
        random(2, 5, 4).bfloat16(),
        random(2, 5, 4, seed=1),
        random(2, 5) > 0,
    )
    loss = hidden_error(predicted, target, hidden)
    assert loss.dtype == torch.float32
    expected = (predicted.double() - target.double()).square().mean()
    # A sum of 40 squares, all positive; a difference, its square and two quotients.
    assert loss.item() == pytest.approx(expected.item(), rel=rounding_bound(40 + 4))


def test_statistics_are_the_unbiased_ones() -> None:
    patches = random(1, 3, 12).double()
    mean, std = patch_statistics(patches)
    for j in range(3):
        values = patches[0, j].tolist()
        centre = sum(values) / 12
        assert mean[0, j, 0].item() == pytest.approx(centre, rel=1e-12)
        variance = sum((x - centre) ** 2 for x in values) / 11
        assert std[0, j, 0].item() == pytest.approx((variance + 1e-6) ** 0.5, rel=1e-12)
    assert patch_statistics(torch.ones(1, 1, 4))[1].item() == pytest.approx(1e-3)
