"""MAE: the formula in float64, Hugging Face's model at copied weights, and what is hidden."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from tests.objectives.tiny import CONFIGS, build, make_backbone, make_batch, narrow
from vitrail.backbones.decoder import patchify
from vitrail.data.contract import Batch
from vitrail.data.views.plan import RandomResizedCrop
from vitrail.nn.masking import count_visible
from vitrail.objectives.mae import MAE, Config

TINY = Config(views=RandomResizedCrop(size=16), decoder_width=16, decoder_depth=1, decoder_heads=2)

NAMES = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def scattered(objective: nn.Module) -> None:
    """Weights that let every part of the network be seen in the loss."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in objective.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=generator))


def named(ours: dict[str, Tensor], theirs: str) -> dict[str, Tensor]:
    """Our layers' weights under Hugging Face's names."""
    out = {}
    for key, value in ours.items():
        layer, _, rest = key.partition(".")
        part, _, kind = rest.rpartition(".")
        if part == "attn.qkv":
            for name, piece in zip("qkv", value.chunk(3), strict=True):
                out[f"{theirs}.{layer}.attention.{name}_proj.{kind}"] = piece
        else:
            out[f"{theirs}.{layer}.{NAMES[part]}.{kind}"] = value
    return out


def published_positions(dim: int) -> Tensor:
    """Returns transformers' positions of a 4 × 4 grid, columns first as in MAE's weights."""
    rows, columns = build_2d_sinusoidal_position_embedding(4, 4, dim, cls_token=True).chunk(2, 1)
    return torch.cat([columns, rows], dim=1).unsqueeze(0)


def hugging_face(objective: MAE) -> ViTMAEForPreTraining:
    """Their model with our weights, and their own positions."""
    backbone, decoder, config = objective.backbone, objective.decoder, objective.config
    peer = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=backbone.embed_dim,
            num_hidden_layers=len(backbone.blocks),
            num_attention_heads=backbone.heads,
            intermediate_size=4 * backbone.embed_dim,
            image_size=backbone.img_size,
            patch_size=backbone.patch_size,
            decoder_hidden_size=config.decoder_width,
            decoder_num_hidden_layers=config.decoder_depth,
            decoder_num_attention_heads=config.decoder_heads,
            decoder_intermediate_size=4 * config.decoder_width,
            mask_ratio=config.mask_ratio,
            norm_pix_loss=config.norm_pix,
            layer_norm_eps=1e-6,
        )
    )
    theirs = {
        "vit.embeddings.cls_token": backbone.cls_token,
        "vit.embeddings.position_embeddings": published_positions(backbone.embed_dim),
        "decoder.decoder_pos_embed": published_positions(config.decoder_width),
        "decoder.mask_token": decoder.mask_token,
        **named(backbone.blocks.state_dict(), "vit.layers"),
        **named(decoder.blocks.state_dict(), "decoder.decoder_layers"),
    }
    modules = {
        "vit.embeddings.patch_embeddings.projection": backbone.patch_embed.proj,
        "vit.layernorm": backbone.norm,
        "decoder.decoder_embed": decoder.embed,
        "decoder.decoder_norm": decoder.norm,
        "decoder.decoder_pred": decoder.pred,
    }
    for name, module in modules.items():
        theirs |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    peer.load_state_dict(theirs)
    return peer


def built(**changes: object) -> tuple[MAE, Batch]:
    objective = build(replace(TINY, **changes))
    assert isinstance(objective, MAE)
    scattered(objective)
    return objective, make_batch(objective.views(), 4)


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("ratio", [0.75, 0.5])
def test_loss_and_gradients_equal_hugging_faces(norm_pix: bool, ratio: float) -> None:
    objective, batch = built(norm_pix=norm_pix, mask_ratio=ratio)
    peer = hugging_face(objective)
    expected = peer(batch.views[0], noise=batch.draws.uniform("mask", 16))
    loss = objective(batch, 0)["loss"]
    torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=1e-5)
    loss.backward()
    expected.loss.backward()
    pairs = [
        (objective.backbone.patch_embed.proj, peer.vit.embeddings.patch_embeddings.projection),
        (objective.backbone.blocks[0].mlp.fc1, peer.vit.layers[0].mlp.fc1),
        (objective.decoder.pred, peer.decoder.decoder_pred),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("norm_pix", [True, False])
def test_loss_is_the_formula(norm_pix: bool) -> None:
    objective, batch = built(norm_pix=norm_pix)
    objective.double()
    images = batch.views[0].double()
    loss = objective(replace(batch, views=[images]), 0)["loss"].item()
    _, predicted, _ = objective.reconstruct(images, batch.draws)
    scores = batch.draws.uniform("mask", 16)
    total = 0.0
    for i in range(4):
        hidden = sorted(range(16), key=lambda j, i=i: scores[i, j].item())[4:]
        for j in hidden:
            top, left = 4 * (j // 4), 4 * (j % 4)
            true = images[i, :, top : top + 4, left : left + 4].permute(1, 2, 0).flatten()
            if norm_pix:
                centred = true - true.sum() / 48
                true = centred / ((centred**2).sum() / 47 + 1e-6) ** 0.5
            total += ((predicted[i, j] - true) ** 2).sum().item() / 48 / (12 * 4)
    assert loss == pytest.approx(total, rel=1e-12)


def test_hidden_pixels_reach_the_loss_only_as_targets() -> None:
    objective, batch = built()
    images = batch.views[0]
    class_token, predicted, hidden = objective.reconstruct(images, batch.draws)
    assert hidden.sum(1).tolist() == [12] * 4
    disturbed = images.clone()
    i, j = hidden.nonzero()[0].tolist()
    disturbed[i, :, 4 * (j // 4), 4 * (j % 4)] += 100
    again = objective.reconstruct(disturbed, batch.draws)
    assert torch.equal(again[0], class_token)
    assert torch.equal(again[1], predicted)
    i, j = (~hidden).nonzero()[0].tolist()
    disturbed[i, :, 4 * (j // 4), 4 * (j % 4)] += 100
    assert not torch.equal(objective.reconstruct(disturbed, batch.draws)[0], class_token)


def test_the_encoder_sees_only_prefix_and_visible_tokens() -> None:
    objective = build(TINY, make_backbone(registers=3))
    seen, given, decoder = [], [], objective.decoder.forward
    encode = objective.encoder.encode

    def watched(tokens: list[Tensor]) -> list[Tensor]:
        seen.extend([tokens[0], encode(tokens)[0]])
        return seen[1:]

    objective.encoder.encode = watched
    objective.decoder.forward = lambda x, *rest: given.append(x) or decoder(x, *rest)
    out = objective(make_batch(objective.views(), 2), 0)
    assert [x.shape for x in seen] == [(2, 1 + 3 + 4, 32)] * 2
    # The decoder gets no registers.
    assert torch.equal(given[0], seen[1][:, [0, 4, 5, 6, 7]])
    assert torch.equal(out["features"], seen[1][:, 0])


def test_masks_follow_the_step_and_the_sample_and_not_the_slice() -> None:
    objective, batch = built()
    hidden = objective.reconstruct(batch.views[0], batch.draws)[2]
    part = narrow(batch, 1, 2)
    assert torch.equal(objective.reconstruct(part.views[0], part.draws)[2], hidden[1:3])
    other = make_batch(objective.views(), 4, step=1)
    assert not torch.equal(objective.reconstruct(other.views[0], other.draws)[2], hidden)
    assert len(hidden.unique(dim=0)) > 1


def test_slices_of_a_batch_have_its_mean_loss() -> None:
    objective, batch = built()
    assert not objective.batch_coupled
    parts = [objective(narrow(batch, start, 1), 0)["loss"] for start in range(4)]
    torch.testing.assert_close(torch.stack(parts).mean(), objective(batch, 0)["loss"])


def test_one_image_trains() -> None:
    objective, _ = built()
    loss = objective(make_batch(objective.views(), 1), 0)["loss"]
    loss.backward()
    assert loss.isfinite()


def test_positions_are_fixed_and_as_published() -> None:
    objective, _ = built()
    positions = objective.encoder.pos_embed
    assert not positions.requires_grad
    assert not any(p is positions for g in objective.param_groups() for p in g["params"])
    assert (positions[0, 0] == 0).all()
    torch.testing.assert_close(positions, published_positions(32), rtol=1e-5, atol=1e-6)


def test_positions_of_its_own_stay_and_are_trained_if_asked_for() -> None:
    objective, _ = built(fixed_positions=False)
    assert objective.encoder.pos_embed.requires_grad
    fresh = build(replace(TINY, fixed_positions=False)).encoder.pos_embed
    assert torch.equal(fresh, make_backbone()(0.0).pos_embed)


@pytest.mark.parametrize("norm_pix", [True, False])
def test_pictures_are_of_the_pixels(norm_pix: bool) -> None:
    objective, batch = built(norm_pix=norm_pix)
    std, mean = (
        torch.tensor(values)[:, None, None]
        for values in (objective.views().std, objective.views().mean)
    )
    shown = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    batch = replace(batch, views=[(shown - mean) / std])
    target = patchify(batch.views[0], 4)
    if norm_pix:
        target = (target - target.mean(-1, keepdim=True)) / (
            target.var(-1, keepdim=True) + 1e-6
        ).sqrt()
    objective.decoder.forward = lambda *_: target  # a perfect prediction
    (name, (columns, pixels)) = next(iter(objective.pictures(batch).items()))
    assert name == "reconstruction"
    assert pixels.shape == (4, len(columns), 3, 16, 16)
    for column in (0, 2, 3):
        torch.testing.assert_close(pixels[:, column], shown, rtol=1e-4, atol=1e-5)
    # Hidden pixels are grey, and no others: 4 of 16 patches are visible.
    is_true = (pixels[:, 1] - shown).abs().amax(1) < 1e-5
    assert is_true.float().mean(dim=(1, 2)).tolist() == [0.25] * 4
    assert (pixels[:, 1].movedim(1, -1)[~is_true] == 0.5).all()


def test_pictures_are_of_the_first_eight_and_leave_no_gradient() -> None:
    objective, _ = built()
    before = [p.clone() for p in objective.parameters()]
    (pictures,) = objective.pictures(make_batch(objective.views(), 11)).values()
    assert len(pictures.pixels) == 8
    assert pictures.pixels.min() >= 0
    assert pictures.pixels.max() <= 1
    assert not pictures.pixels.requires_grad
    assert all(torch.equal(p, b) for p, b in zip(objective.parameters(), before, strict=True))


@pytest.mark.parametrize("name", ["mae", "crate_mae"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_ratio": 0.0}, "mask_ratio is 0.0"),
        ({"mask_ratio": 1.0}, "mask_ratio is 1.0"),
        ({"mask_ratio": 0.99}, "leaves 0 of 16 patches visible"),
    ],
)
def test_ratios_that_leave_nothing_are_refused(
    name: str, changes: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        build(replace(CONFIGS[name], **changes))


def test_the_smallest_ratio_hides_one_patch() -> None:
    assert count_visible(16, 0.0001) == 15


def test_a_single_patch_and_single_values_are_refused() -> None:
    with pytest.raises(ValueError, match="of 1 patches visible"):
        build(TINY, make_backbone(patch_size=16))
    grey = RandomResizedCrop(size=16, mean=(0.5,), std=(0.5,))
    with pytest.raises(ValueError, match="norm_pix needs patches of several values"):
        build(replace(TINY, views=grey), make_backbone(patch_size=1, in_chans=1))


def test_a_decoder_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="decoder_depth is 0"):
        Config(decoder_depth=0)
    with pytest.raises(ValueError, match="width 18"):
        build(replace(TINY, decoder_width=18))
