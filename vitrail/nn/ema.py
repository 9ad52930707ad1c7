"""Teachers: copies of a student that follow it by an exponential moving average."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def make_teacher(student: M) -> M:
    """A copy of `student` with equal weights, none of which takes a gradient."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, in place.

    A handful of kernels for all parameters together, and no synchronisation. Buffers are left
    alone: batch norm's running statistics in a teacher are of the teacher's own activations, which
    it gathers in its own passes in training mode (as in facebookresearch/dino 7c446df and MoCo).

    Args:
        teacher: made by `make_teacher(student)`.
        momentum: in [0, 1].
    """
    assert 0 <= momentum <= 1
    slow: list[Tensor] = list(teacher.parameters())
    fast: list[Tensor] = list(student.parameters())
    assert len(slow) == len(fast), "the teacher is not a copy of this student"
    torch._foreach_lerp_(slow, fast, 1 - momentum)
