"""The order of samples."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.data.loading.order import BlockOrder, GroupOrder, SampleOrder, default_order, epoch_at
from vitrail.data.sources.memory import MemorySource
from vitrail.data.subset import Subset


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


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 70))
def test_epochs_that_do_not_overlap_tile_the_steps(length, batch_size):
    step, before = 0, -1
    while step < 40:
        epoch, steps = epoch_at(step, length, batch_size)
        assert steps.start == step
        assert len(steps) >= 1
        assert epoch > before
        for inside in steps:
            assert epoch_at(inside, length, batch_size) == (epoch, steps)
            assert epoch == inside * batch_size // length
        step, before = steps.stop, epoch


def group_order(groups, epoch=0, seed=0, batch_size=10, steps=range(5, 11)) -> GroupOrder:
    return GroupOrder(torch.tensor(groups), batch_size, seed, epoch, steps)


def stream_of(order: GroupOrder, steps=range(5, 11)) -> torch.Tensor:
    return torch.cat([order.indices(step) for step in steps])


def test_every_group_is_drawn_equally_often():
    groups = [0] * 40 + [3] * 2 + [-1] * 5 + [7] * 13
    stream = stream_of(group_order(groups))
    drawn = torch.tensor(groups)[stream]
    assert torch.unique(drawn, return_counts=True)[1].tolist() == [20, 20, 20]
    assert drawn.unique().tolist() == [0, 3, 7]
    large = stream[drawn == 0]
    assert len(large.unique()) == 20, "without replacement where there are enough"
    assert set(stream[drawn == 3].tolist()) == {40, 41}
    assert not torch.equal(drawn, drawn.sort().values)


def test_no_group_is_drawn_much_more_often_where_the_epoch_does_not_divide():
    drawn = torch.tensor([0, 1, 1, 2, 2, 2, 3])
    counts = torch.bincount(drawn[stream_of(group_order(drawn.tolist(), steps=range(3)), range(3))])
    assert counts.sum() == 30
    assert counts.max() <= 8
    assert counts.min() >= 5


def test_group_order_is_a_function_of_seed_epoch_and_groups():
    groups = [i % 3 for i in range(50)]
    first = stream_of(group_order(groups))
    assert torch.equal(stream_of(group_order(groups)), first)
    assert torch.equal(group_order(groups).indices(8), first[30:40])
    assert not torch.equal(stream_of(group_order(groups, epoch=1)), first)
    assert not torch.equal(stream_of(group_order(groups, seed=1)), first)
    assert not torch.equal(stream_of(group_order([i % 2 for i in range(50)])), first)


def test_nothing_in_a_group_is_said():
    with pytest.raises(ValueError, match="no sample is in a group"):
        group_order([-1, -1])


def block_ranges(sizes: list[int]) -> list[range]:
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]


SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(sum)


@settings(max_examples=80, deadline=None)
@given(SIZES, st.integers(1, 40), st.integers(0, 2**40), st.integers(1, 5))
def test_every_epoch_of_blocks_visits_everything_once(sizes, batch_size, seed, window):
    n = sum(sizes)
    order = BlockOrder(block_ranges(sizes), batch_size, seed, window)
    stream = torch.cat([order.indices(step) for step in range(-(-3 * n // batch_size))])
    for epoch in range(3):
        visited = stream[epoch * n : (epoch + 1) * n]
        assert visited.sort().values.tolist() == list(range(n))


@settings(max_examples=80, deadline=None)
@given(SIZES, st.integers(1, 40), st.integers(0, 2**40), st.integers(1, 5))
def test_few_blocks_are_read_at_a_time(sizes, batch_size, seed, window):
    """A block is not resumed once it was left, and at most a window of them is begun."""
    blocks = block_ranges(sizes)
    n = sum(sizes)
    order = BlockOrder(blocks, batch_size, seed, window)
    epoch = torch.cat([order.indices(step) for step in range(-(-n // batch_size))])[:n].tolist()
    block_of = {i: number for number, block in enumerate(blocks) for i in block}
    stream = [block_of[i] for i in epoch]
    places = {b: [p for p, other in enumerate(stream) if other == b] for b in set(stream)}
    for position in range(n):
        begun = [b for b, at in places.items() if at[0] <= position <= at[-1]]
        assert len(begun) <= window


def test_block_order_is_a_function_of_the_step():
    blocks = block_ranges([7, 0, 30, 3, 25, 35])
    forward = [BlockOrder(blocks, 32, 7, 2).indices(step) for step in range(20)]
    order = BlockOrder(blocks, 32, 7, 2)
    for step in (19, 3, 11, 0):
        assert torch.equal(order.indices(step), forward[step])
    assert not torch.equal(BlockOrder(blocks, 32, 8, 2).indices(0), forward[0])
    epochs = torch.cat(forward)[:300].view(3, 100)
    assert not torch.equal(epochs[0], epochs[1])
    small = BlockOrder(blocks, 8, 7, 2)
    assert torch.equal(torch.cat([small.indices(s) for s in range(4)]), forward[0])


def test_a_window_is_mixed():
    order = BlockOrder(block_ranges([100] * 16), 800, seed=3)
    first = order.indices(0)
    blocks = first // 100
    assert len(blocks.unique()) == 8
    # Any quarter of a window has about a quarter of each block: 25 of 200, give or take.
    assert all(15 <= (blocks[:200] == b).sum() <= 38 for b in blocks.unique())
    assert not torch.equal(first, order.indices(1))


class Blocks(MemorySource):
    def blocks(self):
        return block_ranges([4, 0, 6])


def test_the_source_chooses_the_order():
    images, labels = torch.zeros(10, 1, 2, 2, dtype=torch.uint8), torch.zeros(10).long()
    plain = MemorySource("m", images, labels, ["a"], 1)
    assert isinstance(default_order(plain, 4, 0), SampleOrder)
    source = Blocks("m", images, labels, ["a"], 1)
    assert isinstance(default_order(source, 4, 0), BlockOrder)
    assert Subset(source, [1, 2, 5, 9]).blocks() == [range(0, 2), range(2, 2), range(2, 4)]
    assert Subset(source, [5, 1]).blocks() is None
    assert Subset(plain, [0, 1]).blocks() is None


@pytest.mark.parametrize("count", [1, 3, 7, 29, 30, 31, 64, 100])
def test_groups_lose_no_more_than_the_excess(count):
    """No group is drawn more often than its share of an epoch of 60 draws, rounded up."""
    groups = [i % count for i in range(200)]
    drawn = torch.tensor(groups)[stream_of(group_order(groups))]
    counts = torch.bincount(drawn, minlength=count)
    each = -(-60 // count)
    excess = each * count - 60
    assert excess < count
    assert counts.max() <= each
    assert counts.min() >= max(0, each - excess)
    assert (each - counts).sum() == excess


def test_a_group_of_as_many_samples_as_draws_is_drawn_whole():
    groups = [0] * 30 + [1] * 30
    assert stream_of(group_order(groups)).sort().values.tolist() == list(range(60))
