"""The order of samples."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.data.sampling import SampleOrder


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 50), st.integers(1, 70), st.integers(0, 2**40))
def test_every_epoch_visits_everything_once(n, batch_size, seed):
    order = SampleOrder(n, batch_size, seed)
    steps = -(-3 * n // batch_size)
    stream = torch.cat([order.indices(step) for step in range(steps)])
    for epoch in range(3):
        visited = stream[epoch * n : (epoch + 1) * n]
        assert visited.sort().values.tolist() == list(range(n))


def test_order_is_a_function_of_the_step():
    order = SampleOrder(100, 32, 7)
    forward = [order.indices(step) for step in range(20)]
    for step in (19, 3, 11, 0):
        assert torch.equal(SampleOrder(100, 32, 7).indices(step), forward[step])
    assert not torch.equal(SampleOrder(100, 32, 8).indices(0), forward[0])
    epochs = torch.cat(forward)[:300].view(3, 100)
    assert not torch.equal(epochs[0], epochs[1])


def test_batch_size_does_not_change_the_stream():
    small, large = SampleOrder(100, 8, 0), SampleOrder(100, 24, 0)
    assert torch.equal(torch.cat([small.indices(s) for s in range(3)]), large.indices(0))
