"""A queue of features against a list of rows."""

import pytest
import torch

from vitrail.nn.queue import empty_queue, is_full, push, share_of_rank


@pytest.mark.parametrize("length", [0, 3, 4, 7])
def test_the_newest_rows_come_first_and_the_oldest_drop_out(length: int) -> None:
    queue, rows = empty_queue(2, length, 5), torch.randn(3, 2, 4, 5)
    expected = torch.zeros(2, length, 5)
    for pushes, batch in enumerate(rows, 1):
        push(queue, batch)
        expected = torch.cat([batch, expected], dim=1)[:, :length]
        assert torch.equal(queue, expected)
        assert is_full(queue, pushes, rows=4) == (0 < length <= 4 * pushes)


def test_a_queue_may_have_no_views() -> None:
    queue = empty_queue(3, 2)
    push(queue, torch.ones(2, 2, requires_grad=True))
    assert queue.tolist() == [[1, 1], [1, 1], [0, 0]]
    assert not queue.requires_grad
    assert torch.equal(share_of_rank(queue), queue)


def test_a_queue_that_was_never_filled_is_not_full() -> None:
    assert not is_full(empty_queue(4, 2), pushes=0, rows=4)
    assert not is_full(empty_queue(4, 2), pushes=-3, rows=4)
