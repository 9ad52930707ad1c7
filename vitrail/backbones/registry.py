"""The table of named backbones, and the factory that builds from it.

Sizes follow the papers: ViT-T is 192 wide with 12 layers and 3 heads, CRATE-T is 384/12/6, ToST-T
192/12/4. Names that timm has too are timm's models.
"""

import difflib
import math
from collections.abc import Iterable
from typing import Any

import torch

from vitrail.backbones.contract import Backbone, Model
from vitrail.backbones.families import Skeleton
from vitrail.backbones.resnet import TimmResNet
from vitrail.backbones.swin import TimmSwin
from vitrail.backbones.tost import ToSTModel

WORDS = {"true": True, "false": False, "none": None}
REGISTERS = (("registers", 4), ("antialias", True))

# image size, family, width, depth, heads, patch size
BACKBONES: dict[str, Model] = {
    "vit_tiny_patch16_224": Skeleton(224, "vit", 192, 12, 3, 16),
    "vit_small_patch16_224": Skeleton(224, "vit", 384, 12, 6, 16),
    "vit_base_patch16_224": Skeleton(224, "vit", 768, 12, 12, 16),
    "vit_large_patch16_224": Skeleton(224, "vit", 1024, 24, 16, 16),
    "vit_huge_patch14_224": Skeleton(224, "vit", 1280, 32, 16, 14),
    "vit_tiny_patch8_224": Skeleton(224, "vit", 192, 12, 3, 8),
    "vit_small_patch8_224": Skeleton(224, "vit", 384, 12, 6, 8),
    "vit_base_patch8_224": Skeleton(224, "vit", 768, 12, 12, 8),
    "vit_base_patch32_224": Skeleton(224, "vit", 768, 12, 12, 32),
    "vit_large_patch14_224": Skeleton(224, "vit", 1024, 24, 16, 14),
    "vit_nano_patch4_28": Skeleton(28, "vit", 64, 4, 2, 4),
    "vit_nano_patch4_32": Skeleton(32, "vit", 64, 4, 2, 4),
    "vit_micro_patch4_28": Skeleton(28, "vit", 128, 6, 4, 4),
    "vit_micro_patch4_32": Skeleton(32, "vit", 128, 6, 4, 4),
    "vit_tiny_patch4_28": Skeleton(28, "vit", 192, 12, 3, 4),
    "vit_tiny_patch4_32": Skeleton(32, "vit", 192, 12, 3, 4),
    "vit_small_patch4_28": Skeleton(28, "vit", 384, 12, 6, 4),
    "vit_small_patch4_32": Skeleton(32, "vit", 384, 12, 6, 4),
    "vit_small_patch14_dinov2": Skeleton(518, "dinov2", 384, 12, 6, 14),
    "vit_base_patch14_dinov2": Skeleton(518, "dinov2", 768, 12, 12, 14),
    "vit_large_patch14_dinov2": Skeleton(518, "dinov2", 1024, 24, 16, 14),
    "vit_giant_patch14_dinov2": Skeleton(518, "dinov2_swiglu", 1536, 40, 24, 14),
    "vit_small_patch14_reg4_dinov2": Skeleton(518, "dinov2", 384, 12, 6, 14, REGISTERS),
    "vit_base_patch14_reg4_dinov2": Skeleton(518, "dinov2", 768, 12, 12, 14, REGISTERS),
    "vit_large_patch14_reg4_dinov2": Skeleton(518, "dinov2", 1024, 24, 16, 14, REGISTERS),
    "vit_giant_patch14_reg4_dinov2": Skeleton(518, "dinov2_swiglu", 1536, 40, 24, 14, REGISTERS),
    "crate_tiny_patch16_224": Skeleton(224, "crate", 384, 12, 6, 16),
    "crate_small_patch16_224": Skeleton(224, "crate", 576, 12, 12, 16),
    "crate_base_patch16_224": Skeleton(224, "crate", 768, 12, 12, 16),
    "crate_large_patch16_224": Skeleton(224, "crate", 1024, 24, 16, 16),
    "crate_small_patch8_224": Skeleton(224, "crate", 576, 12, 12, 8),
    "crate_base_patch8_224": Skeleton(224, "crate", 768, 12, 12, 8),
    "crate_nano_patch4_28": Skeleton(28, "crate", 64, 4, 2, 4),
    "crate_nano_patch4_32": Skeleton(32, "crate", 64, 4, 2, 4),
    "crate_micro_patch4_28": Skeleton(28, "crate", 128, 6, 4, 4),
    "crate_micro_patch4_32": Skeleton(32, "crate", 128, 6, 4, 4),
    "crate_tiny_patch4_28": Skeleton(28, "crate", 384, 12, 6, 4),
    "crate_tiny_patch4_32": Skeleton(32, "crate", 384, 12, 6, 4),
    "crate_small_patch4_28": Skeleton(28, "crate", 576, 12, 12, 4),
    "crate_small_patch4_32": Skeleton(32, "crate", 576, 12, 12, 4),
    "crate_mae_small_patch16_224": Skeleton(224, "crate_mae", 576, 12, 12, 16),
    "crate_mae_base_patch16_224": Skeleton(224, "crate_mae", 768, 12, 12, 16),
    "crate_mae_nano_patch4_28": Skeleton(28, "crate_mae", 64, 4, 2, 4),
    "crate_mae_nano_patch4_32": Skeleton(32, "crate_mae", 64, 4, 2, 4),
    "crate_alpha_tiny_patch16_224": Skeleton(224, "crate_alpha", 192, 12, 3, 16),
    "crate_alpha_small_patch16_224": Skeleton(224, "crate_alpha", 384, 12, 6, 16),
    "crate_alpha_base_patch32_224": Skeleton(224, "crate_alpha", 768, 12, 12, 32),
    "crate_alpha_base_patch16_224": Skeleton(224, "crate_alpha", 768, 12, 12, 16),
    "crate_alpha_base_patch8_224": Skeleton(224, "crate_alpha", 768, 12, 12, 8),
    "crate_alpha_large_patch14_224": Skeleton(224, "crate_alpha", 1024, 24, 16, 14),
    "crate_alpha_large_patch8_224": Skeleton(224, "crate_alpha", 1024, 24, 16, 8),
    "crate_alpha_huge_patch14_224": Skeleton(224, "crate_alpha", 1280, 32, 16, 14),
    "crate_alpha_nano_patch4_28": Skeleton(28, "crate_alpha", 64, 4, 2, 4),
    "crate_alpha_nano_patch4_32": Skeleton(32, "crate_alpha", 64, 4, 2, 4),
    "crate_alpha_micro_patch4_28": Skeleton(28, "crate_alpha", 128, 6, 4, 4),
    "crate_alpha_micro_patch4_32": Skeleton(32, "crate_alpha", 128, 6, 4, 4),
    "crate_alpha_tiny_patch4_28": Skeleton(28, "crate_alpha", 192, 12, 3, 4),
    "crate_alpha_tiny_patch4_32": Skeleton(32, "crate_alpha", 192, 12, 3, 4),
    "tost_vit_tiny_patch16_224": Skeleton(224, "tost_vit", 192, 12, 4, 16),
    "tost_vit_small_patch16_224": Skeleton(224, "tost_vit", 384, 12, 8, 16),
    "tost_vit_base_patch16_224": Skeleton(224, "tost_vit", 768, 12, 12, 16),
    "tost_vit_nano_patch4_28": Skeleton(28, "tost_vit", 64, 4, 2, 4),
    "tost_vit_nano_patch4_32": Skeleton(32, "tost_vit", 64, 4, 2, 4),
    "tost_vit_micro_patch4_28": Skeleton(28, "tost_vit", 128, 6, 4, 4),
    "tost_vit_micro_patch4_32": Skeleton(32, "tost_vit", 128, 6, 4, 4),
    "tost_vit_tiny_patch4_28": Skeleton(28, "tost_vit", 192, 12, 4, 4),
    "tost_vit_tiny_patch4_32": Skeleton(32, "tost_vit", 192, 12, 4, 4),
    "aot_mssa_tiny_patch16_224": Skeleton(224, "aot_mssa", 192, 12, 3, 16),
    "aot_mssa_small_patch16_224": Skeleton(224, "aot_mssa", 384, 12, 6, 16),
    "aot_mssa_base_patch16_224": Skeleton(224, "aot_mssa", 768, 12, 12, 16),
    "aot_mssa_nano_patch4_28": Skeleton(28, "aot_mssa", 64, 4, 2, 4),
    "aot_mssa_nano_patch4_32": Skeleton(32, "aot_mssa", 64, 4, 2, 4),
    "aot_mssa_micro_patch4_28": Skeleton(28, "aot_mssa", 128, 6, 4, 4),
    "aot_mssa_micro_patch4_32": Skeleton(32, "aot_mssa", 128, 6, 4, 4),
    "aot_mssa_tiny_patch4_28": Skeleton(28, "aot_mssa", 192, 12, 3, 4),
    "aot_mssa_tiny_patch4_32": Skeleton(32, "aot_mssa", 192, 12, 3, 4),
    "aot_mhsa_tiny_patch16_224": Skeleton(224, "aot_mhsa", 192, 12, 3, 16),
    "aot_mhsa_small_patch16_224": Skeleton(224, "aot_mhsa", 384, 12, 6, 16),
    "aot_mhsa_base_patch16_224": Skeleton(224, "aot_mhsa", 768, 12, 12, 16),
    "aot_mhsa_nano_patch4_28": Skeleton(28, "aot_mhsa", 64, 4, 2, 4),
    "aot_mhsa_nano_patch4_32": Skeleton(32, "aot_mhsa", 64, 4, 2, 4),
    "aot_mhsa_micro_patch4_28": Skeleton(28, "aot_mhsa", 128, 6, 4, 4),
    "aot_mhsa_micro_patch4_32": Skeleton(32, "aot_mhsa", 128, 6, 4, 4),
    "aot_mhsa_tiny_patch4_28": Skeleton(28, "aot_mhsa", 192, 12, 3, 4),
    "aot_mhsa_tiny_patch4_32": Skeleton(32, "aot_mhsa", 192, 12, 3, 4),
    # image size, width, depth, heads, patch size, initial LayerScale
    "tost_tiny_patch16_224": ToSTModel(224, 192, 12, 4, 16, 1.0),
    "tost_small_patch16_224": ToSTModel(224, 384, 12, 8, 16, 1.0),
    "tost_medium_patch16_224": ToSTModel(224, 512, 24, 8, 16, 1e-5),
    "tost_nano_patch4_28": ToSTModel(28, 64, 4, 2, 4, 1.0),
    "tost_nano_patch4_32": ToSTModel(32, 64, 4, 2, 4, 1.0),
    # image size, timm's name
    "resnet18": TimmResNet(224, "resnet18"),
    "resnet50": TimmResNet(224, "resnet50"),
    "resnet18_small": TimmResNet(32, "resnet18", small=True),
    "resnet50_small": TimmResNet(32, "resnet50", small=True),
    # image size, width of the first stage, depths, heads, patch size, window size
    "swin_tiny_patch4_window7_224": TimmSwin(224, 96, (2, 2, 6, 2), (3, 6, 12, 24), 4, 7),
    "swin_small_patch4_window7_224": TimmSwin(224, 96, (2, 2, 18, 2), (3, 6, 12, 24), 4, 7),
    "swin_base_patch4_window7_224": TimmSwin(224, 128, (2, 2, 18, 2), (4, 8, 16, 32), 4, 7),
    "swin_nano_patch2_28": TimmSwin(28, 32, (2, 2), (2, 4), 2, 7),
    "swin_nano_patch2_32": TimmSwin(32, 32, (2, 2), (2, 4), 2, 4),
}


def create_backbone(
    name: str,
    *,
    img_size: int | None = None,
    in_chans: int = 3,
    drop_path: float = 0.0,
    seed: int = 0,
    **overrides: Any,
) -> Backbone:
    """A freshly initialised backbone on the CPU; equal arguments give equal weights.

    torch's global random state is left as it was.

    Args:
        name: a key of BACKBONES.
        img_size: pixels a side on which positions are learned, instead of the row's.
        in_chans: channels of the images.
        drop_path: rate of stochastic depth in the last layer, in [0, 1).
        seed: of the weights, from 0 to 2^63 - 1.
        overrides: some of the row's `options()`: patch_size, width, depth, heads, registers, ...

    Returns:
        A backbone whose `config` holds the arguments that give this architecture (all but drop_path
        and seed): `create_backbone(**backbone.config)`.

    Raises:
        ValueError: an unknown name or override, or values that do not fit together.
    """
    model = find_model(name)
    _check(name, model, img_size, in_chans, drop_path, seed, overrides)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # Not torch.manual_seed: that would also reseed the GPUs.
        torch.default_generator.manual_seed(seed)
        return model.build(
            name, img_size=img_size, in_chans=in_chans, drop_path=drop_path, overrides=overrides
        )


def find_model(name: str) -> Model:
    """The table's row. Raises ValueError, with the nearest name, if there is none."""
    if not isinstance(name, str) or name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}; {_nearest(str(name), list(BACKBONES))}")
    return BACKBONES[name]


def parse_options(name: str, texts: Iterable[str]) -> dict[str, Any]:
    """Overrides of a named backbone from "NAME=VALUE" texts: registers=4, decoupled=false.

    Raises:
        ValueError: a text of another form, or a value that is no number, true, false or none.
    """
    overrides: dict[str, Any] = {}
    for text in texts:
        key, _, value = text.partition("=")
        try:
            overrides[key] = WORDS[value.lower()] if value.lower() in WORDS else _number(value)
        except ValueError:
            raise ValueError(
                f"backbone {name}: option {text!r} is not NAME=VALUE with a number, true, false or "
                "none; for example registers=4"
            ) from None
    return overrides


def count_parameters(name: str) -> int:
    """Of a named model as listed, with its final norm and without a head. Nothing is allocated."""
    with torch.device("meta"):
        backbone = find_model(name).build(
            name, img_size=None, in_chans=3, drop_path=0.0, overrides={}
        )
    return sum(p.numel() for p in backbone.parameters())


def describe(name: str) -> str:
    """One line for a listing: parameters, sizes, operators."""
    return f"{count_parameters(name) / 1e6:.2f} M parameters: {find_model(name).summary()}"


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _nearest(wrong: str, known: list[str]) -> str:
    close = difflib.get_close_matches(wrong, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def _check(
    name: str,
    model: Model,
    img_size: int | None,
    in_chans: int,
    drop_path: float,
    seed: int,
    overrides: dict[str, Any],
) -> None:
    for key, value in (
        ("img_size", model.img_size if img_size is None else img_size),
        ("in_chans", in_chans),
    ):
        if type(value) is not int:
            raise ValueError(f"backbone {name}: {key} is {value!r}, but must be a whole number")
        if value < 1:
            raise ValueError(f"backbone {name}: {key} is {value}, but must be at least 1")
    if not isinstance(drop_path, int | float) or not 0 <= drop_path < 1:
        raise ValueError(f"backbone {name}: drop_path is {drop_path}, but must be in [0, 1)")
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise ValueError(f"backbone {name}: seed is {seed!r}, but must be from 0 to 2^63 - 1")
    options = model.options()
    for key, value in overrides.items():
        if key not in options:
            known = _nearest(key, list(options)) if options else "it has none"
            raise ValueError(f"backbone {name}: unknown override {key!r}; {known}")
        if not _fits(key, value, options[key]):
            raise ValueError(
                f"backbone {name}: {key} is {value!r}; give a value like the row's {options[key]!r}"
            )


def _fits(key: str, value: Any, own: Any) -> bool:
    """Whether an override is of its option's type: a number for a number, a flag for a flag."""
    if isinstance(own, bool) or isinstance(value, bool):
        return isinstance(own, bool) and isinstance(value, bool)
    if isinstance(own, int):
        return isinstance(value, int)
    if value is None:
        return key == "layer_scale"  # the one that may be absent
    return isinstance(value, int | float) and math.isfinite(value)
