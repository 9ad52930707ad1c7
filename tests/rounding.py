"""How far two computations of one number may part, on any processor and with any threads.

The order of a sum, and with it the rounding, is the processor's: a tolerance that was found by
looking holds where it was found. Hence two kinds of comparison.

- What mathematics says is equal is compared in float64, within EXACT. The networks of the tests are
  small; their sums part by 1e-13 or so, and a wrong term shows at 1e-3. `float64_kept` is for code
  that lifts half precision by `.float()`, which takes float64 down too.
- What must be float32 is compared within `rounding_bound`, which follows from the sizes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

EXACT = {"rtol": 1e-10, "atol": 1e-10}

EPS = torch.finfo(torch.float32).eps


def rounding_bound(terms: int, scale: float = 1.0) -> float:
    """The most by which two float32 sums of the same terms may differ, in whatever order.

    A sum of n products is within γ_n Σ|x_i y_i| of the exact one, where γ_n = n u / (1 - n u) and
    u = eps / 2 (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1); it does not
    depend on the order, on fused multiplications, or on how many partial sums there are. Two of
    them are within twice that: n · eps · Σ|x_i y_i|.

    The same holds for n roundings one after another, each of a value of at most `scale`, as in a
    formula of n operations none of which cancels.

    Args:
        terms: n, the roundings that one result has gone through: the terms of its sum, and one for
            each operation before or after it.
        scale: Σ|x_i y_i|, or a bound of it.
    """
    assert terms * EPS < 0.01  # beyond which the bound has more terms than its first
    return terms * EPS * scale


@contextmanager
def float64_kept() -> Iterator[None]:
    """Within it `.float()` leaves float64 alone, and lifts what is less, as ever.

    Code that wants "at least float32" says `.float()`, where training never has more. Under this
    the same lines run in float64, so that what they promise is seen to ten digits.
    """
    lift = Tensor.float

    def float(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # the name it stands for
        return x if x.dtype == torch.float64 else lift(x, *args, **kwargs)

    with mock.patch.object(Tensor, "float", float):
        yield
