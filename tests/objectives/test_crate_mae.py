"""CRATE-MAE: the whole formula in float64, and what the mask token hides."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.objectives.tiny import build, make_backbone, make_batch, narrow
from vitrail.data.contract import Batch
from vitrail.data.views.plan import RandomResizedCrop
from vitrail.objectives.crate_mae import CRATEMAE, Config

TINY = Config(views=RandomResizedCrop(size=16))

CRATE = "crate_nano_patch4_32"
HEADS, LMBDA = 2, 0.5


def built(seed: int = 5, **changes: object) -> tuple[CRATEMAE, Batch]:
    objective = build(replace(TINY, **changes), make_backbone(CRATE, lmbda=LMBDA))
    assert isinstance(objective, CRATEMAE)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in objective.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return objective.double(), make_batch(objective.views(), 2)


def norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + layer.eps).sqrt() * layer.weight + layer.bias


def mssa(layer: nn.Module, x: Tensor) -> Tensor:
    """Computes one image [n D]: every head projects on its subspace and attends there."""
    parts = []
    for w in (x @ layer.qkv.weight.T).chunk(HEADS, dim=1):
        scores = (w @ w.T / w.shape[1] ** 0.5).exp()
        parts.append(scores / scores.sum(1, keepdim=True) @ w)
    out = torch.cat(parts, dim=1) @ layer.proj.weight.T
    return out if layer.proj.bias is None else out + layer.proj.bias


def predicted(objective: CRATEMAE, image: Tensor, hidden: set[int]) -> Tensor:
    """[N K], from the paper."""
    encoder, decoder = objective.backbone, objective.decoder
    embed, tokens = encoder.patch_embed, [encoder.cls_token[0, 0]]
    for j in range(16):
        top, left = 4 * (j // 4), 4 * (j % 4)
        pixels = image[:, top : top + 4, left : left + 4].permute(1, 2, 0).flatten()
        patch = norm(embed.norm_in, pixels) @ embed.proj.weight.T + embed.proj.bias
        patch = norm(embed.norm_out, patch)
        tokens.append(objective.mask_token[0, 0] if j in hidden else patch)
    x = torch.stack(tokens) + encoder.pos_embed[0]
    for block in encoder.blocks:
        x = x + mssa(block.attn, norm(block.norm1, x))
        y, d = norm(block.norm2, x), block.mlp.weight
        x = torch.relu(y - 0.1 * (y @ d.T @ d - y @ d) - 0.1 * LMBDA)
    x = norm(encoder.norm, x)
    for block in decoder.blocks:
        h = norm(block.norm1, x) @ block.weight.T
        x = h - mssa(block.attn, norm(block.norm2, h))
    return norm(decoder.norm, x)[1:] @ decoder.pred.weight.T + decoder.pred.bias


@pytest.mark.parametrize("norm_pix", [False, True])
def test_loss_is_the_formula(norm_pix: bool) -> None:
    objective, batch = built(norm_pix=norm_pix)
    images = batch.views[0].double()
    loss = objective(replace(batch, views=[images]), 0)["loss"]
    scores, total = batch.draws.uniform("mask", 16), 0.0
    for i in range(2):
        hidden = set(sorted(range(16), key=lambda j, i=i: scores[i, j].item())[4:])
        pixels = predicted(objective, images[i], hidden)
        for j in hidden:
            top, left = 4 * (j // 4), 4 * (j % 4)
            true = images[i, :, top : top + 4, left : left + 4].permute(1, 2, 0).flatten()
            if norm_pix:
                centred = true - true.sum() / 48
                true = centred / ((centred**2).sum() / 47 + 1e-6) ** 0.5
            total += ((pixels[j] - true) ** 2).sum().item() / 48 / (12 * 2)
    assert loss.item() == pytest.approx(total, rel=1e-10)


def test_hidden_pixels_reach_the_loss_only_as_targets() -> None:
    objective, batch = built()
    images = batch.views[0].double()
    before = objective.reconstruct(images, batch.draws)
    hidden = before[2]
    disturbed = images.clone()
    i, j = hidden.nonzero()[0].tolist()
    disturbed[i, :, 4 * (j // 4), 4 * (j % 4)] += 100
    after = objective.reconstruct(disturbed, batch.draws)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    i, j = (~hidden).nonzero()[0].tolist()
    disturbed[i, :, 4 * (j // 4), 4 * (j % 4)] += 100
    assert not torch.equal(objective.reconstruct(disturbed, batch.draws)[1], before[1])


def test_the_decoder_mirrors_the_encoder_and_gets_every_token() -> None:
    backbone = make_backbone(CRATE, registers=3, depth=3, heads=4)
    objective = build(TINY, backbone)
    seen = []
    inner = objective.encoder.encode
    objective.encoder.encode = lambda tokens, draws=None: seen.append(tokens[0]) or inner(tokens)
    assert objective(make_batch(objective.views(), 2), 0)["loss"].isfinite()
    assert [x.shape for x in seen] == [(2, 1 + 3 + 16, 32)]
    assert len(objective.decoder.blocks) == 3
    assert {block.attn.heads for block in objective.decoder.blocks} == {4}


def test_the_mask_token_is_trained_and_positions_are_not() -> None:
    objective, batch = built()
    objective.float()(batch, 0)["loss"].backward()
    assert objective.mask_token.grad.abs().max() > 0
    assert not objective.encoder.pos_embed.requires_grad
    assert (objective.encoder.pos_embed[0, 0] == 0).all()


def test_slices_of_a_batch_have_its_mean_loss() -> None:
    objective, batch = built()
    objective.float()
    parts = [objective(narrow(batch, start, 1), 0)["loss"] for start in range(2)]
    torch.testing.assert_close(torch.stack(parts).mean(), objective(batch, 0)["loss"])


def test_pictures_show_what_the_loss_compares() -> None:
    objective, _ = built()
    (pictures,) = objective.float().pictures(make_batch(objective.views(), 3)).values()
    assert pictures.pixels.shape == (3, len(pictures.columns), 3, 16, 16)
    whole, visible, _, filled = pictures.pixels.unbind(1)
    is_visible = (visible != 0.5).any(1, keepdim=True).expand_as(whole)
    assert is_visible.float().mean() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(filled[is_visible], whole[is_visible])
