from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightly.loss.swav_loss import sinkhorn as lightlys

from tests.processes import on_ranks
from tests.rounding import EXACT, rounding_bound
from vitrail.nn import sinkhorn as module
from vitrail.nn.sinkhorn import sinkhorn

SHAPES = [(1, 1), (1, 5), (7, 1), (2, 2), (6, 40), (64, 10), (300, 70)]
SHARES = (slice(0, 5), slice(5, 8))  # of 8 rows: ranks need not have equally many


def cosines(rows: int, prototypes: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    z, c = (
        torch.randn(n, 16, generator=generator, dtype=torch.float64) for n in (rows, prototypes)
    )
    return torch.nn.functional.normalize(z) @ torch.nn.functional.normalize(c).T


def published(scores: torch.Tensor, epsilon: float, iterations: int) -> np.ndarray:
    """Listing 1 of the paper: K × B, rescaled as a whole, rows to 1/K and columns to 1/B."""
    q = np.exp(scores.double().numpy() / epsilon).T
    q /= q.sum()
    k, b = q.shape
    for _ in range(iterations):
        q *= (1 / k) / q.sum(1, keepdims=True)
        q *= (1 / b) / q.sum(0, keepdims=True)
    return (q / q.sum(0, keepdims=True)).T


def in_logarithms(scores: torch.Tensor, epsilon: float, iterations: int) -> np.ndarray:
    """The same, where exp would leave even float64."""
    log_q = scores.double().numpy() / epsilon
    for _ in range(iterations):
        log_q = log_q - np.logaddexp.reduce(log_q, 0, keepdims=True)
        log_q = log_q - np.logaddexp.reduce(log_q, 1, keepdims=True)
    return np.exp(log_q)


EXTREMES = {
    "far below": -1e4 * torch.ones(6, 4),
    "far above": cosines(6, 4).float() + 1e4,
    "signs": 1e4 * torch.sign(cosines(6, 4).float()),
    "signs over epsilon": 1e4 / 0.05 * torch.sign(cosines(6, 4).float()),
    "a prototype nobody uses": torch.cat([cosines(6, 3), torch.full((6, 1), -1e4)], 1).float(),
    "a prototype everybody uses": torch.cat([cosines(6, 3), torch.full((6, 1), 1e4)], 1).float(),
    "a row far below": torch.cat([cosines(5, 4), torch.full((1, 4), -1e4)]).float(),
    "rows and columns far apart": 1e4 * (torch.arange(6.0)[:, None] - 2 * torch.arange(4.0)),
    "one against all": 1e4 * torch.eye(6, 4),
    "equal rows": cosines(1, 4).float().expand(6, 4),
    "one row": 1e4 * cosines(1, 4).float(),
    "one prototype": 1e4 * cosines(6, 1).float(),
    "one of each": torch.tensor([[1e4]]),
}


@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize("epsilon", [0.05, 0.7])
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_are_the_published_loops(
    shape: tuple[int, int], epsilon: float, iterations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = cosines(*shape)
    expected = torch.from_numpy(published(scores, epsilon, iterations))
    for tile in (module.TILE, 4 * shape[1], 1):
        monkeypatch.setattr(module, "TILE", tile)
        found = sinkhorn(scores, epsilon, iterations)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        single = sinkhorn(scores.float(), epsilon, iterations)
        assert single.dtype == torch.float32
        rtol = of_float32(shape, epsilon, iterations)
        torch.testing.assert_close(single.double(), expected, rtol=rtol, atol=1e-30)


def of_float32(shape: tuple[int, int], epsilon: float, iterations: int) -> float:
    """The relative error of codes, whose every sum is of positive numbers.

    Cosines over ε, less the column's largest and the row's largest, are at most 4 / ε, and rounded
    with the cosine, the quotient and the two differences; a tenth of a unit in an exponent is a
    tenth of the number. Each iteration then sums over rows and over prototypes.
    """
    exponent = rounding_bound(4, scale=4 / epsilon)
    return exponent + rounding_bound((iterations + 1) * (sum(shape) + 4))


def test_codes_are_lightlys() -> None:
    scores = cosines(48, 30)
    torch.testing.assert_close(sinkhorn(scores, 0.05), lightlys(scores), **EXACT)


def test_every_prototype_gets_its_share() -> None:
    codes = sinkhorn(cosines(48, 30), 0.2, 500)
    torch.testing.assert_close(codes.sum(1), torch.ones_like(codes[:, 0]))
    torch.testing.assert_close(codes.sum(0), torch.full_like(codes[0], 48 / 30))


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_scores_are_finite_and_right(name: str, dtype: torch.dtype) -> None:
    scores = EXTREMES[name].to(dtype)
    codes = sinkhorn(scores, 0.05)
    assert codes.isfinite().all()
    torch.testing.assert_close(codes.sum(1), torch.ones_like(codes[:, 0]))
    expected = torch.from_numpy(in_logarithms(scores, 0.05, 3))
    # Beside 1e4 / epsilon, the arguments of exp are rounded to 2^-6 in float32.
    torch.testing.assert_close(codes.double(), expected, rtol=0, atol=5e-3)
    if dtype == torch.float64:
        torch.testing.assert_close(codes, expected, rtol=1e-6, atol=1e-9)


def test_equal_rows_are_shared_out_evenly() -> None:
    codes = sinkhorn(EXTREMES["equal rows"], 0.05)
    torch.testing.assert_close(codes, torch.full((6, 4), 1 / 4))
    torch.testing.assert_close(sinkhorn(torch.randn(1, 4), 0.05), torch.full((1, 4), 1 / 4))


def test_half_scores_are_summed_in_float32_under_autocast() -> None:
    scores = cosines(64, 30).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        codes = sinkhorn(scores, 0.05)
    assert codes.dtype == torch.float32
    expected = torch.from_numpy(published(scores, 0.05, 3))
    rtol = of_float32((64, 30), 0.05, 3)
    torch.testing.assert_close(codes.double(), expected, rtol=rtol, atol=1e-30)


def test_scores_are_left_alone_and_codes_carry_no_gradient() -> None:
    scores = cosines(6, 4).requires_grad_()
    before = scores.detach().clone()
    assert not sinkhorn(scores, 0.05).requires_grad
    assert torch.equal(scores, before)
    transposed = scores.detach().T.contiguous().T
    torch.testing.assert_close(sinkhorn(transposed, 0.05), sinkhorn(scores, 0.05))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_scores_that_are_not_finite_give_nan_and_no_exception(value: float) -> None:
    scores = cosines(6, 4)
    scores[2, 1] = value
    assert sinkhorn(scores, 0.05).isnan().any()


def test_arguments_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match=r"epsilon is 0\.0"):
        sinkhorn(cosines(2, 2), 0.0)
    with pytest.raises(ValueError, match="iterations is 0"):
        sinkhorn(cosines(2, 2), 0.05, 0)


def ranked() -> dict[str, torch.Tensor]:
    """8 rows each, whose columns' maxima lie on one rank only."""
    far = cosines(8, 4)
    far[:5] -= 1e4
    return {"cosines": cosines(8, 4), "wide": cosines(8, 30), "far": far}


def work(folder: str) -> None:
    dist.init_process_group("gloo")
    me = dist.get_rank()
    found = {name: sinkhorn(scores[SHARES[me]], 0.05) for name, scores in ranked().items()}
    torch.save(found, f"{folder}/{me}.pt")


def test_two_ranks_give_the_codes_of_one(tmp_path: Path) -> None:
    on_ranks(work, str(tmp_path))
    ranks = [torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2)]
    for name, scores in ranked().items():
        together = torch.cat([found[name] for found in ranks])
        torch.testing.assert_close(together, sinkhorn(scores, 0.05), rtol=1e-12, atol=1e-14)
        alone = sinkhorn(scores[SHARES[0]], 0.05)
        assert (together[SHARES[0]] - alone).abs().max() > 1e-3


@pytest.mark.gpu
def test_cuda_gives_the_codes_of_the_cpu() -> None:
    scores = cosines(300, 70).float()
    found = sinkhorn(scores.cuda(), 0.05).cpu()
    torch.testing.assert_close(found, sinkhorn(scores, 0.05), rtol=1e-5, atol=1e-7)
