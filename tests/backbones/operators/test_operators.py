"""Attention operators and a whole CRATE against the papers' formulas, in float64, head by head."""

import math

import pytest
import torch
from torch import Tensor

from vitrail.backbones.create import create_backbone
from vitrail.backbones.operators.attention import MHSA, MSSA, Attention

B, N, D, HEADS = 2, 5, 12, 3
P = D // HEADS
SHAPES = [(B, N)]


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(B, N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """In float64, with no parameter left at a value (0, 1) that would hide its misuse."""
    generator = torch.Generator().manual_seed(2)
    for parameter in module.double().parameters():
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64, generator=generator) / 2
    return module


def softmax_rows(scores: Tensor) -> Tensor:
    return scores.exp() / scores.exp().sum(dim=1, keepdim=True)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(dim=1, keepdim=True)
    return centred / (centred.square().mean(dim=1, keepdim=True) + eps).sqrt() * weight + bias


def mssa_oracle(x: Tensor, u: Tensor, w_out: Tensor, b_out: Tensor, heads: int) -> Tensor:
    """x [n, d]; head k: softmax(w wᵀ/√p) w with w = x U_kᵀ."""
    p = len(u) // heads
    parts = []
    for k in range(heads):
        w = x @ u[k * p : (k + 1) * p].T
        parts.append(softmax_rows(w @ w.T / math.sqrt(p)) @ w)
    return torch.cat(parts, dim=1) @ w_out.T + b_out


def ista_oracle(u: Tensor, dictionary: Tensor, eta: float = 0.1, lmbda: float = 0.1) -> Tensor:
    """Tokens as columns, three products: ReLU(u + η(Dᵀu − DᵀDu) − ηλ)."""
    z = u.T
    gradient = dictionary.T @ z - (dictionary.T @ dictionary) @ z
    return (z + eta * gradient - eta * lmbda).clamp(min=0).T


def test_mhsa_is_softmax_of_queries_and_keys(tokens: Tensor) -> None:
    attention = randomised(MHSA(D, HEADS))
    weight, bias = attention.qkv.weight, attention.qkv.bias
    expected = []
    for x in tokens:
        q, k, v = (x @ weight[i : i + D].T + bias[i : i + D] for i in (0, D, 2 * D))
        parts = []
        for h in range(HEADS):
            head = slice(h * P, (h + 1) * P)
            parts.append(softmax_rows(q[:, head] @ k[:, head].T / math.sqrt(P)) @ v[:, head])
        expected.append(torch.cat(parts, dim=1) @ attention.proj.weight.T + attention.proj.bias)
    actual = attention(tokens.flatten(0, 1), SHAPES)
    torch.testing.assert_close(actual, torch.cat(expected), rtol=1e-12, atol=1e-12)


def test_mssa_shares_one_projection(tokens: Tensor) -> None:
    attention = randomised(MSSA(D, HEADS))
    expected = [
        mssa_oracle(x, attention.qkv.weight, attention.proj.weight, attention.proj.bias, HEADS)
        for x in tokens
    ]
    actual = attention(tokens.flatten(0, 1), SHAPES)
    torch.testing.assert_close(actual, torch.cat(expected), rtol=1e-12, atol=1e-12)
    assert attention.qkv.bias is None
    assert attention.qkv.weight.shape == (D, D)


@pytest.mark.parametrize("operator", [MHSA, MSSA])
def test_attention_has_the_gradients_of_its_values(operator: type[Attention]) -> None:
    """Checks gradients by finite differences, for tokens and weights, with two resolutions."""
    attention = randomised(operator(D, HEADS))
    names = list(dict(attention.named_parameters()))
    shapes = [(2, 3), (1, 4)]
    x = torch.randn(10, D, dtype=torch.float64, generator=torch.Generator().manual_seed(4))

    def values(x: Tensor, *weights: Tensor) -> Tensor:
        named = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(attention, named, (x, shapes))

    inputs = [x.requires_grad_(), *attention.parameters()]
    assert torch.autograd.gradcheck(values, inputs, fast_mode=True)


def test_a_whole_crate_follows_the_book() -> None:
    """Book (7.3.3)-(7.3.6) with the official embedding: pixels to normalised tokens."""
    backbone = create_backbone(
        "crate_nano_patch4_32", img_size=8, width=D, depth=2, heads=HEADS, in_chans=2
    )
    weights = randomised(backbone).state_dict()
    image = torch.randn(2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def norm(x: Tensor, name: str) -> Tensor:
        return layer_norm(x, weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    patches = []
    for top in (0, 4):
        for left in (0, 4):
            pixels = [image[:, top + i, left + j] for i in range(4) for j in range(4)]
            patches.append(torch.cat(pixels))  # order (p1 p2 c)
    x = norm(torch.stack(patches), "patch_embed.norm_in")
    x = x @ weights["patch_embed.proj.weight"].T + weights["patch_embed.proj.bias"]
    x = torch.cat([weights["cls_token"][0], norm(x, "patch_embed.norm_out")])
    x = x + weights["pos_embed"][0]
    states = []
    for i in range(2):
        attention = f"blocks.{i}.attn"
        half = x + mssa_oracle(
            norm(x, f"blocks.{i}.norm1"),
            weights[f"{attention}.qkv.weight"],
            weights[f"{attention}.proj.weight"],
            weights[f"{attention}.proj.bias"],
            HEADS,
        )
        x = ista_oracle(norm(half, f"blocks.{i}.norm2"), weights[f"blocks.{i}.mlp.weight"])
        states.append((half, x))
    expected = norm(x, "norm")

    features = backbone(image[None])
    torch.testing.assert_close(features.pooled[0], expected[0], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(
        features.patches[0].flatten(0, 1), expected[1:], rtol=1e-11, atol=1e-11
    )
    for actual, wanted in zip(backbone.layer_states(image[None]), states, strict=True):
        torch.testing.assert_close(actual.half[0], wanted[0], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(actual.after[0], wanted[1], rtol=1e-11, atol=1e-11)
