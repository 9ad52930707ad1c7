"""Schedules against their formulas, and their limits by property."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitrail.nn.schedules import Horizon, cosine, linear


def test_cosine_by_hand():
    assert cosine(0, 100, 1.0, 0.0, warmup=10) == 0.0
    assert cosine(5, 100, 1.0, 0.0, warmup=10) == 0.5
    assert cosine(10, 100, 1.0, 0.0, warmup=10) == 1.0
    assert cosine(55, 100, 1.0, 0.2, warmup=10) == pytest.approx(0.6)
    assert cosine(100, 100, 1.0, 0.2, warmup=10) == 0.2
    assert cosine(25, 100, 0.996, 1.0) == pytest.approx(1 - 0.002 * (1 + math.cos(math.pi / 4)))


@given(
    step=st.integers(0, 1000),
    steps=st.integers(1, 1000),
    start=st.floats(0, 1),
    end=st.floats(0, 1),
    warmup=st.integers(0, 1000),
)
def test_cosine_stays_between_its_ends(step, steps, start, end, warmup):
    value = cosine(step, steps, start, end, warmup=min(warmup, steps))
    assert min(0.0, start, end) - 1e-12 <= value <= max(start, end) + 1e-12


def test_linear_by_hand():
    assert [linear(s, 4, 0.04, 0.08) for s in (0, 2, 4, 9)] == pytest.approx(
        [0.04, 0.06, 0.08, 0.08]
    )
    assert linear(0, 0, 0.04, 0.07) == 0.07


def test_horizon_counts_steps_of_fractional_epochs():
    horizon = Horizon(steps=100, steps_per_epoch=2.5)
    assert horizon.steps_in(10) == 25
    assert horizon.steps_in(1000) == 100


@pytest.mark.parametrize("warmup", [0, 1, 2, 10])
def test_an_inclusive_warmup_is_the_published_codes(warmup):
    """DINO 7c446df, utils.cosine_scheduler: numpy.linspace, then a cosine over the steps left."""
    steps, start, end = 40, 0.7, 0.1
    left = np.arange(steps - warmup)
    falling = end + 0.5 * (start - end) * (1 + np.cos(np.pi * left / len(left)))
    expected = np.concatenate([np.linspace(0, start, warmup), falling])
    found = [cosine(s, steps, start, end, warmup, inclusive=True) for s in range(steps)]
    assert np.allclose(found, expected, rtol=0, atol=1e-12)
