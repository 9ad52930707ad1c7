"""The tables: families of operators, and named models. The factory builds from them.

Sizes follow the papers: ViT-T is 192 wide with 12 layers and 3 heads, CRATE-T is 384/12/6.
"""

import difflib
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn

from vitrail.backbones.attention import MHSA, MSSA
from vitrail.backbones.contract import TokenBackbone
from vitrail.backbones.embedding import ConvPatchEmbed, NormPatchEmbed, check_divides
from vitrail.backbones.skeleton import Family, SkeletonBackbone
from vitrail.backbones.tokenwise import ISTA, MLP


@dataclass(frozen=True)
class Model:
    """A row of the table. width: D; heads: h; patch_size, img_size: pixels a side."""

    family: str
    width: int
    depth: int
    heads: int
    patch_size: int
    img_size: int


def init_vit(backbone: SkeletonBackbone) -> None:
    """DINO's: truncated normal 0.02 for linear maps, class token and positions; zero biases.

    The patch embedding keeps torch's default for convolutions, as there and in timm. Below width
    192, where nothing is published, linear maps get 0.8 / sqrt(width): with 0.02, branches would
    all but vanish beside their residual.
    """
    width = backbone.embed_dim
    std = 0.02 if width >= 192 else 0.8 * width**-0.5
    for module in backbone.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=std)
            nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(backbone.pos_embed, std=0.02)
    nn.init.trunc_normal_(backbone.cls_token, std=0.02)


def init_crate(backbone: SkeletonBackbone) -> None:
    """Official CRATE's: N(0, 1) for class token and positions; torch's defaults for linear maps."""
    nn.init.normal_(backbone.pos_embed)
    nn.init.normal_(backbone.cls_token)


FAMILIES: dict[str, Family] = {
    "vit": Family(MHSA, MLP, True, ConvPatchEmbed, 1e-6, init_vit),
    "crate": Family(MSSA, ISTA, False, NormPatchEmbed, 1e-5, init_crate),
}

# name: family, width, depth, heads, patch size, image size
BACKBONES: dict[str, Model] = {
    "vit_tiny_patch16_224": Model("vit", 192, 12, 3, 16, 224),
    "vit_small_patch16_224": Model("vit", 384, 12, 6, 16, 224),
    "vit_base_patch16_224": Model("vit", 768, 12, 12, 16, 224),
    "vit_large_patch16_224": Model("vit", 1024, 24, 16, 16, 224),
    "vit_tiny_patch8_224": Model("vit", 192, 12, 3, 8, 224),
    "vit_small_patch8_224": Model("vit", 384, 12, 6, 8, 224),
    "vit_base_patch8_224": Model("vit", 768, 12, 12, 8, 224),
    "vit_nano_patch4_28": Model("vit", 64, 4, 2, 4, 28),
    "vit_nano_patch4_32": Model("vit", 64, 4, 2, 4, 32),
    "vit_micro_patch4_28": Model("vit", 128, 6, 4, 4, 28),
    "vit_micro_patch4_32": Model("vit", 128, 6, 4, 4, 32),
    "vit_tiny_patch4_28": Model("vit", 192, 12, 3, 4, 28),
    "vit_tiny_patch4_32": Model("vit", 192, 12, 3, 4, 32),
    "vit_small_patch4_28": Model("vit", 384, 12, 6, 4, 28),
    "vit_small_patch4_32": Model("vit", 384, 12, 6, 4, 32),
    "crate_tiny_patch16_224": Model("crate", 384, 12, 6, 16, 224),
    "crate_small_patch16_224": Model("crate", 576, 12, 12, 16, 224),
    "crate_base_patch16_224": Model("crate", 768, 12, 12, 16, 224),
    "crate_large_patch16_224": Model("crate", 1024, 24, 16, 16, 224),
    "crate_small_patch8_224": Model("crate", 576, 12, 12, 8, 224),
    "crate_base_patch8_224": Model("crate", 768, 12, 12, 8, 224),
    "crate_nano_patch4_28": Model("crate", 64, 4, 2, 4, 28),
    "crate_nano_patch4_32": Model("crate", 64, 4, 2, 4, 32),
    "crate_micro_patch4_28": Model("crate", 128, 6, 4, 4, 28),
    "crate_micro_patch4_32": Model("crate", 128, 6, 4, 4, 32),
    "crate_tiny_patch4_28": Model("crate", 384, 12, 6, 4, 28),
    "crate_tiny_patch4_32": Model("crate", 384, 12, 6, 4, 32),
    "crate_small_patch4_28": Model("crate", 576, 12, 12, 4, 28),
    "crate_small_patch4_32": Model("crate", 576, 12, 12, 4, 32),
}

OVERRIDES = tuple(f.name for f in fields(Model) if f.name not in ("family", "img_size"))


def create_backbone(
    name: str,
    *,
    img_size: int | None = None,
    in_chans: int = 3,
    drop_path: float = 0.0,
    seed: int = 0,
    **overrides: int,
) -> SkeletonBackbone:
    """A freshly initialised backbone on the CPU; equal arguments give equal weights.

    torch's global random state is left as it was.

    Args:
        name: a key of BACKBONES.
        img_size: pixels a side on which positions are learned, instead of the row's.
        in_chans: channels of the images.
        drop_path: rate of stochastic depth in the last layer, in [0, 1).
        seed: of the weights.
        overrides: patch_size, width, depth or heads instead of the row's.

    Returns:
        A backbone whose `config` holds the arguments that give this architecture (all but drop_path
        and seed): `create_backbone(**backbone.config)`.

    Raises:
        ValueError: an unknown name or override, or values that do not fit together.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # Not torch.manual_seed: that would also reseed the GPUs.
        torch.default_generator.manual_seed(seed)
        return _build(name, img_size, in_chans, drop_path, overrides)


def count_parameters(name: str) -> int:
    """Of a named model as listed, with its final norm and without a head. Nothing is allocated."""
    with torch.device("meta"):
        backbone = _build(name, None, 3, 0.0, {})
    return sum(p.numel() for p in backbone.parameters())


def describe(name: str) -> str:
    """One line for a listing: size, patches, operators, parameters."""
    model, family = _resolve(name, None, {}), FAMILIES[BACKBONES[name].family]
    operators = f"{family.attention.__name__} × {family.tokenwise.__name__}"
    return (
        f"{count_parameters(name) / 1e6:.2f} M parameters: width {model.width}, {model.depth} "
        f"layers of {operators}, {model.heads} heads, patch {model.patch_size}, {model.img_size} px"
    )


def compile_blocks(backbone: TokenBackbone) -> None:
    """Compiles each layer in place with `torch.compile`; parameter names do not change.

    Layers of one shape share one compilation. Shapes are static, so each set of resolutions (the
    student's, the teacher's) is compiled once.
    """
    for block in backbone.blocks:
        block.compile(dynamic=False)


def _build(
    name: str, img_size: int | None, in_chans: int, drop_path: float, overrides: dict[str, int]
) -> SkeletonBackbone:
    model = _resolve(name, img_size, overrides)
    _check(name, model, in_chans, drop_path)
    config: dict[str, Any] = {
        "name": name,
        "img_size": model.img_size,
        "in_chans": in_chans,
        "patch_size": model.patch_size,
        **overrides,
    }
    return SkeletonBackbone(
        FAMILIES[model.family],
        width=model.width,
        depth=model.depth,
        heads=model.heads,
        patch_size=model.patch_size,
        img_size=model.img_size,
        in_chans=in_chans,
        drop_path=drop_path,
        config=config,
    )


def _resolve(name: str, img_size: int | None, overrides: dict[str, int]) -> Model:
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}; {_nearest(name, list(BACKBONES))}")
    for key in overrides:
        if key not in OVERRIDES:
            raise ValueError(
                f"backbone {name}: unknown override {key!r}; {_nearest(key, list(OVERRIDES))}"
            )
    size = BACKBONES[name].img_size if img_size is None else img_size
    changes: dict[str, Any] = {**overrides, "img_size": size}
    return replace(BACKBONES[name], **changes)


def _nearest(wrong: str, known: list[str]) -> str:
    close = difflib.get_close_matches(wrong, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def _check(name: str, model: Model, in_chans: int, drop_path: float) -> None:
    values = {f: getattr(model, f) for f in (*OVERRIDES, "img_size")} | {"in_chans": in_chans}
    for key, value in values.items():
        if value < 1:
            raise ValueError(f"backbone {name}: {key} is {value}, but must be at least 1")
    if model.width % model.heads:
        raise ValueError(
            f"backbone {name}: width {model.width} is not a multiple of heads {model.heads}"
        )
    if not 0 <= drop_path < 1:
        raise ValueError(f"backbone {name}: drop_path is {drop_path}, but must be in [0, 1)")
    check_divides(model.img_size, model.patch_size, f"img_size of backbone {name},")
