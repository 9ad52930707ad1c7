"""Finds the row of BACKBONES for a file's weights, and the options that differ from the row.

Shape legend: D features · P patch size in pixels · C channels · G×G the grid of learned positions.
"""

import math
import re
from typing import Any

from torch import Tensor

from vitrail.backbones.create import loadable_rows, outline
from vitrail.backbones.families import BackboneRow, Skeleton, TimmResNet, TimmSwin, ToSTModel
from vitrail.interop.read.hub_config import Described, read_description
from vitrail.interop.read.translate import Translation
from vitrail.interop.read.weights_file import Weights, some

INITIAL = 1e-5  # of a LayerScale, which is overwritten by the file's
TOST_SIZE = 224  # pixels a side, as published: its positions do not show it
TYPES: dict[str, type[BackboneRow]] = {"tost": ToSTModel, "swin": TimmSwin, "resnet": TimmResNet}


def choose_row(found: Translation) -> tuple[str, dict[str, Any]]:
    """Returns the name of a backbone for a file's weights, and the arguments of `create_backbone`.

    The row is the one of the family with the file's sizes, else the nearest one, with overrides.
    Heads are config.json's, else as the weights show, else the row's of that width, else of 64
    features.

    Raises:
        ValueError: weights whose sizes cannot be read, a family without rows, or what
            `read_description` refuses.
    """
    config = read_description(found.source)
    if config.backbone is not None:
        return config.backbone, config.kwargs
    family = _family(found)
    rows = {name: row for name, row in loadable_rows().items() if _is_of(row, family)}
    if not rows:
        raise ValueError(
            f"{found.source.path}: there is no backbone for weights of the format "
            f"{found.format.name}; for vitrail's own, give the file with its encoder.json"
        )
    if family in ("swin", "resnet"):
        return _by_shapes(found, rows, config)
    return _by_sizes(found, rows, config)


def expected_state(name: str, kwargs: dict[str, Any]) -> Weights:
    """Returns the keys and shapes of a backbone, without memory for its weights."""
    return outline(name, kwargs).state_dict()


def _family(found: Translation) -> str:
    if found.format.family != "vit":
        return found.format.family
    if "blocks.0.mlp.w12.weight" in found.weights:
        return "dinov2_swiglu"
    return "dinov2" if "blocks.0.ls1.gamma" in found.weights else "vit"


def _is_of(row: BackboneRow, family: str) -> bool:
    if isinstance(row, Skeleton):
        return row.family == family
    return family in TYPES and isinstance(row, TYPES[family])


def _by_sizes(
    found: Translation, rows: dict[str, BackboneRow], config: Described
) -> tuple[str, dict[str, Any]]:
    sizes = _sizes(found)
    order = {name: _distance(row, sizes) for name, row in rows.items()}
    name = min(order, key=lambda name: order[name])  # of equals, the first in the table
    row: Any = rows[name]
    wanted: dict[str, Any] = {
        **sizes,
        **found.format.options,
        **_layer_scale(found.weights, row),
        "heads": _heads(found, row, sizes["width"], config),
        "antialias": found.format.antialias,
    }
    if not found.format.antialias:
        wanted["position_offset"] = found.format.offset
    if config.norm_eps is not None:
        wanted |= {"norm_eps": config.norm_eps}
    if found.format.family == "vit":
        wanted["bias"] = "blocks.0.attn.qkv.bias" in found.weights
    options = row.options() | {"img_size": row.img_size, "in_chans": 3}
    return name, {k: v for k, v in wanted.items() if k in options and options[k] != v}


def _distance(row: Any, sizes: dict[str, int]) -> tuple[float, ...]:
    options = row.options()
    return (
        abs(math.log(row.width / sizes["width"])),
        abs(row.depth - sizes["depth"]),
        row.patch_size != sizes["patch_size"],
        options.get("registers", 0) != sizes["registers"],
        row.img_size != sizes["img_size"],
    )


def _heads(found: Translation, row: Any, width: int, config: Described) -> int:
    heads = found.heads if config.heads is None else config.heads
    if heads is not None:
        return _whole(found, "the number of heads", heads)
    if row.width == width:
        return row.heads
    return next(h for h in range(max(1, width // 64), 0, -1) if width % h == 0)


def _whole(found: Translation, what: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{found.source.path}: by its config.json, {what} is {value!r}")
    return value


def _layer_scale(weights: Weights, row: Any) -> dict[str, float | None]:
    own = row.options().get("layer_scale")
    if "blocks.0.ls1.gamma" not in weights:
        return {"layer_scale": None}
    return {"layer_scale": INITIAL if own is None else own}


def _sizes(found: Translation) -> dict[str, int]:
    """Returns D, the depth, P, C, the image size and so on, as far as the weights show them."""
    weights = found.weights
    matches = (re.match(r"blocks\.(\d+)\.", key) for key in weights)
    last = max((int(match[1]) for match in matches if match), default=-1)
    sizes = {
        "width": _need(found, "cls_token", 3).shape[2],
        "depth": min(last + 1, len(weights)),  # bounded: a damaged key may have any number
        "registers": weights["register_tokens"].shape[1] if "register_tokens" in weights else 0,
    }
    sizes |= _patches(found)
    side = -(-TOST_SIZE // sizes["patch_size"])
    if found.format.family != "tost":
        side = round((_need(found, "pos_embed", 3).shape[1] - 1) ** 0.5)
    sizes["img_size"] = side * sizes["patch_size"]
    return sizes | _ratio(weights, sizes["width"]) | {"decoupled": "blocks.0.mlp.D1" in weights}


def _patches(found: Translation) -> dict[str, int]:
    weights = found.weights
    if found.format.family == "tost":
        first = _need(found, "patch_embed.proj.0.0.weight", 4)
        halvings = sum(
            k.startswith("patch_embed.proj.") and k.endswith(".0.weight") for k in weights
        )
        return {"patch_size": 2**halvings, "in_chans": first.shape[1]}
    if "patch_embed.norm_in.weight" in weights:
        values = _need(found, "patch_embed.norm_in.weight", 1).shape[0]  # C P²
        fitting = [
            c
            for c in (3, 1, 4, 2)
            if values % c == 0 and math.isqrt(values // c) ** 2 * c == values
        ]
        chans = next(iter(fitting), 3)
        return {"patch_size": math.isqrt(values // chans), "in_chans": chans}
    kernel = _need(found, "patch_embed.proj.weight", 4)
    return {"patch_size": kernel.shape[3], "in_chans": kernel.shape[1]}


def _ratio(weights: Weights, width: int) -> dict[str, int]:
    """Returns hidden features or atoms per feature."""
    for key, axis in (("blocks.0.mlp.fc1.weight", 0), ("blocks.0.mlp.D", 1)):
        if key in weights and weights[key].ndim == 2:
            return {"ratio": max(1, weights[key].shape[axis] // width)}
    return {}


def _need(found: Translation, key: str, ndim: int) -> Tensor:
    value = found.weights.get(key)
    if value is None or value.ndim != ndim or value.numel() == 0:
        problem = "is missing" if value is None else f"has the shape {list(value.shape)}"
        raise ValueError(
            f"{found.source.path} is not a whole {found.format.name}: {key} {problem}; its keys "
            f"are {some(found.weights)}"
        )
    return value


def _by_shapes(
    found: Translation, rows: dict[str, BackboneRow], config: Described
) -> tuple[str, dict[str, Any]]:
    """Returns the row whose keys and shapes differ least.

    Of equals it is one of the trained size, else the first.

    Raises:
        ValueError: a Swin with other numbers of heads than any row's.
    """
    kernel = "conv1.weight" if found.format.family == "resnet" else "patch_embed.proj.weight"
    shape = _need(found, kernel, 4).shape
    chans = {"in_chans": shape[1]} if shape[1] != 3 else {}
    if config.img_size is not None:
        _whole(found, "the size of images", config.img_size)
    best: tuple[tuple[int, bool], str, dict[str, Any]] | None = None
    of_width = {name: row for name, row in rows.items() if _width(row) in (None, shape[0])}
    for name, row in (of_width or rows).items():
        kwargs = chans | _of_swin(found, row, shape[3]) | _img_size(row, config)
        wanted = expected_state(name, kwargs)
        same = sum(k in wanted and wanted[k].shape == v.shape for k, v in found.weights.items())
        differing = len(wanted) + len(found.weights) - 2 * same
        order = (differing, config.img_size not in (None, row.img_size))
        if best is None or order < best[0]:
            best = (order, name, kwargs)
    assert best is not None
    _, name, kwargs = best
    row = rows[name]
    if isinstance(row, TimmSwin) and config.heads not in (None, row.heads):
        raise ValueError(
            f"{found.source.path}: by its config.json, its stages have {config.heads} heads, and "
            f"those of {name}, which is nearest to it, have {row.heads}"
        )
    return name, kwargs


def _width(row: BackboneRow) -> int | None:
    return row.width if isinstance(row, TimmSwin) else None


def _of_swin(found: Translation, row: BackboneRow, patch_size: int) -> dict[str, Any]:
    if not isinstance(row, TimmSwin):
        return {}
    table = _need(found, "layers.0.blocks.0.attn.relative_position_bias_table", 2)
    window = (math.isqrt(table.shape[0]) + 1) // 2  # (2w − 1)² rows
    wanted = {"patch_size": patch_size, "window_size": window}
    return {key: value for key, value in wanted.items() if row.options()[key] != value}


def _img_size(row: BackboneRow, config: Described) -> dict[str, int]:
    return {} if config.img_size in (None, row.img_size) else {"img_size": config.img_size}
