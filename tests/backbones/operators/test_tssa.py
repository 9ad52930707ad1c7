"""TSSA and its causal form against the published formula, token by token, in float64."""

import pytest
import torch
from torch import Tensor

from vitrail.backbones.operators import tssa_cpu
from vitrail.backbones.operators.tssa import TSSA, CausalTSSA
from vitrail.backbones.operators.tssa_cpu import (
    TokenStatistics,
    memberships,
    token_statistics_formula,
)

# images, tokens, channels, heads
SIZES = [(2, 5, 12, 3), (1, 1, 12, 3), (3, 7, 10, 1), (1, 197, 48, 1), (2, 9, 15, 5)]
TILES = [2**19, 40, 1]  # all at once; some images or some tokens; one token


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def temperatures(heads: int) -> Tensor:
    return 1 + normal(heads, 1, seed=2)


def randomised(module: TSSA) -> TSSA:
    for seed, parameter in enumerate(module.double().parameters()):
        parameter.data = normal(*parameter.shape, seed=seed + 3) / 2
    return module


def softmax(scores: list[Tensor]) -> list[Tensor]:
    total = sum(s.exp() for s in scores)
    return [s.exp() / total for s in scores]


def shares_oracle(w: Tensor, temp: Tensor) -> list[Tensor]:
    """w [n, d] of one image. Π_k [n] of each head, eq. 10."""
    p = w.shape[1] // len(temp)
    scores = []
    for k, tau in enumerate(temp[:, 0]):
        score = 0
        for c in range(k * p, (k + 1) * p):
            norm = w[:, c].square().sum().clamp(min=1e-24).sqrt()
            score = score + (w[:, c] / norm) ** 2
        scores.append(tau * score)
    return softmax(scores)


def tssa_oracle(w: Tensor, temp: Tensor) -> Tensor:
    p = w.shape[1] // len(temp)
    columns = []
    for k, pi in enumerate(shares_oracle(w, temp)):
        for c in range(k * p, (k + 1) * p):
            dot = (pi / (pi.sum() + 1e-8) * w[:, c] ** 2).sum()
            columns.append(-w[:, c] * pi / (1 + dot))
    return torch.stack(columns, dim=1)


def causal_oracle(w: Tensor, temp: Tensor, bias: Tensor) -> Tensor:
    """One token after the other, each from the tokens up to it."""
    n, d = w.shape
    p = d // len(temp)
    shares: list[list[Tensor]] = []
    rows = []
    for t in range(n):
        seen = (w[: t + 1] ** 2).sum(0).clamp(min=1e-12)
        scores = []
        for k, tau in enumerate(temp[:, 0]):
            head = slice(k * p, (k + 1) * p)
            scores.append(tau * sum(w[t, head] ** 2 / seen[head] + bias[k, t, 0]))
        shares.append(softmax(scores))
        row = []
        for k in range(len(temp)):
            head = slice(k * p, (k + 1) * p)
            moment = sum(shares[s][k] * w[s, head] ** 2 for s in range(t + 1))
            dot = moment / (sum(shares[s][k] for s in range(t + 1)) + 1e-8)
            row.append(-w[t, head] * shares[t][k] / (1 + dot))
        rows.append(torch.cat(row))
    return torch.stack(rows)


def assert_exact(actual: object, expected: object) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


@pytest.fixture(params=TILES)
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tssa_cpu, "TILE", request.param)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("size", SIZES)
def test_values_and_gradients_are_the_formulas(size: tuple[int, ...]) -> None:
    *shape, heads = size
    w, temp = normal(*shape).requires_grad_(), temperatures(heads).requires_grad_()
    expected = torch.stack([tssa_oracle(x, temp) for x in w])
    cotangent = normal(*shape, seed=9)
    slopes = torch.autograd.grad(expected, (w, temp), cotangent)
    for way in (TokenStatistics.apply, token_statistics_formula):
        actual = way(w, temp)
        assert_exact(actual, expected)
        assert_exact(torch.autograd.grad(actual, (w, temp), cotangent), slopes)


def test_non_contiguous_projections_and_gradients() -> None:
    w, temp = normal(7, 2, 12).transpose(0, 1).requires_grad_(), temperatures(3)
    expected = torch.stack([tssa_oracle(x, temp) for x in w])
    actual = TokenStatistics.apply(w, temp)
    assert_exact(actual, expected)
    cotangent = normal(12, 7, 2).permute(2, 1, 0)
    slopes = torch.autograd.grad(expected, w, cotangent)
    assert_exact(torch.autograd.grad(actual, w, cotangent), slopes)


@pytest.mark.usefixtures("tile")
def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(
        TokenStatistics.apply,
        (normal(2, 4, 6).requires_grad_(), temperatures(3).requires_grad_()),
    )


def test_a_second_derivative_is_refused() -> None:
    w = normal(2, 4, 6).requires_grad_()
    cotangent = normal(2, 4, 6, seed=9).requires_grad_()
    out = TokenStatistics.apply(w, temperatures(3))
    (slope,) = torch.autograd.grad(out, w, cotangent, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_packed_resolutions_go_through_both_maps() -> None:
    operator = randomised(TSSA(12, 3))
    images = [normal(2, 5, 12), normal(3, 4, 12, seed=8)]
    tokens = torch.cat([x.flatten(0, 1) for x in images])
    expected = []
    for x in (x for group in images for x in group):
        w = x @ operator.qkv.weight.T + operator.qkv.bias
        mixed = tssa_oracle(w, operator.temp)
        expected.append(mixed @ operator.proj.weight.T + operator.proj.bias)
    actual = operator(tokens, [(2, 5), (3, 4)])
    assert_exact(actual, torch.cat(expected))
    one_by_one = operator(tokens[:10], [(2, 5)])
    assert_exact(actual[:10], one_by_one)


def test_an_exporter_gets_the_formula() -> None:
    """Not a number of images and tiles fixed by the example. `torch.compile` asks the same way."""
    operator = randomised(TSSA(12, 3))
    sizes = {0: torch.export.Dim("images"), 1: torch.export.Dim("tokens")}
    program = torch.export.export(
        _Mix(operator), (normal(2, 5, 12),), dynamic_shapes=(sizes,), strict=False
    )
    w = normal(4, 9, 12)
    assert_exact(program.module()(w), operator.mix(w))


class _Mix(torch.nn.Module):
    def __init__(self, operator: TSSA):
        super().__init__()
        self.operator = operator

    def forward(self, w: Tensor) -> Tensor:
        return self.operator.mix(w)


def test_maps_are_memberships_that_sum_to_one() -> None:
    operator = randomised(TSSA(12, 3))
    w = normal(2, 5, 12)
    expected = torch.stack([torch.stack(shares_oracle(x, operator.temp)) for x in w])
    maps = operator.maps(w)
    assert_exact(maps, expected)
    assert_exact(maps.sum(1), torch.ones(2, 5, dtype=torch.float64))
    assert memberships(w.half(), operator.temp.half()).dtype == torch.float32


def test_bases_give_the_projections_of_the_heads() -> None:
    operator = randomised(TSSA(12, 3, qkv_bias=False))
    tokens = normal(6, 12)
    projected = operator.project(tokens)
    by_head = torch.einsum("td,hdp->thp", tokens, operator.bases())
    assert_exact(by_head.flatten(1), projected)
    assert_exact(operator.keys(projected[None])[0], projected)


def test_parameters() -> None:
    # The share of a ToST-T layer in the published 5,769,328: two d × d maps with biases, 4 numbers.
    assert sum(p.numel() for p in TSSA(192, 4).parameters()) == 2 * (192 * 192 + 192) + 4
    names = [
        set(dict(TSSA(12, 3, **kwargs).named_parameters()))
        for kwargs in ({}, {"qkv_bias": False}, {"bias": False})
    ]
    weights = {"qkv.weight", "proj.weight", "temp"}
    assert names == [weights | {"qkv.bias", "proj.bias"}, weights | {"proj.bias"}, weights]
    assert torch.equal(TSSA(12, 3).temp, torch.ones(3, 1))
    causal = CausalTSSA(12, 3, context=7)
    assert causal.denom_bias.shape == (3, 7, 1)
    assert not causal.denom_bias.any()
    for operator in (TSSA(12, 3), causal):
        assert set(operator.no_decay) == {n for n, _ in operator.named_parameters(recurse=False)}


@pytest.mark.parametrize("operator", [TSSA(12, 3), CausalTSSA(12, 3)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0])
def test_half_precision_is_that_of_its_inputs(
    operator: TSSA, dtype: torch.dtype, scale: float
) -> None:
    """The statistics add no error beyond rounding the output, even where squares underflow."""
    w = (scale * normal(2, 50, 12)).to(dtype).requires_grad_()
    mixed = operator.mix(w)
    assert mixed.dtype == dtype
    temp = operator.temp.double()
    exact = torch.stack(
        [
            causal_oracle(x, temp, operator.denom_bias.double())
            if isinstance(operator, CausalTSSA)
            else tssa_oracle(x, temp)
            for x in w.detach().double()
        ]
    )
    eps = torch.finfo(dtype).eps
    # Half of a subnormal step of float16 is the least error that rounding can make.
    atol = 3e-8 if dtype == torch.float16 else 1e-7 * scale
    torch.testing.assert_close(mixed.double(), exact, rtol=max(eps, 1e-5), atol=atol)
    (slope,) = torch.autograd.grad(mixed.sum(), w)
    assert slope.dtype == dtype
    assert slope.isfinite().all()


@pytest.mark.parametrize("operator", [TSSA(12, 3), CausalTSSA(12, 3)])
def test_autocast_leaves_the_statistics_alone(operator: TSSA) -> None:
    w = normal(2, 50, 12).float().requires_grad_()
    expected = operator.mix(w)
    slope = torch.autograd.grad(expected.sum(), w)
    with torch.autocast("cpu", torch.bfloat16):
        actual = operator.mix(w)
        assert torch.equal(actual, expected)
        assert torch.equal(torch.autograd.grad(actual.sum(), w)[0], slope[0])
        tokens = operator(w.flatten(0, 1), [(2, 50)])
    assert tokens.dtype == torch.bfloat16
    tokens.float().sum().backward()
    assert operator.temp.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("operator", [TSSA(12, 3), CausalTSSA(12, 3)])
def test_zero_tokens_give_zeros_and_the_right_gradient(operator: TSSA, dtype: torch.dtype) -> None:
    """At w = 0 every head has the share 1/h and nothing shrinks: y = −w/h."""
    w = torch.zeros(2, 6, 12, dtype=dtype, requires_grad=True)
    mixed = operator.mix(w)
    assert not mixed.any()
    (slope,) = torch.autograd.grad(mixed, w, torch.ones_like(mixed))
    torch.testing.assert_close(slope, torch.full_like(w, -1 / 3))


@pytest.mark.usefixtures("tile")
def test_below_the_floor_of_the_norm() -> None:
    """One channel is zero, one shorter than 1e-12: their norm is a constant."""
    w, temp = normal(2, 5, 12), temperatures(3)
    w[:, :, 1] = 0
    w[:, :, 6] *= 1e-13
    w.requires_grad_()
    expected = torch.stack([tssa_oracle(x, temp) for x in w])
    actual = TokenStatistics.apply(w, temp)
    assert_exact(actual, expected)
    cotangent = normal(2, 5, 12, seed=9)
    slopes = torch.autograd.grad(expected, w, cotangent)
    torch.testing.assert_close(
        torch.autograd.grad(actual, w, cotangent), slopes, rtol=1e-9, atol=1e-11
    )


def test_an_empty_batch() -> None:
    w = normal(0, 5, 12).requires_grad_()
    mixed = TSSA(12, 3).double().mix(w)
    assert mixed.shape == (0, 5, 12)
    mixed.sum().backward()
    assert w.grad.shape == (0, 5, 12)


@pytest.mark.parametrize("size", [(2, 5, 12, 3), (1, 1, 12, 3), (2, 9, 10, 1), (1, 4, 15, 5)])
def test_causal_values_and_gradients_are_the_formulas(size: tuple[int, ...]) -> None:
    b, n, d, heads = size
    operator = randomised(CausalTSSA(d, heads, context=9))
    w = normal(b, n, d).requires_grad_()
    inputs = (w, operator.temp, operator.denom_bias)
    expected = torch.stack([causal_oracle(x, operator.temp, operator.denom_bias) for x in w])
    actual = operator.mix(w)
    assert_exact(actual, expected)
    cotangent = normal(b, n, d, seed=9)
    assert_exact(
        torch.autograd.grad(actual, inputs, cotangent),
        torch.autograd.grad(expected, inputs, cotangent),
    )


def test_causal_gradcheck() -> None:
    operator = randomised(CausalTSSA(6, 3, context=5))

    # gradcheck moves its inputs in place, and so the parameters.
    inputs = (normal(2, 4, 6).requires_grad_(), operator.temp, operator.denom_bias)
    assert torch.autograd.gradcheck(lambda w, *parameters: operator.mix(w), inputs)


@pytest.mark.parametrize(("n", "t"), [(2, 0), (7, 3), (130, 0), (130, 63), (130, 64), (600, 300)])
def test_later_tokens_change_nothing_in_a_single_bit(n: int, t: int) -> None:
    operator = randomised(CausalTSSA(12, 3))
    tokens = normal(2, n, 12).requires_grad_()
    other = tokens.detach().clone()
    other[:, t + 1 :] = 1e3 * normal(2, n - t - 1, 12, seed=5)
    pair = (tokens, other)
    outputs = [operator(x.flatten(0, 1), [(2, n)]).unflatten(0, (2, n)) for x in pair]
    assert torch.equal(outputs[0][:, : t + 1], outputs[1][:, : t + 1])
    assert not torch.equal(outputs[0][:, t + 1 :], outputs[1][:, t + 1 :])
    maps = [operator.maps(operator.project(x.flatten(0, 1)).unflatten(0, (2, n))) for x in pair]
    assert torch.equal(maps[0][..., : t + 1], maps[1][..., : t + 1])
    (slope,) = torch.autograd.grad(outputs[0][:, : t + 1].square().sum(), tokens)
    assert not slope[:, t + 1 :].any()
    assert slope[:, : t + 1].all()


def test_causal_maps_are_memberships() -> None:
    operator = randomised(CausalTSSA(12, 3, context=5))
    maps = operator.maps(normal(2, 5, 12))
    assert maps.shape == (2, 3, 5)
    assert_exact(maps.sum(1), torch.ones(2, 5, dtype=torch.float64))
    # The first token is all that it has seen: each of its p = 4 terms is 1.
    first = operator.temp[:, 0] * 4 * (1 + operator.denom_bias[:, 0, 0])
    assert_exact(maps[0, :, 0], first.softmax(0))


def test_a_sequence_longer_than_the_context_is_refused() -> None:
    operator = CausalTSSA(12, 3, context=5)
    operator.mix(torch.zeros(1, 5, 12))
    for way in (operator.mix, operator.maps):
        with pytest.raises(ValueError, match=r"6 tokens.*context=5.*context >= 6"):
            way(torch.zeros(1, 6, 12))
