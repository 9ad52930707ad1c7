"""Stacks over text: nanoGPT's shell in float64, exact causality, the named language models."""

import math

import pytest
import torch
from torch import Tensor

from vitrail.backbones.layers import Kind
from vitrail.backbones.operators.attention import MHSA
from vitrail.backbones.operators.tokenwise import MLP
from vitrail.backbones.text import (
    AOT_MHSA,
    AOT_MSSA,
    CRATE,
    CRATE_ALPHA,
    GPT,
    LANGUAGE,
    TOST,
    TextBackbone,
    create_text_backbone,
)

CAUSAL = {
    "gpt": GPT,
    "crate": CRATE,
    "crate_alpha": CRATE_ALPHA,
    "tost": TOST,
    "aot_mssa": AOT_MSSA,
    "aot_mhsa": AOT_MHSA,
}
BIDIRECTIONAL = Kind(MHSA, MLP)


def build(kind: Kind, **sizes: int) -> TextBackbone:
    torch.manual_seed(0)
    chosen = {"width": 12, "depth": 2, "heads": 3, "vocabulary": 23, "context": 40} | sizes
    return TextBackbone(kind, **chosen)


def randomised(backbone: TextBackbone) -> TextBackbone:
    generator = torch.Generator().manual_seed(2)
    for parameter in backbone.double().parameters():
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64, generator=generator) / 2
    return backbone


def random_ids(batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(23, (batch, length), generator=torch.Generator().manual_seed(seed))


def norm(x: Tensor, weight: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def causal_softmax(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    parts = []
    for qh, kh, vh in zip(*(x.chunk(heads, dim=1) for x in (q, k, v)), strict=True):
        rows = []
        for t in range(len(qh)):
            weights = (kh[: t + 1] @ qh[t] / math.sqrt(qh.shape[1])).exp()
            rows.append(weights / weights.sum() @ vh[: t + 1])
        parts.append(torch.stack(rows))
    return torch.cat(parts, dim=1)


def causal_statistics(sd: dict[str, Tensor], at: str, w: Tensor, heads: int) -> Tensor:
    """Facts §3, 'ToST causal', token by token."""
    parts, p = w.chunk(heads, dim=1), w.shape[1] // heads
    shares = []
    for t in range(len(w)):
        scores = []
        for h, wh in enumerate(parts):
            total = wh[: t + 1].square().sum(0).clamp(min=1e-12)
            bias = sd[f"{at}.denom_bias"][h, t, 0]
            share = sum(wh[t, c] ** 2 / total[c] + bias for c in range(p))
            scores.append(sd[f"{at}.temp"][h, 0] * share)
        weights = torch.stack(scores).exp()
        shares.append(weights / weights.sum())
    pi = torch.stack(shares)  # [N h]
    out = []
    for h, wh in enumerate(parts):
        rows = []
        for t in range(len(w)):
            before = pi[: t + 1, h]
            dots = (before[:, None] * wh[: t + 1].square()).sum(0) / (before.sum() + 1e-8)
            rows.append(-wh[t] * pi[t, h] / (1 + dots))
        out.append(torch.stack(rows))
    return torch.cat(out, dim=1)


def tokenwise(sd: dict[str, Tensor], at: str, u: Tensor, name: str) -> Tensor:
    """Returns the output after the second norm; of CRATE in place of the tokens, else added."""
    if name == "crate":
        d = sd[f"{at}.weight"]
        return (u + 0.1 * (u - u @ d.T) @ d - 0.01).relu()
    if name == "crate_alpha":
        d, z = sd[f"{at}.D"], 0
        for _ in range(2):
            z = (z - 0.1 * (z @ d.T - u if torch.is_tensor(z) else -u) @ d - 0.01).relu()
        return z @ sd[f"{at}.D1"].T
    return gelu(u @ sd[f"{at}.fc1.weight"].T) @ sd[f"{at}.fc2.weight"].T


def oracle(backbone: TextBackbone, ids: Tensor, name: str) -> Tensor:
    """nanoGPT's forward pass with the family's operators, for one sequence."""
    sd, heads = backbone.state_dict(), backbone.blocks[0].attn.heads
    x = sd["wte.weight"][ids] + sd["wpe.weight"][: len(ids)]
    for i in range(len(backbone.blocks)):
        at = f"blocks.{i}"
        projected = norm(x, sd[f"{at}.norm1.weight"]) @ sd[f"{at}.attn.qkv.weight"].T
        if name == "tost":
            mixed = causal_statistics(sd, f"{at}.attn", projected, heads)
        else:
            shared = "crate" in name or "mssa" in name
            parts = [projected] * 3 if shared else projected.chunk(3, dim=1)
            mixed = causal_softmax(*parts, heads)
        x = x + sd.get(f"{at}.ls1.gamma", 1) * (mixed @ sd[f"{at}.attn.proj.weight"].T)
        if not name.startswith("aot"):
            branch = tokenwise(sd, f"{at}.mlp", norm(x, sd[f"{at}.norm2.weight"]), name)
            x = branch if name == "crate" else x + sd.get(f"{at}.ls2.gamma", 1) * branch
    return norm(x, sd["norm.weight"])


@pytest.mark.parametrize("name", CAUSAL)
def test_a_language_model_is_its_formulas(name: str) -> None:
    backbone = randomised(build(CAUSAL[name]))
    ids = random_ids(2, 7)
    features = backbone(ids)
    for sequence, result in zip(ids, features, strict=True):
        expected = oracle(backbone, sequence, name)
        torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-11)
    scores = features @ backbone.state_dict()["wte.weight"].T
    torch.testing.assert_close(backbone.logits(features), scores)
    torch.testing.assert_close(backbone.logits(features[:, -1]), scores[:, -1])


@pytest.mark.parametrize(("length", "t"), [(2, 0), (7, 3), (40, 0), (40, 38)])
@pytest.mark.parametrize("name", CAUSAL)
def test_later_tokens_do_not_change_a_bit(name: str, length: int, t: int) -> None:
    backbone = randomised(build(CAUSAL[name]))
    ids = random_ids(3, length)
    changed = ids.clone()
    changed[:, t + 1 :] = (ids[:, t + 1 :] + 1 + random_ids(3, length - t - 1) % 22) % 23
    before, after = backbone(ids), backbone(changed)
    assert torch.equal(before[:, : t + 1], after[:, : t + 1])
    assert torch.equal(backbone.logits(before[:, : t + 1]), backbone.logits(after[:, : t + 1]))
    assert not torch.equal(before[:, t + 1 :], after[:, t + 1 :])


def test_bidirectional_layers_see_the_whole_sequence() -> None:
    backbone = randomised(build(BIDIRECTIONAL))
    ids = random_ids(3, 7)
    changed = ids.clone()
    changed[1, -1] = (ids[1, -1] + 1) % 23
    differs = (backbone(ids) != backbone(changed)).any(dim=2)
    assert differs.tolist() == [[False] * 7, [True] * 7, [False] * 7]


@pytest.mark.parametrize("name", CAUSAL)
def test_every_parameter_learns_and_the_model_knows_what_not_to_decay(name: str) -> None:
    backbone = randomised(build(CAUSAL[name], context=7))
    ids = torch.arange(23)[:21].view(3, 7)
    backbone.logits(backbone(ids)).sin().sum().backward()
    assert [n for n, p in backbone.named_parameters() if not p.grad.any()] == []
    free = backbone.no_weight_decay()
    assert free <= set(dict(backbone.named_parameters()))
    assert len(free) == (4 if name == "tost" else 0)


def test_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        backbone = randomised(build(GPT))
        backbone.checkpointing = checkpointing
        backbone(random_ids(2, 7)).sin().sum().backward()
        gradients.append([p.grad for p in backbone.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, rtol=1e-12, atol=1e-12)


def test_initial_weights_are_nanogpts() -> None:
    backbone = build(TOST, width=192, depth=2, heads=3, vocabulary=500, context=64)
    for name, std in (
        ("wte", 0.02),
        ("wpe", 0.02),
        ("blocks.0.attn.qkv", 0.02),
        ("blocks.1.mlp.fc1", 0.02),
        ("blocks.0.attn.proj", 0.01),  # 0.02/√(2·2)
        ("blocks.1.mlp.fc2", 0.01),
    ):
        weight = backbone.get_submodule(name).weight
        assert weight.std().item() == pytest.approx(std, rel=0.03)
    assert (backbone.blocks[0].ls1.gamma == 1e-5).all()
    assert not backbone.blocks[0].attn.denom_bias.any()
    assert backbone.blocks[0].attn.denom_bias.shape == (3, 64, 1)
    assert {m.eps for m in backbone.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-5}
    assert [n for n, _ in backbone.named_parameters() if n.endswith("bias")] == [
        f"blocks.{i}.attn.denom_bias" for i in range(2)
    ]
    assert not build(BIDIRECTIONAL).blocks[0].mlp.fc1.bias.any()


def test_a_named_model_is_drawn_from_its_seed_alone() -> None:
    torch.manual_seed(5)
    expected_next = torch.rand(3)
    torch.manual_seed(5)
    first = create_text_backbone("gpt2_small", vocabulary=11, context=5, seed=3)
    assert torch.equal(torch.rand(3), expected_next)
    second = create_text_backbone("gpt2_small", vocabulary=11, context=5, seed=3)
    other = create_text_backbone("gpt2_small", vocabulary=11, context=5, seed=4)
    assert torch.equal(first.wte.weight, second.wte.weight)
    assert not torch.equal(first.wte.weight, other.wte.weight)
    assert first(torch.arange(5)[None]).shape == (1, 5, 512)
    assert LANGUAGE["gpt2_small"].depth == len(first.blocks)


@pytest.mark.parametrize("wrong", [-1, 23, 24])
def test_a_token_outside_the_vocabulary_is_named(wrong: int) -> None:
    ids = random_ids(2, 4)
    ids[1, 2] = wrong
    with pytest.raises(ValueError, match=f"token {wrong} is outside the vocabulary of 23"):
        build(GPT)(ids)


@pytest.mark.parametrize("name", ["gpt", "tost"])
def test_a_sequence_that_does_not_fit_is_named(name: str) -> None:
    backbone = build(CAUSAL[name])
    assert backbone(random_ids(1, 40)).shape == (1, 40, 12)
    for length in (0, 41):
        with pytest.raises(ValueError, match=f"sequence of {length} tokens .* context of 40"):
            backbone(random_ids(1, length))


def test_a_model_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="unknown language model 'gpt3'; known: gpt2_small"):
        create_text_backbone("gpt3")
    with pytest.raises(ValueError, match="gpt2_small: context is 0"):
        create_text_backbone("gpt2_small", context=0)
