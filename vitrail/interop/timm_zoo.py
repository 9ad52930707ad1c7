"""Registers our backbones with timm by name, when this module is imported.

>>> import timm, vitrail.interop.timm_zoo
>>> model = timm.create_model("crate_base_patch16_224", num_classes=10)

From the command line, for any script that calls timm.create_model, such as timm's train.py:

    python -m vitrail.interop.timm_zoo train.py DATA --model crate_tiny_patch16_224 ...

Names that timm has itself stay timm's.
"""

import functools
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxtyping import Float
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from timm.models import resolve_pretrained_cfg as resolve_cfg
from torch import Tensor, nn

from vitrail.backbones.create import loadable_rows
from vitrail.backbones.embedding import ConvPatchEmbed
from vitrail.backbones.families import CONV, BackboneRow, Skeleton, ToSTModel
from vitrail.backbones.registry import BACKBONES
from vitrail.backbones.skeleton import SkeletonBackbone, resample_positions
from vitrail.interop.timm_model import TimmModel

# The backbones of tokens whose names timm does not have itself.
NAMES = [
    name
    for name, row in loadable_rows().items()
    if isinstance(row, Skeleton | ToSTModel) and not is_model(name)
]

# timm reads descriptions of weights under this name.
default_cfgs: dict[str, Any] = {}


def register() -> None:
    """Adds our names to timm's table."""
    default_cfgs.update(generate_default_cfgs({name: _describe(name) for name in NAMES}))
    for name in NAMES:
        register_model(_entry(name))


def create(
    name: str,
    pretrained: bool = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    out_indices: int | list[int] | tuple[int, ...] = 3,
    **arguments: Any,
) -> nn.Module:
    """Builds a model for `timm.create_model`.

    Args:
        name: a name of NAMES.
        pretrained: load weights, which the arguments below must then give.
        pretrained_cfg: timm's description of weights.
        pretrained_cfg_overlay: changes to that description.
        out_indices: of the layers for features_only=True; a number means the last ones.
        arguments: of TimmModel, and timm's features_only.

    Raises:
        ValueError: what TimmModel raises; pretrained weights by name alone.
    """
    cfg = resolve_cfg(name, pretrained_cfg, pretrained_cfg_overlay)
    if pretrained and not (cfg.has_weights or cfg.state_dict):
        raise ValueError(
            f"{name}: no weights are hosted; use pretrained=False, or "
            "checkpoint_path=FILE with what `vitrail export RUN --format timm` wrote"
        )
    return build_model_with_cfg(
        functools.partial(TimmModel, name),
        name,
        pretrained,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=pretrained_cfg_overlay,
        pretrained_filter_fn=fit_positions,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        **arguments,
    )


def fit_positions(
    weights: dict[str, Float[Tensor, "..."]], model: TimmModel
) -> dict[str, Float[Tensor, "..."]]:
    """Resamples the positions of weights for a model that is built for another size of images."""
    backbone = model.backbone
    if not isinstance(backbone, SkeletonBackbone) or "pos_embed" not in weights:
        return weights
    grid = round((weights["pos_embed"].shape[1] - 1) ** 0.5)
    wanted = (backbone.grid, backbone.grid)
    positions = resample_positions(backbone, weights["pos_embed"], grid, wanted)
    return weights | {"pos_embed": positions}


def _entry(name: str) -> Callable[..., nn.Module]:
    """Returns a function of the model's name in this module, as timm registers them."""

    def create_named(pretrained: bool = False, **arguments: Any) -> nn.Module:
        return create(name, pretrained, **arguments)

    create_named.__name__ = create_named.__qualname__ = name
    return create_named


def _describe(name: str) -> dict[str, Any]:
    size = BACKBONES[name].img_size
    return {
        "url": "",
        "input_size": (3, size, size),
        "fixed_input_size": True,  # timm's --img-size then sets the model's
        "crop_pct": 0.9,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "num_classes": 1000,
        "first_conv": _first_conv(BACKBONES[name]),
        "classifier": "head",
        "license": "apache-2.0",
    }


def _first_conv(row: BackboneRow) -> str | tuple[()]:
    """Returns the layer that timm fits to other channels; CRATE's embedding is no convolution."""
    if isinstance(row, ToSTModel):
        return "patch_embed.proj.0.0"
    assert isinstance(row, Skeleton)
    is_conv = row.parts.patch_embed in (CONV, ConvPatchEmbed)
    return "patch_embed.proj" if is_conv else ()


def main() -> None:
    """Runs a script, given with its arguments, as `python SCRIPT ARGS...` would."""
    if len(sys.argv) < 2:
        sys.exit("usage: python -m vitrail.interop.timm_zoo SCRIPT ARGS...")
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    # imported under its own name: the script to run becomes __main__
    from vitrail.interop import timm_zoo

    timm_zoo.main()
else:
    register()
