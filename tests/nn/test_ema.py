import pytest
import torch
from torch import nn

from vitrail.nn.ema import ema_update, make_teacher


def small_student() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_teacher_starts_equal_and_takes_no_gradient() -> None:
    student = small_student()
    teacher = make_teacher(student)
    for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
        assert torch.equal(slow, fast)
        assert slow.data_ptr() != fast.data_ptr()
        assert not slow.requires_grad
        assert fast.requires_grad


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.996, 1.0])
def test_update_is_the_moving_average_and_copies_buffers(momentum: float) -> None:
    student = small_student()
    teacher = make_teacher(student)
    student(torch.randn(8, 3))  # moves the running statistics
    with torch.no_grad():
        for p in student.parameters():
            p.add_(torch.randn_like(p))
    before = [p.double() for p in teacher.parameters()]
    ema_update(teacher, student, momentum)
    for old, new, fast in zip(before, teacher.parameters(), student.parameters(), strict=True):
        expected = momentum * old + (1 - momentum) * fast.detach().double()
        torch.testing.assert_close(new.double(), expected, atol=1e-6, rtol=0)
        assert new.grad_fn is None
    for slow, fast in zip(teacher.buffers(), student.buffers(), strict=True):
        assert torch.equal(slow, fast)
    assert int(teacher[1].num_batches_tracked) == 1
