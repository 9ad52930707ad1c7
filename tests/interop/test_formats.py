"""Other people's layouts, written out key by key: recognised, renamed, and read as backbones."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.interop import layouts
from tests.interop.layouts import DEPTH, GRID, PATCH, WIDTH, Weights, prefixed
from tests.rounding import EXACT
from vitrail.backbones.create import create_backbone
from vitrail.backbones.families import Skeleton, ToSTModel
from vitrail.backbones.layers import Block
from vitrail.backbones.operators.tokenwise import ODL
from vitrail.backbones.registry import BACKBONES
from vitrail.backbones.skeleton import SkeletonBackbone
from vitrail.backbones.tost import ToST
from vitrail.interop.read.formats import FORMATS
from vitrail.interop.read.load import Official, load_official, read_official

SIDE = PATCH * GRID


def saved(folder: Path, content: object) -> Path:
    torch.save(content, folder / "weights.pth")
    return folder / "weights.pth"


def saved_npz(folder: Path, weights: Weights) -> Path:
    path = folder / "weights.npz"
    np.savez(path, **{key: value.numpy() for key, value in weights.items()})  # type: ignore[arg-type]
    return path


def built(official: Official) -> SkeletonBackbone:
    backbone = official.build().eval()
    assert isinstance(backbone, SkeletonBackbone)
    return backbone


def full(teacher: Weights, **more: object) -> dict[str, object]:
    """Returns a checkpoint as DINO and SimDINO v1 write it while they train."""
    student = {key: value + 1 for key, value in teacher.items()}
    args = argparse.Namespace(arch="vit_small", patch_size=16)
    rest = {"optimizer": {"state": {}}, "epoch": 100, "args": args}
    return {"student": student, "teacher": teacher, **rest, **more}


def simdino() -> dict[str, object]:
    inner = prefixed(layouts.dino_backbone(), "backbone.")
    inner |= prefixed(layouts.dino_head(last=False), "head.")
    content = full(prefixed(inner, "_orig_mod."), dino_loss={})
    return content | {"student": prefixed(inner, "_orig_mod.module.")}


def dino() -> dict[str, object]:
    teacher = prefixed(layouts.dino_backbone(), "backbone.")
    teacher |= prefixed(layouts.dino_head(last=True), "head.")
    return full(teacher, dino_loss={"center": torch.zeros(1, 40)})


def timm_vit() -> Weights:
    return layouts.dino_backbone() | {
        "head.weight": torch.zeros(10, WIDTH),
        "head.bias": torch.zeros(10),
    }


CASES = {
    "DINO (backbone)": (layouts.dino_backbone(), "vit", False),
    "DINO": (dino(), "vit", False),
    "SimDINO": (simdino(), "vit", False),
    "DINOv2": (layouts.dinov2(), "dinov2", False),
    "DINOv2 with registers": (layouts.dinov2(registers=4), "dinov2", True),
    "SimDINOv2": ({"teacher": layouts.simdinov2()}, "dinov2", True),
    "DINOv2 (training code)": ({"teacher": layouts.dinov2_teacher()}, "dinov2", False),
    "DINOv2 with registers (training code)": (
        {"teacher": layouts.dinov2_teacher(registers=4)},
        "dinov2",
        True,
    ),
    "MAE": ({"model": layouts.mae(), "optimizer": {}, "epoch": 3}, "vit", True),
    "MAE (encoder)": ({"model": layouts.dino_backbone()}, "vit", True),
    "ViT (timm)": (timm_vit(), "vit", True),
    "CRATE": ({"state_dict": prefixed(layouts.crate(), "module.")}, "crate", True),
    "CRATE-α": (layouts.crate_alpha(), "crate_alpha", True),
    "CRATE-MAE": ({"model": layouts.crate_mae()}, "crate_mae", False),
}


@pytest.mark.parametrize("name", CASES)
def test_a_layout_is_recognised_and_becomes_a_backbone(tmp_path: Path, name: str) -> None:
    content, family, antialias = CASES[name]
    official = read_official(saved(tmp_path, content))
    assert official.format == name
    row = BACKBONES[official.backbone]
    assert isinstance(row, Skeleton)
    assert row.family == family
    backbone = built(official)
    assert (backbone.embed_dim, len(backbone.blocks)) == (WIDTH, DEPTH)
    assert (backbone.patch_size, backbone.grid, backbone.in_chans) == (PATCH, GRID, 3)
    assert backbone.antialias is antialias
    features = backbone(torch.randn(2, 3, SIDE, SIDE))
    assert features.pooled.isfinite().all()
    again = create_backbone(**backbone.config)
    assert again.state_dict().keys() == backbone.state_dict().keys()
    assert official.preprocess["size"] == SIDE


def test_every_format_is_tested() -> None:
    elsewhere = {f.name for f in FORMATS if "transformers" in f.name or "timm)" in f.name}
    assert {f.name for f in FORMATS} - elsewhere - {"vitrail", "ToST", "CRATE-α (JAX)"} <= set(
        CASES
    )


@pytest.mark.parametrize("name", ["DINO", "SimDINO"])
def test_the_teacher_is_taken_and_the_head_is_not(tmp_path: Path, name: str) -> None:
    weights = read_official(saved(tmp_path, CASES[name][0])).weights
    expected = layouts.dino_backbone()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)


def test_without_a_teacher_the_student_is_taken(tmp_path: Path) -> None:
    student = {"student": prefixed(layouts.dino_backbone(5), "module.backbone.")}
    weights = read_official(saved(tmp_path, student)).weights
    assert torch.equal(weights["norm.bias"], layouts.dino_backbone(5)["norm.bias"])


def test_simdinov2s_chunks_are_taken_apart(tmp_path: Path) -> None:
    official = read_official(saved(tmp_path, {"teacher": layouts.simdinov2()}))
    flat = layouts.dinov2(registers=4)
    del flat["mask_token"]
    assert official.weights.keys() == flat.keys()
    assert all(torch.equal(official.weights[key], flat[key]) for key in flat)


def test_giants_gated_mlp_is_read(tmp_path: Path) -> None:
    official = read_official(saved(tmp_path, layouts.dinov2(swiglu=True)))
    assert official.backbone == "vit_giant_patch14_dinov2"
    assert torch.equal(
        built(official).state_dict()["blocks.1.mlp.w12.weight"],
        layouts.dinov2(swiglu=True)["blocks.1.mlp.w12.weight"],
    )


def sized(width: int, patch: int, grid: int, scale: bool = False) -> Weights:
    """A ViT's weights of a published size, all of them views of one zero."""
    shapes = layouts.embeddings(width, patch, grid) | layouts.norm("norm", width)
    for i in range(12):
        shapes |= layouts.vit_block(f"blocks.{i}", width, scale)
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}


@pytest.mark.parametrize(
    ("weights", "name", "kwargs"),
    [
        (sized(384, 16, 14), "vit_small_patch16_224", {"antialias": False}),
        (sized(384, 8, 28), "vit_small_patch8_224", {"antialias": False}),
        (sized(768, 16, 24), "vit_base_patch16_224", {"antialias": False, "img_size": 384}),
        (sized(384, 14, 37, True) | {"mask_token": torch.zeros(1, 384)}, None, {}),
    ],
)
def test_published_sizes_are_the_tables_rows(
    tmp_path: Path, weights: Weights, name: str | None, kwargs: dict[str, object]
) -> None:
    official = read_official(saved(tmp_path, weights))
    assert official.backbone == (name or "vit_small_patch14_dinov2")
    assert official.kwargs == kwargs
    if name is None:  # learned at 518, evaluated at 224
        assert (official.preprocess["size"], official.preprocess["resize"]) == (224, 256)


def test_simdinov2_is_the_nearest_row_with_overrides(tmp_path: Path) -> None:
    weights = sized(384, 16, 14, True) | {"register_tokens": torch.zeros(1, 4, 384)}
    dino_head = {"dino_head.mlp.0.weight": torch.zeros(4, 4)}
    content = {"teacher": prefixed(weights | dino_head, "backbone.")}
    official = read_official(saved(tmp_path, content))
    assert official.backbone == "vit_small_patch14_reg4_dinov2"
    assert official.kwargs == {"patch_size": 16, "img_size": 224}


def published_positions(table: Tensor, grid: int, side: tuple[int, int]) -> Tensor:
    """DINO 7c446df and DINOv2 b8931f7: bicubic, no antialiasing, 0.1 added to both sizes."""
    square = table[:, 1:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    scales = ((side[0] + 0.1) / grid, (side[1] + 0.1) / grid)
    resized = F.interpolate(square, scale_factor=scales, mode="bicubic")
    return torch.cat([table[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


@pytest.mark.parametrize("name", ["DINO (backbone)", "DINOv2", "CRATE-MAE"])
@pytest.mark.parametrize("side", [(6, 6), (3, 5)])
def test_positions_at_other_sizes_are_dinos(
    tmp_path: Path, name: str, side: tuple[int, int]
) -> None:
    backbone = built(read_official(saved(tmp_path, CASES[name][0]))).double()
    expected = published_positions(backbone.pos_embed.detach(), GRID, side)
    torch.testing.assert_close(backbone.positions(side), expected, **EXACT)


REGISTERED = {
    "hub": layouts.dinov2(registers=4),
    "SimDINOv2": {"teacher": layouts.simdinov2()},
    "SimDINOv2 without registers": {
        "teacher": layouts.dinov2() | prefixed(layouts.dino_head(last=False), "dino_head.")
    },
    "training": {"teacher": layouts.dinov2_teacher(registers=4)},
}


@pytest.mark.parametrize("name", REGISTERED)
def test_positions_at_other_sizes_with_registers(tmp_path: Path, name: str) -> None:
    """DINOv2 with registers, and SimDINOv2: antialiasing, and sizes as they are."""
    backbone = built(read_official(saved(tmp_path, REGISTERED[name]))).double()
    square = backbone.pos_embed[:, 1:].unflatten(1, (GRID, GRID)).permute(0, 3, 1, 2)
    resized = F.interpolate(square, size=(6, 3), mode="bicubic", antialias=True)
    expected = resized.permute(0, 2, 3, 1).flatten(1, 2)
    torch.testing.assert_close(backbone.positions((6, 3))[:, 1:], expected, **EXACT)


@pytest.mark.parametrize(
    ("content", "inner", "last"),
    [
        (layouts.crate(), 1e-5, 1e-5),
        (layouts.crate_alpha(), 1e-6, 1e-5),
        ({"model": layouts.crate_mae()}, 1e-5, 1e-6),
        (layouts.dino_backbone(), 1e-6, 1e-6),
    ],
)
def test_norms_have_the_epsilons_of_the_code(
    tmp_path: Path, content: dict, inner: float, last: float
) -> None:
    backbone = built(read_official(saved(tmp_path, content)))
    assert {block.norm1.eps for block in backbone.blocks} == {inner}
    assert backbone.norm.eps == last
    assert create_backbone(**backbone.config).norm.eps == last


def test_maes_fine_tuned_files_are_refused_by_name(tmp_path: Path) -> None:
    weights = layouts.dino_backbone()
    tuned = {
        key.replace("norm.", "fc_norm.", 1) if key.startswith("norm.") else key: value
        for key, value in weights.items()
    }
    with pytest.raises(ValueError, match="mean over the patches"):
        read_official(saved(tmp_path, {"model": tuned}))


def test_crate_alphas_two_layouts_hold_the_same_operator(tmp_path: Path) -> None:
    """JAX's kernels against their own einsums; its heads are read from their axis."""
    jax = layouts.crate_alpha_jax(heads=4)
    noise = {"opt/0/count": torch.zeros(3), "chrono/steps": torch.zeros(1)}
    official = read_official(saved_npz(tmp_path, jax | noise))
    assert official.format == "CRATE-α (JAX)"
    backbone = built(official)
    block = backbone.blocks[1]
    assert isinstance(block, Block)
    assert isinstance(block.mlp, ODL)
    assert block.attn.heads == 4
    kernel = "params/Transformer/encoderblock_1/MultiHeadDotProductSubspaceAttention_0"
    tokens = torch.randn(5, WIDTH)
    projected = torch.einsum("td,dhp->thp", tokens, jax[f"{kernel}/proj/kernel"])
    torch.testing.assert_close(block.attn.project(tokens), projected.flatten(1))
    mixed = torch.einsum("thp,hpd->td", projected, jax[f"{kernel}/out/kernel"])
    torch.testing.assert_close(block.attn.output(projected.flatten(1)), mixed)
    dictionary = jax["params/Transformer/encoderblock_1/OvercompleteISTABlock_0/D1"]
    assert block.mlp.D1 is not None
    assert torch.equal(block.mlp.D1, dictionary)
    image = torch.randn(1, 3, SIDE, SIDE)
    patch = image[0, :, :PATCH, PATCH : 2 * PATCH]  # row 0, column 1
    embedded = torch.einsum("cij,ijcd->d", patch, jax["params/embedding/kernel"])
    embedded = embedded + jax["params/embedding/bias"]
    torch.testing.assert_close(backbone.patch_embed(image)[0, 0, 1], embedded, rtol=1e-5, atol=1e-5)
    assert torch.equal(backbone.norm.weight, jax["params/encoder_norm/scale"])


def test_jax_arrays_in_bfloat16(tmp_path: Path) -> None:
    """numpy keeps them as two bytes without a type."""
    jax = {key: value.bfloat16() for key, value in layouts.crate_alpha_jax().items()}
    arrays = {key: value.view(torch.int16).numpy().view("V2") for key, value in jax.items()}
    np.savez(tmp_path / "half.npz", **arrays)  # type: ignore[arg-type]
    backbone = built(read_official(tmp_path / "half.npz"))
    assert torch.equal(backbone.cls_token, jax["params/cls"].float())


def test_crate_maes_encoder_gets_the_positions_it_used(tmp_path: Path) -> None:
    official = read_official(saved(tmp_path, {"model": layouts.crate_mae()}))
    theirs, ours = layouts.crate_mae(), built(official).state_dict()
    assert torch.equal(ours["pos_embed"], theirs["decoder_pos_embed"])
    assert torch.equal(ours["blocks.2.mlp.weight"], theirs["blocks.2.layers.0.1.fn.weight"])
    assert torch.equal(ours["blocks.2.norm2.bias"], theirs["blocks.2.layers.0.1.norm.bias"])
    assert torch.equal(
        ours["blocks.0.attn.proj.bias"], theirs["blocks.0.layers.0.0.fn.to_out.0.bias"]
    )


def test_a_patch_of_crate_is_read_from_its_norm(tmp_path: Path) -> None:
    grey = layouts.crate()
    grey |= {f"to_patch_embedding.1.{x}": torch.ones(PATCH**2) for x in ("weight", "bias")}
    grey["to_patch_embedding.2.weight"] = torch.zeros(WIDTH, PATCH**2)
    official = read_official(saved(tmp_path, grey))
    assert built(official).in_chans == 1
    assert official.kwargs["in_chans"] == 1
    assert official.preprocess["mean"] == (0.449,)


def test_tost(tmp_path: Path) -> None:
    theirs = layouts.tost(heads=8)
    content = {"model": theirs, "model_ema": layouts.tost(), "optimizer": {}, "epoch": 1}
    official = read_official(saved(tmp_path, content))
    assert official.format == "ToST"
    row = BACKBONES[official.backbone]
    assert isinstance(row, ToSTModel)
    backbone = official.build()
    assert isinstance(backbone, ToST)
    assert (backbone.embed_dim, len(backbone.blocks), backbone.patch_size) == (WIDTH, DEPTH, 16)
    assert backbone.img_size == 224  # as published; its weights do not show it
    assert backbone.config["heads"] == 8
    ours = backbone.eval().state_dict()
    assert torch.equal(ours["blocks.2.ls1.gamma"], theirs["blocks.2.gamma1"])
    assert torch.equal(ours["cls_attn_blocks.1.ls2.gamma"], theirs["cls_attn_blocks.1.gamma2"])
    assert torch.equal(ours["blocks.0.attn.proj.weight"], theirs["blocks.0.attn.to_out.0.weight"])
    assert torch.equal(
        ours["patch_embed.proj.2.1.running_var"], theirs["patch_embed.proj.2.1.running_var"]
    )
    assert int(ours["patch_embed.proj.0.1.num_batches_tracked"]) == 7
    assert backbone(torch.randn(2, 3, 32, 32)).pooled.isfinite().all()


def test_a_tost_with_patches_of_8(tmp_path: Path) -> None:
    official = read_official(saved(tmp_path, layouts.tost(patch=8)))
    backbone = official.build()
    assert isinstance(backbone, ToST)
    assert backbone.patch_size == 8
    first = backbone.blocks[0]
    assert isinstance(first, Block)
    assert first.attn.heads == 2


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    half = {key: value.half() for key, value in layouts.dino_backbone().items()}
    backbone = built(read_official(saved(tmp_path, half)))
    assert backbone.norm.weight.dtype == torch.float32
    assert torch.equal(backbone.norm.weight, half["norm.weight"].float())


def test_a_backbone_of_another_size_gets_resampled_positions(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(tmp_path, layouts.dino_backbone())
    small = read_official(path)
    large = create_backbone(small.backbone, **small.kwargs | {"img_size": 6 * PATCH})
    with caplog.at_level("INFO"):
        load_official(large, path)
    assert "4 × 4 patches resampled to 6 × 6" in caplog.text
    images = torch.randn(2, 3, 6 * PATCH, 6 * PATCH)
    torch.testing.assert_close(large(images).pooled, built(small)(images).pooled)


def test_our_own_keys_load_into_a_given_backbone(tmp_path: Path) -> None:
    for name in ("crate_nano_patch4_28", "crate_alpha_nano_patch4_28", "aot_mssa_nano_patch4_28"):
        theirs, ours = (create_backbone(name, seed=seed) for seed in (1, 2))
        path = saved(tmp_path, theirs.state_dict())
        load_official(ours, path)
        assert torch.equal(ours.state_dict()["norm.bias"], theirs.state_dict()["norm.bias"])
        assert torch.equal(ours.state_dict()["cls_token"], theirs.state_dict()["cls_token"])
    with pytest.raises(ValueError, match=r"no backbone for weights of the format vitrail.*encoder"):
        read_official(path)


WRONG = {
    "a missing key": (lambda w: w.pop("blocks.1.attn.qkv.bias"), r"missing: blocks\.1\.attn\.qkv"),
    "a missing layer": (
        lambda w: [w.pop(k) for k in list(w) if k.startswith("blocks.1.")],
        r"missing: blocks\.1\.attn\.proj\.bias, ",
    ),
    "an extra key": (lambda w: w.update(gate=torch.ones(2)), r"unexpected: gate$"),
    "another width": (
        lambda w: w.update({"norm.weight": torch.ones(7)}),
        r"norm\.weight: \[7\] in the file, \[32\] in the backbone",
    ),
    "no class token": (lambda w: w.pop("cls_token"), r"cls_token is missing"),
    "no positions": (lambda w: w.pop("pos_embed"), r"pos_embed is missing"),
    "a flat class token": (
        lambda w: w.update(cls_token=torch.ones(WIDTH)),
        r"cls_token has the shape \[32\]",
    ),
    "a norm after pooling": (
        lambda w: w.update({f"fc_norm.{x}": w.pop(f"norm.{x}") for x in ("weight", "bias")}),
        r"(?s)missing: norm\.bias, norm\.weight.*unexpected: fc_norm\.bias, fc_norm\.weight",
    ),
    "a distilled one": (
        lambda w: w.update(dist_token=torch.ones(1, 1, WIDTH)),
        r"unexpected: dist_token$",
    ),
    "a far layer": (
        lambda w: w.update({"blocks.999999999.norm1.bias": torch.ones(WIDTH)}),
        r"unexpected: blocks\.999999999",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_file_is_listed(tmp_path: Path, case: str) -> None:
    spoil, message = WRONG[case]
    weights = layouts.dino_backbone()
    spoil(weights)
    with pytest.raises(ValueError, match=message):
        read_official(saved(tmp_path, weights))


def test_unexpected_keys_have_the_files_names(tmp_path: Path) -> None:
    weights = layouts.crate()
    weights["transformer.layers.1.0.fn.qkv.bias"] = torch.ones(WIDTH)
    with pytest.raises(ValueError, match=r"read as CRATE,.*\n.*transformer\.layers\.1\.0\.fn\.qkv"):
        read_official(saved(tmp_path, weights))


@pytest.mark.parametrize(
    "keys",
    [
        ("backbone.body.conv1.weight", "rpn.head.conv.0.0.weight"),  # a detector
        ("transformer.h.0.attn.c_attn.weight", "transformer.wte.weight"),  # a language model
        ("bert.encoder.layer.0.attention.self.query.weight", "bert.embeddings.x.weight"),
    ],
)
def test_other_models_are_in_no_known_format(tmp_path: Path, keys: tuple[str, ...]) -> None:
    path = saved(tmp_path, {key: torch.ones(3, 3) for key in keys})
    with pytest.raises(ValueError, match=rf"in no known format; .*{keys[1]}.*Known formats: CRATE"):
        read_official(path)


def test_a_family_without_a_row_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A copy without the rows: rows that are taken out and put back would change the table's order.
    others = {n: row for n, row in BACKBONES.own.items() if not isinstance(row, ToSTModel)}
    monkeypatch.setattr(BACKBONES, "_own", others)
    with pytest.raises(ValueError, match="no backbone for weights of the format ToST"):
        read_official(saved(tmp_path, layouts.tost()))
