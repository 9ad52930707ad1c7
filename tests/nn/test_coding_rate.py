"""R_ε(Z) = ½ log det(I + s ZᵀZ) and its gradient s Z (I + s ZᵀZ)⁻¹, s = d/(m ε²), in float64."""

import math

import numpy as np
import pytest
import torch

from vitrail.nn.coding_rate import coding_rate

SHAPES = [(1, 8), (1, 1024), (2, 256), (7, 8), (64, 256), (300, 256), (200, 1024), (4096, 8)]
LONG_SHAPES = [(4096, 256), (1100, 1024), (4096, 1024)]
KINDS = ["random", "unit", "rank 1", "nearly collapsed", "collapsed", "two points", "short", "zero"]


def vectors(kind: str, m: int, d: int) -> torch.Tensor:
    noise = torch.randn(m, d, generator=torch.Generator().manual_seed(m + d))
    unit = noise / noise.norm(dim=1, keepdim=True)
    match kind:
        case "random":
            return noise
        case "unit":
            return unit
        case "rank 1":
            return noise[:, :1] * unit[:1]
        case "nearly collapsed":
            near = unit[:1] + 1e-5 * noise
            return near / near.norm(dim=1, keepdim=True)
        case "collapsed":
            return unit[:1].repeat(m, 1)
        case "two points":
            return unit[torch.arange(m) % min(m, 2)]
        case "short":
            return 1e-4 * noise
    return torch.zeros(m, d)


def oracle(z: torch.Tensor, eps: float) -> tuple[float, np.ndarray]:
    z64 = z.double().numpy()
    m, d = z64.shape
    scale = d / (m * eps**2)
    matrix = np.eye(d) + scale * z64.T @ z64
    return np.linalg.slogdet(matrix)[1] / 2, scale * np.linalg.solve(matrix, z64.T).T


def check(z: torch.Tensor, eps: float, gradient_tolerance: float = 1e-4) -> None:
    z = z.clone().requires_grad_()
    rate = coding_rate(z[None], eps)
    rate.sum().backward()
    expected, gradient = oracle(z.detach(), eps)
    assert rate.shape == (1,)
    assert rate.dtype == torch.float32
    assert abs(rate.item() - expected) <= 1e-4 * expected
    error = np.linalg.norm(z.grad.double().numpy() - gradient)
    assert error <= gradient_tolerance * np.linalg.norm(gradient)


@pytest.mark.parametrize("eps", [0.05**0.5, 0.05])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("m", "d"), SHAPES)
def test_rate_and_gradient_are_right(m: int, d: int, kind: str, eps: float) -> None:
    check(vectors(kind, m, d), eps)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("m", "d"), LONG_SHAPES)
def test_rate_and_gradient_are_right_of_large_sets(m: int, d: int, kind: str, slow: bool) -> None:
    if not slow and (d > 256 or kind not in ("unit", "rank 1", "nearly collapsed")):
        pytest.skip("long form: --slow")
    check(vectors(kind, m, d), 0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("m", "d"), [(1, 8), (64, 256), (300, 256)])
def test_autocast_changes_nothing(m: int, d: int, kind: str, dtype: torch.dtype) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        # The gradient of bfloat16 vectors is itself rounded to 8 bits.
        check(vectors(kind, m, d).to(dtype), 0.05**0.5, 1e-4 if dtype == torch.float32 else 4e-3)


def test_sets_are_independent() -> None:
    z = torch.stack([vectors("unit", 20, 8), vectors("collapsed", 20, 8)])
    together = coding_rate(z, 0.3)
    apart = torch.cat([coding_rate(z[:1], 0.3), coding_rate(z[1:], 0.3)])
    assert torch.equal(together, apart)


def test_one_repeated_unit_vector_has_the_rate_of_one_direction() -> None:
    z = vectors("collapsed", 32, 16)[None]
    assert math.isclose(coding_rate(z, 0.5).item(), math.log(1 + 16 / 0.25) / 2, rel_tol=1e-6)


@pytest.mark.parametrize(("m", "d"), [(4, 8), (16, 8)])
def test_failure_is_nan_in_the_set_that_failed_and_raises_nothing(m: int, d: int) -> None:
    z = torch.stack([vectors("unit", m, d), vectors("unit", m, d)])
    z[1, 0, 0] = torch.nan
    rates = coding_rate(z, 0.3)
    assert rates[0].isfinite()
    assert rates[1].isnan()


def test_a_factorisation_that_fails_on_finite_vectors_is_nan_or_right() -> None:
    z = 1e12 * vectors("collapsed", 64, 32)
    rate = coding_rate(z[None], 0.05).item()
    assert math.isnan(rate) or math.isclose(rate, math.log(32) / 2 + math.log(1e12 / 0.05))


@pytest.mark.parametrize("eps", [0.0, -1.0, math.nan])
def test_eps_must_be_positive(eps: float) -> None:
    with pytest.raises(ValueError, match="eps is"):
        coding_rate(torch.ones(1, 2, 2), eps)


@pytest.mark.gpu
def test_device_is_not_waited_for() -> None:
    z = vectors("unit", 64, 256)[None].cuda().requires_grad_()
    coding_rate(z, 0.2).sum().backward()  # the first call builds handles and workspaces
    torch.cuda.set_sync_debug_mode("error")
    try:
        coding_rate(z, 0.2).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_with_tf32_allowed_is_right(kind: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        z = vectors(kind, 300, 256)
        rate = coding_rate(z[None].cuda(), 0.05).item()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    expected = oracle(z, 0.05)[0]
    assert abs(rate - expected) <= 1e-4 * expected
