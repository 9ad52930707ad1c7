import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.rounding import EXACT
from vitrail.nn import prototype_entropy as module
from vitrail.nn.prototype_entropy import prototype_entropy

TAU = 0.2


def arguments(
    views: int, n_targets: int, scale: float = 1.0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """z [V, 5, 7], W [30, 7] and q [T, 5, 30]."""
    generator = torch.Generator().manual_seed(views + 10 * n_targets)
    z = scale * torch.randn(views, 5, 7, generator=generator, dtype=dtype)
    w = torch.randn(30, 7, generator=generator, dtype=dtype)
    q = torch.randn(n_targets, 5, 30, generator=generator, dtype=dtype).mul(3).softmax(-1)
    return z.requires_grad_(), w.requires_grad_(), q


def oracle(z: Tensor, w: Tensor, q: Tensor) -> float:
    """Each target against the log-softmax of every other view, in float64."""
    features, rows, targets = (x.detach().double().numpy() for x in (z, w, q))
    logits = features @ rows.T / TAU
    logits -= logits.max(-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    pairs = [(i, j) for i in range(len(q)) for j in range(len(z)) if i != j]
    return float(np.mean([-(targets[i] * log_p[j]).sum(-1).mean() for i, j in pairs]))


def plain(z: Tensor, w: Tensor, q: Tensor) -> Tensor:
    """The same through autograd."""
    log_p = (z @ w.T / TAU).log_softmax(-1)
    pairs = [(i, j) for i in range(len(q)) for j in range(len(z)) if i != j]
    return torch.stack([-(q[i] * log_p[j]).sum(-1).mean() for i, j in pairs]).mean()


@pytest.fixture(params=[1, 70, 2**23], ids=["a row a slice", "uneven slices", "one slice"])
def _slices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", request.param)


@pytest.mark.usefixtures("_slices")
@pytest.mark.parametrize(("views", "n_targets"), [(2, 1), (2, 2), (5, 2), (4, 3)])
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_value_is_the_formula_and_gradients_are_those_of_the_plain_loss(
    views: int, n_targets: int, scale: float
) -> None:
    z, w, q = arguments(views, n_targets, scale, torch.float64)
    loss = prototype_entropy(z, w, q, TAU)
    assert math.isclose(loss.item(), oracle(z, w, q), rel_tol=EXACT["rtol"])
    found = torch.autograd.grad(loss, (z, w))
    expected = torch.autograd.grad(plain(z, w, q), (z, w))
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= EXACT["rtol"] * b.abs().max() + 1e-12


@pytest.mark.usefixtures("_slices")
def test_gradients_pass_gradcheck() -> None:
    assert prototype_entropy(*arguments(4, 2), TAU).dtype == torch.float32
    z, w, q = arguments(4, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z, w: prototype_entropy(z, w, q, TAU), (z, w))


def test_what_comes_from_above_scales_the_gradients_and_may_come_twice() -> None:
    z, w, q = arguments(4, 2, dtype=torch.float64)
    once = torch.autograd.grad(prototype_entropy(z, w, q, TAU), (z, w))
    tripled = 3 * prototype_entropy(z, w, q, TAU)
    for _ in range(2):
        again = torch.autograd.grad(tripled, (z, w), retain_graph=True)
        for a, b in zip(again, once, strict=True):
            torch.testing.assert_close(a, 3 * b, **EXACT)


def test_a_student_that_equals_the_targets_has_their_entropy_and_no_gradient() -> None:
    z, w, _ = arguments(1, 1, dtype=torch.float64)
    q = (z.detach() @ w.detach().T / TAU).softmax(-1)
    same = z.detach().expand(3, -1, -1).clone().requires_grad_()
    loss = prototype_entropy(same, w, q, TAU)
    torch.testing.assert_close(loss, -(q * q.log()).sum(-1).mean())
    assert all(g.abs().max() < 1e-12 for g in torch.autograd.grad(loss, (same, w)))


PEAK = """
from pathlib import Path
import torch
from vitrail.nn.prototype_entropy import prototype_entropy

def resident(which):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which))

torch.set_num_threads(1)
w = torch.randn(32768, 16, requires_grad=True)
z = torch.randn(12, 64, 16, requires_grad=True)
q = torch.full((2, 64, 32768), 1 / 32768)
prototype_entropy(z[:, :1], w, q[:, :1], 0.1).backward()
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
prototype_entropy(z, w, q, 0.1).backward()
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_logits_of_all_views_are_never_held_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    one_slice, all_logits = 2**23 * 4 / 1024, 12 * 64 * 32768 * 4 / 1024
    assert 0.9 * one_slice < float(done.stdout) < all_logits / 2
