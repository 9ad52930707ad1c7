"""Packing changes speed only; stochastic depth acts per sample and does not see the split."""

import pytest
import torch
from torch import Tensor

from vitrail.backbones.registry import create_backbone
from vitrail.backbones.stochastic_depth import branch_scales
from vitrail.nn.random import Draws

FAMILIES = ["vit_nano_patch4_32", "crate_nano_patch4_32"]


def views(*counts_and_sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(6)
    return [torch.randn(n, 3, s, s, generator=generator) for n, s in counts_and_sizes]


def all_draws(batch_size: int, step: int = 0) -> Draws:
    return Draws(seed=0, step=step, batch_size=batch_size, start=0, count=batch_size)


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_equals_separate_in_values_and_gradients(name: str) -> None:
    backbone = create_backbone(name)
    images = views((4, 32), (6, 16), (2, 24), (3, 16))
    results = []
    for packed in (True, False):
        backbone.zero_grad()
        outputs = backbone.forward_packed(images) if packed else [backbone(x) for x in images]
        loss = torch.stack([f.pooled.square().mean() + f.patches.sin().mean() for f in outputs])
        loss.sum().backward()
        flat = [t for f in outputs for t in (f.pooled, f.patches)]
        results.append((flat, [p.grad.clone() for p in backbone.parameters()]))
    for packed, separate in zip(*results, strict=True):
        torch.testing.assert_close(packed, separate, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_images_do_not_see_each_other(name: str) -> None:
    backbone = create_backbone(name)
    images = views((3, 32), (2, 16))
    before = backbone.forward_packed(images)
    images[0][1] += 1
    after = backbone.forward_packed(images)
    changed = (before[0].pooled != after[0].pooled).any(dim=1)
    assert changed.tolist() == [False, True, False]
    assert torch.equal(before[1].pooled, after[1].pooled)


def test_scales_drop_at_a_linearly_increasing_rate_and_keep_the_expectation() -> None:
    depth, drop_path = 4, 0.6
    scales = branch_scales(all_draws(20_000), 20_000, drop_path, depth)
    assert scales.shape == (20_000, depth, 2)
    rates = torch.tensor([0.0, 0.2, 0.4, 0.6])
    dropped = (scales == 0).float().mean(dim=0)
    torch.testing.assert_close(dropped, rates[:, None].expand(4, 2), rtol=0, atol=0.015)
    torch.testing.assert_close(scales.mean(dim=0), torch.ones(4, 2), rtol=0, atol=0.03)
    kept = scales.amax(dim=0)
    torch.testing.assert_close(kept, (1 / (1 - rates))[:, None].expand(4, 2))
    # Branches and samples are dropped independently.
    both = ((scales[:, 3, 0] == 0) & (scales[:, 3, 1] == 0)).float().mean()
    assert both.item() == pytest.approx(0.36, abs=0.015)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_sample_whose_branches_are_dropped_passes_by_them(name: str) -> None:
    backbone = create_backbone(name, depth=2, drop_path=0.5)
    images = views((16, 32))
    draws = all_draws(16)
    scales = branch_scales(draws, 16, 0.5, 2)
    tokens = backbone.embed(images[0])
    expected = []
    for row, x in zip(scales, tokens, strict=True):
        for block, (a, b) in zip(backbone.blocks, row, strict=True):
            x = x + a * block.attn(block.norm1(x), [(1, len(x))])
            branch = block.mlp(block.norm2(x))
            x = x + b * branch if name.startswith("vit") else branch
        expected.append(backbone.norm(x)[0])
    assert len(scales.flatten(1).unique(dim=0)) > 2
    actual = backbone.forward_packed(images, draws)[0].pooled
    torch.testing.assert_close(actual, torch.stack(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_stochastic_depth_is_the_same_however_the_batch_is_split(name: str) -> None:
    backbone = create_backbone(name, drop_path=0.5)
    images = views((2 * 6, 32), (3 * 6, 16))
    whole = backbone.forward_packed(images, all_draws(6))
    for start, count in ((0, 2), (2, 4)):
        part = [x.unflatten(0, (-1, 6))[:, start : start + count].flatten(0, 1) for x in images]
        outputs = backbone.forward_packed(part, all_draws(6).narrow(start, count))
        for mine, every in zip(outputs, whole, strict=True):
            rows = every.pooled.unflatten(0, (-1, 6))[:, start : start + count].flatten(0, 1)
            torch.testing.assert_close(mine.pooled, rows, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_without_draws_or_rate_nothing_is_dropped(name: str) -> None:
    images = views((4, 32))[0]
    plain = create_backbone(name)(images).pooled
    dropping = create_backbone(name, drop_path=0.9)
    assert torch.equal(dropping(images).pooled, plain)
    assert torch.equal(create_backbone(name)(images, all_draws(4)).pooled, plain)
    assert not torch.equal(dropping(images, all_draws(4)).pooled, plain)
    assert not torch.equal(
        dropping(images, all_draws(4)).pooled, dropping(images, all_draws(4, step=1)).pooled
    )


def test_drop_path_leaves_crates_tokenwise_operator_alone() -> None:
    """It has no residual to fall back on: dropping it would drop the token."""
    backbone = create_backbone("crate_nano_patch4_32", depth=1)
    block = backbone.blocks[0]
    tokens = torch.randn(5, 64)
    zero = torch.zeros(5, 2)
    torch.testing.assert_close(block(tokens, [(1, 5)], zero), block.mlp(block.norm2(tokens)))


@pytest.mark.parametrize("name", FAMILIES)
def test_bf16_autocast_stays_close(name: str) -> None:
    backbone = create_backbone(name)
    images = views((2, 32), (4, 16))
    exact = backbone.forward_packed(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = backbone.forward_packed(images)
        assert torch.isfinite(backbone.token_maps(images[0])).all()
    for a, b in zip(exact, rough, strict=True):
        torch.testing.assert_close(a.pooled, b.pooled.float(), rtol=0.05, atol=0.1)
