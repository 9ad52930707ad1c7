"""Teachers: exponential moving averages of a student's weights."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def make_teacher(student: M) -> M:
    """Returns a copy of `student` with equal weights and without gradients."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Updates the teacher in place: momentum * teacher + (1 - momentum) * student.

    A few kernels for all parameters together, and no synchronisation. Buffers are not changed:
    batch norm's running statistics in a teacher are of the teacher's own activations, from its
    passes in training mode (as in facebookresearch/dino 7c446df and MoCo).

    Args:
        teacher: made by `make_teacher(student)`.
        student: the network whose weights are averaged.
        momentum: in [0, 1].
    """
    assert 0 <= momentum <= 1
    slow: list[Tensor] = list(teacher.parameters())
    fast: list[Tensor] = list(student.parameters())
    assert len(slow) == len(fast), "the teacher is not a copy of this student"
    torch._foreach_lerp_(slow, fast, 1 - momentum)
