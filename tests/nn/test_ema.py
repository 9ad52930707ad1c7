import pytest
import torch
from torch import nn

from tests.rounding import EXACT
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
def test_update_is_the_moving_average_of_parameters(momentum: float) -> None:
    student = small_student().double()
    teacher = make_teacher(student)
    student(torch.randn(8, 3, dtype=torch.float64))  # moves the running statistics
    with torch.no_grad():
        for p in student.parameters():
            p.add_(torch.randn_like(p))
    before = [p.clone() for p in teacher.parameters()]
    ema_update(teacher, student, momentum)
    for old, new, fast in zip(before, teacher.parameters(), student.parameters(), strict=True):
        expected = momentum * old + (1 - momentum) * fast.detach()
        torch.testing.assert_close(new, expected, **EXACT)
        assert new.grad_fn is None


def test_running_statistics_stay_the_teachers_own() -> None:
    student = small_student().double()
    teacher = make_teacher(student)
    student(torch.randn(8, 3, dtype=torch.float64) + 5)
    ema_update(teacher, student, 0.5)
    assert int(teacher[1].num_batches_tracked) == 0
    assert not teacher[1].running_mean.any()

    images = torch.randn(8, 3, dtype=torch.float64)
    expected = 0.1 * teacher[0](images).mean(0)  # torch's momentum of 0.1, from 0
    teacher(images)
    ema_update(teacher, student, 0.5)
    torch.testing.assert_close(teacher[1].running_mean, expected, **EXACT)
    assert int(teacher[1].num_batches_tracked) == 1
