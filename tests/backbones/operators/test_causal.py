"""Causal operators: their formulas with an explicit mask, and that the future cannot be seen."""

import math

import pytest
import torch
from torch import Tensor

from vitrail.backbones.operators.attention import MHSA, MSSA, Attention, CausalMHSA, CausalMSSA

B, D, HEADS = 2, 12, 3
P = D // HEADS
OPERATORS = [CausalMHSA, CausalMSSA]
# Below, at and above the sizes at which kernels change their blocks.
WHERE = [(2, 0), (7, 3), (7, 5), (130, 0), (130, 63), (130, 64), (130, 128), (600, 300)]


def randomised(module: Attention) -> Attention:
    generator = torch.Generator().manual_seed(2)
    for parameter in module.double().parameters():
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64, generator=generator) / 2
    return module


def random_tokens(n: int, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, n, D, dtype=torch.float64, generator=generator).to(dtype)


def apply(operator: Attention, tokens_BND: Tensor) -> Tensor:
    n = tokens_BND.shape[1]
    return operator(tokens_BND.flatten(0, 1), [(B, n)]).unflatten(0, (B, n))


def rows(q: Tensor, k: Tensor) -> list[Tensor]:
    """For each t the weights of the tokens 0..t: the mask as a loop."""
    weights = []
    for t in range(len(q)):
        scores = torch.stack([torch.dot(q[t], k[s]) for s in range(t + 1)]) / math.sqrt(P)
        weights.append(scores.exp() / scores.exp().sum())
    return weights


def heads_of(operator: Attention, x: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Queries, keys, values of each head, from the weights alone."""
    weight = operator.qkv.weight
    if isinstance(operator, MSSA):
        shared = [x @ weight[h * P : (h + 1) * P].T for h in range(HEADS)]
        return [(w, w, w) for w in shared]
    q, k, v = (
        x @ weight[i * D : (i + 1) * D].T + operator.qkv.bias[i * D : (i + 1) * D] for i in range(3)
    )
    cuts = [slice(h * P, (h + 1) * P) for h in range(HEADS)]
    return [(q[:, cut], k[:, cut], v[:, cut]) for cut in cuts]


@pytest.mark.parametrize("n", [1, 2, 9])
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_token_attends_to_itself_and_those_before(operator: type[Attention], n: int) -> None:
    attention, tokens = randomised(operator(D, HEADS)), random_tokens(n)
    expected, last = [], []
    for x in tokens:
        parts = heads_of(attention, x)
        mixed = [
            torch.stack([w @ v[: len(w)] for w in rows(q, k)])  # [n, p]
            for q, k, v in parts
        ]
        joined = torch.cat(mixed, dim=1)
        expected.append(joined @ attention.proj.weight.T + attention.proj.bias)
        last.append(torch.stack([rows(q, k)[-1] for q, k, _ in parts]))
    torch.testing.assert_close(
        apply(attention, tokens), torch.stack(expected), rtol=1e-12, atol=1e-12
    )
    projected = attention.project(tokens.flatten(0, 1)).unflatten(0, (B, n))
    maps = attention.maps(projected)
    torch.testing.assert_close(maps, torch.stack(last), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("n", "t"), WHERE)
@pytest.mark.parametrize("operator", OPERATORS)
def test_later_tokens_do_not_change_a_bit(
    operator: type[Attention], n: int, t: int, dtype: torch.dtype
) -> None:
    attention = randomised(operator(D, HEADS)).to(dtype)
    tokens = random_tokens(n, dtype)
    before = apply(attention, tokens)
    for scale in (1.0, 100.0):
        changed = tokens.clone()
        changed[:, t + 1 :] = scale * random_tokens(n - t - 1, dtype, seed=5)
        after = apply(attention, changed)
        assert torch.equal(after[:, : t + 1], before[:, : t + 1])
        assert not torch.equal(after[:, t + 1 :], before[:, t + 1 :])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("n", "t"), WHERE)
@pytest.mark.parametrize("operator", OPERATORS)
def test_no_gradient_comes_from_later_tokens(
    operator: type[Attention], n: int, t: int, dtype: torch.dtype
) -> None:
    attention = randomised(operator(D, HEADS)).to(dtype)
    tokens = random_tokens(n, dtype).requires_grad_()
    output = apply(attention, tokens)[:, t]
    (gradient,) = torch.autograd.grad(output.square().sum(), tokens)
    assert torch.count_nonzero(gradient[:, t + 1 :]) == 0
    assert (gradient[:, : t + 1].abs().amax(dim=-1) > 0).any(dim=1).all()


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_last_token_and_a_lone_one_receive_what_they_do_without_a_mask(
    operator: type[Attention],
) -> None:
    attention = randomised(operator(D, HEADS))
    full = randomised((MHSA if operator is CausalMHSA else MSSA)(D, HEADS))
    for n in (1, 130):
        tokens = random_tokens(n)
        causal, unmasked = apply(attention, tokens)[:, -1], apply(full, tokens)[:, -1]
        torch.testing.assert_close(causal, unmasked, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("operator", OPERATORS)
def test_what_comes_next_does_not_change_what_was(operator: type[Attention]) -> None:
    """A shorter sequence has the same outputs, up to rounding."""
    attention, tokens = randomised(operator(D, HEADS)), random_tokens(130)
    whole = apply(attention, tokens)
    for n in (1, 7, 129):
        torch.testing.assert_close(
            apply(attention, tokens[:, :n]), whole[:, :n], rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("operator", OPERATORS)
def test_causal_attention_has_the_gradients_of_its_values(operator: type[Attention]) -> None:
    """Checks gradients by finite differences, for tokens and weights, with two lengths."""
    attention = randomised(operator(D, HEADS))
    names = list(dict(attention.named_parameters()))
    shapes = [(2, 3), (1, 4)]
    x = torch.randn(10, D, dtype=torch.float64, generator=torch.Generator().manual_seed(4))

    def values(x: Tensor, *weights: Tensor) -> Tensor:
        named = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(attention, named, (x, shapes))

    inputs = [x.requires_grad_(), *attention.parameters()]
    assert torch.autograd.gradcheck(values, inputs, fast_mode=True)
