"""Draws of a slice are those of the whole."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vitrail.nn.random import Draws, philox, philox_rows


@given(st.integers(0, 40), st.integers(0, 12), st.integers(1, 9), st.integers(0, 5))
def test_rows_are_those_of_the_whole_table(first, count, width, step):
    whole = philox(3, "views", step).random((64, width))
    rows = philox_rows(3, "views", step, first, count, width)
    np.testing.assert_array_equal(rows, whole[first : first + count])


def test_a_narrow_slice_draws_no_more_than_it_needs(monkeypatch):
    drawn = []
    original = np.random.Generator

    class Counting(original):
        def random(self, size):
            drawn.append(int(np.prod(size)))
            return super().random(size)

    monkeypatch.setattr(np.random, "Generator", Counting)
    of_all = Draws(0, 1, 4096, 0, 4096).uniform("views", 7, views=2)
    few = Draws(0, 1, 4096, 4000, 3).uniform("views", 7, views=2)
    assert drawn[1] <= 3 * 7 * 2 + 4
    assert (few.view(2, 3, 7) == of_all.view(2, 4096, 7)[:, 4000:4003]).all()
