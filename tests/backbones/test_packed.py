"""Packing changes speed only; stochastic depth acts per sample and does not see the split."""

import pytest
import torch
from torch import Tensor

from tests.rounding import EXACT
from vitrail.backbones.create import create_backbone
from vitrail.backbones.families import Skeleton
from vitrail.backbones.layers import Block
from vitrail.backbones.registry import BACKBONES
from vitrail.backbones.stochastic_depth import Kept, branch_scales, plan_drops
from vitrail.nn.random import Draws

FAMILIES = [name for name in BACKBONES if name.endswith("nano_patch4_32")]
WITH_REGISTERS = {"registers": 3, "layer_scale": 0.3}


def views(*counts_and_sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(6)
    return [torch.randn(n, 3, s, s, generator=generator) for n, s in counts_and_sizes]


def all_draws(batch_size: int, step: int = 0) -> Draws:
    return Draws(seed=0, step=step, batch_size=batch_size, start=0, count=batch_size)


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_equals_separate_in_values_and_gradients(name: str) -> None:
    backbone = create_backbone(name).double()
    images = [x.double() for x in views((4, 32), (6, 16), (2, 24), (3, 16))]
    results = []
    for packed in (True, False):
        backbone.zero_grad()
        outputs = backbone.forward_packed(images) if packed else [backbone(x) for x in images]
        loss = torch.stack([f.pooled.square().mean() + f.patches.sin().mean() for f in outputs])
        loss.sum().backward()
        flat = [t for f in outputs for t in (f.pooled, f.patches)]
        results.append((flat, [p.grad.clone() for p in backbone.parameters()]))
    for packed, separate in zip(*results, strict=True):
        torch.testing.assert_close(packed, separate, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_images_do_not_see_each_other(name: str) -> None:
    backbone = create_backbone(name).eval()
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


def one_by_one(block: Block, x: Tensor, scales: Tensor) -> Tensor:
    """A layer over the tokens [N, D] of one image, its branches multiplied by the scales."""
    a, b = scales
    x = x + a * block.ls1(block.attn(block.norm1(x), [(1, len(x))]))
    if block.mlp is None:
        return x
    branch = block.ls2(block.mlp(block.norm2(x)))
    return x + b * branch if block.residual else branch


@pytest.mark.parametrize("compiled", [False, True], ids=["skipping", "multiplying"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_sample_whose_branches_are_dropped_passes_by_them(name: str, compiled: bool) -> None:
    backbone = create_backbone(name, depth=2, drop_path=0.5).double().eval()
    backbone.compiled = compiled
    tokens = [backbone.embed(x.double()) for x in views((8, 32), (16, 16))]
    scales = branch_scales(all_draws(8), 24, 0.5, 2).double()
    expected = []
    for row, x in zip(scales, [x for batch in tokens for x in batch], strict=True):
        for block, pair in zip(backbone.blocks, row, strict=True):
            x = one_by_one(block, x, pair)
        expected.append(x)
    assert len(scales.flatten(1).unique(dim=0)) > 2
    shapes = [tuple(batch.shape[:2]) for batch in tokens]
    x = torch.cat([batch.flatten(0, 1) for batch in tokens])
    drops = plan_drops(all_draws(8), shapes, 0.5, 2, x, skip=not compiled)
    for block, drop in zip(backbone.blocks, drops, strict=True):
        x = block(x, shapes, drop)
    torch.testing.assert_close(x, torch.cat(expected), rtol=1e-10, atol=1e-10)
    assert isinstance(drops[1][0], Tensor if compiled else Kept)


@pytest.mark.parametrize("name", FAMILIES)
def test_skipping_the_work_for_dropped_samples_changes_no_gradient(name: str) -> None:
    backbone = create_backbone(name, drop_path=0.6).double()
    images = [x.double() for x in views((2 * 5, 32), (3 * 5, 16))]
    gradients = []
    for backbone.compiled in (False, True):
        backbone.zero_grad()
        outputs = backbone.forward_packed(images, all_draws(5))
        torch.stack(
            [f.pooled.sin().mean() + f.patches.cos().mean() for f in outputs]
        ).sum().backward()
        gradients.append([p.grad.clone() for p in backbone.parameters()])
    for skipped, multiplied in zip(*gradients, strict=True):
        torch.testing.assert_close(skipped, multiplied, rtol=1e-9, atol=1e-11)


def test_a_branch_that_everybody_drops_still_gives_its_parameters_a_gradient() -> None:
    backbone = create_backbone("vit_nano_patch4_32", drop_path=0.99, depth=3)
    step = next(
        step
        for step in range(100)
        if (branch_scales(all_draws(1, step), 1, 0.99, 3)[0, 2] == 0).all()
    )
    backbone(views((1, 32))[0], all_draws(1, step)).pooled.sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())
    assert backbone.blocks[2].mlp.fc1.weight.grad.abs().max() == 0


def test_layers_below_the_threshold_multiply() -> None:
    drops = plan_drops(all_draws(64), [(64, 2)], 0.3, 4, torch.zeros(128, 1))
    kinds = [type(attention) for attention, _ in drops]
    assert kinds == [Tensor, Kept, Kept, Kept]  # rates 0, .1, .2, .3
    kept = drops[3][0]
    assert kept.shapes == [(len(kept.tokens) // 2, 2)]
    assert kept.scale == pytest.approx(1 / 0.7)


@pytest.mark.parametrize("name", FAMILIES)
def test_checkpointing_gives_the_same_gradients(name: str) -> None:
    backbone = create_backbone(name, drop_path=0.5)
    gradients = []
    for backbone.checkpointing in (False, True):
        backbone.zero_grad()
        backbone(views((4, 16))[0], all_draws(4)).pooled.sin().sum().backward()
        gradients.append([p.grad.clone() for p in backbone.parameters() if p.grad is not None])
    for kept, computed_again in zip(*gradients, strict=True):
        assert torch.equal(kept, computed_again)


@pytest.mark.parametrize("name", FAMILIES)
def test_registers_and_layer_scale_are_part_of_every_family(name: str) -> None:
    if not isinstance(BACKBONES[name], Skeleton):
        pytest.skip("the published ToST has LayerScale always, and no registers")
    backbone = create_backbone(name, **WITH_REGISTERS)
    image = views((2, 24))[0]
    assert backbone.embed(image).shape == (2, 1 + 3 + 36, 64)
    assert backbone(image).patches.shape == (2, 6, 6, 64)
    assert backbone.token_maps(image).shape == (2, 2, 6, 6)
    assert backbone.blocks[0].ls1.gamma.tolist() == pytest.approx([0.3] * 64)
    with torch.no_grad():
        plain = backbone(image).pooled
        backbone.register_tokens[:, :, 0] += 5
        assert not torch.allclose(backbone(image).pooled, plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_stochastic_depth_is_the_same_however_the_batch_is_split(name: str) -> None:
    backbone = create_backbone(name, drop_path=0.5).double().eval()
    images = [x.double() for x in views((2 * 6, 32), (3 * 6, 16))]
    whole = backbone.forward_packed(images, all_draws(6))
    for start, count in ((0, 2), (2, 4)):
        part = [x.unflatten(0, (-1, 6))[:, start : start + count].flatten(0, 1) for x in images]
        outputs = backbone.forward_packed(part, all_draws(6).narrow(start, count))
        for mine, every in zip(outputs, whole, strict=True):
            rows = every.pooled.unflatten(0, (-1, 6))[:, start : start + count].flatten(0, 1)
            torch.testing.assert_close(mine.pooled, rows, **EXACT)


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
    zero = torch.zeros(5, 1)
    torch.testing.assert_close(
        block(tokens, [(1, 5)], (zero, zero)), block.mlp(block.norm2(tokens))
    )


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
