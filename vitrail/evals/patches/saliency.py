"""Saliency maps: the last layer's token maps, averaged over heads and head by head.

Source: Caron et al. 2021 (DINO), figures 1 and 3; the mask of 60 % of the mass is also theirs
(section 4.2.2, `visualize_attention.py`). Departure: maps are upsampled smoothly, not in blocks.

Shape legend: N images · h heads · H×W patches · S pixels a side.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from vitrail.backbones.contract import TokenBackbone
from vitrail.encoder import Encoder, evaluating
from vitrail.evals.contract import Context
from vitrail.evals.features import shown
from vitrail.evals.figures.grid import Cell, cell_side, heat, save_grid

Array = np.ndarray

KEEP = 0.6  # share of a map's mass inside the mask
MAX_HEADS = 6  # heads drawn at most
OUTSIDE = 0.3  # brightness outside the mask, as a share


def token_backbone(encoder: Encoder, protocol: str) -> TokenBackbone:
    """Returns the encoder's backbone, which must have tokens.

    Args:
        encoder: any encoder.
        protocol: name of the protocol, for the message.

    Raises:
        ValueError: a backbone without tokens.
    """
    if not isinstance(encoder.backbone, TokenBackbone):
        name = encoder.description()["backbone"] or type(encoder.backbone).__name__
        raise ValueError(
            f"{protocol}: backbone {name} has no tokens to draw; it is for token backbones "
            "(`vitrail list backbones`). Leave it out of --protocols"
        )
    return encoder.backbone


def whole_patches(encoder: Encoder, size: int, protocol: str) -> int:
    """Returns a size in pixels, rounded down to whole patches.

    Backbones with tokens accept images of any such size: they resample or compute their position
    embeddings.

    Raises:
        ValueError: a backbone without tokens, or a size below one patch.
    """
    patch = token_backbone(encoder, protocol).patch_size
    if size < patch:
        raise ValueError(
            f"{protocol}: a size of {size} pixels is below one patch of {patch}; use {patch} or "
            "more"
        )
    return size // patch * patch


def at_size(encoder: Encoder, size: int | None, protocol: str) -> Encoder:
    """Returns the encoder with preprocessing for images of another size; the crop stays the same.

    Args:
        encoder: encoder with a token backbone.
        size: pixels a side, rounded down to whole patches; None returns the encoder as it is.
        protocol: name of the protocol, for the message.
    """
    if size is None:
        return encoder
    side, own = whole_patches(encoder, size, protocol), encoder.preprocess
    resize = max(side, round(side * own.resize / own.size))
    return Encoder(encoder.backbone, replace(own, size=side, resize=resize), encoder.info)


def token_maps(encoder: Encoder, images: list[Tensor]) -> Float32[Array, "N h H W"]:
    """Returns the last layer's map of each head; each map sums to 1 over the patches.

    Args:
        encoder: encoder with a token backbone.
        images: uint8 [C, y, x] with the encoder's channels.

    Raises:
        ValueError: a backbone without tokens.
    """
    return pixel_maps(encoder, encoder.preprocess(images))


def pixel_maps(
    encoder: Encoder, pixels: Float[Tensor, "N C S s"], protocol: str = "saliency"
) -> Float32[Array, "N h H W"]:
    """Returns `token_maps` of preprocessed images whose sides are whole patches."""
    backbone = token_backbone(encoder, protocol)
    with evaluating(backbone):
        maps_NhHW = backbone.token_maps(pixels.to(encoder.device))
    mass = maps_NhHW.sum((2, 3), keepdim=True).clamp_min(1e-12)
    return (maps_NhHW / mass).float().cpu().numpy()


def mass_mask(values: Float[Array, "H W"], keep: float = KEEP) -> Bool[Array, "H W"]:
    """Returns the fewest patches, largest first, that hold at least `keep` of the mass.

    Ties are ordered by position.

    Args:
        values: map, float [H, W], each value 0 or more.
        keep: share of the mass, in (0, 1].
    """
    order = np.argsort(-values, axis=None, kind="stable")
    before = np.concatenate([[0.0], np.cumsum(values.ravel()[order], dtype=np.float64)[:-1]])
    mask = np.zeros(values.size, dtype=bool)
    # the margin absorbs rounding: the patch that exactly reaches the share must be the last
    mask[order] = before < keep * values.sum(dtype=np.float64) * (1 - 1e-6)
    return mask.reshape(values.shape)


def draw_saliency(context: Context) -> None:
    """Draws figures/saliency.png."""
    encoder = at_size(context.encoder, context.image_size, "saliency")
    saliency_figure(encoder, context.images(context.pictures), context.figures / "saliency.png")


def saliency_figure(encoder: Encoder, images: list[Tensor], path: Path) -> Path:
    """Writes a PNG with a column per image: image, average map, its 60 % mask, and head maps."""
    maps_NhHW = token_maps(encoder, images)
    side = cell_side(encoder.preprocess.size)
    heads = range(min(maps_NhHW.shape[1], MAX_HEADS))
    columns = []
    for image_SSc, maps_hHW in zip(shown(encoder, images), maps_NhHW, strict=True):
        average = maps_hHW.mean(0)
        marked = mark(image_SSc, mass_mask(average))
        cells = [image_SSc, heat(average, side), marked, *(heat(maps_hHW[h], side) for h in heads)]
        columns.append([Cell(picture) for picture in cells])
    margin = ["image", "average", f"{KEEP:.0%} of it", *(f"head {h + 1}" for h in heads)]
    rows = [list(row) for row in zip(*columns, strict=True)]
    return save_grid(rows, path, side=side, margin=margin)


def mark(
    image: Float[Array, "S s c"], mask: Bool[Array, "H W"], tint: float = 0.4
) -> Float[Array, "S s colours"]:
    """Returns the image tinted inside the mask and darker outside.

    Args:
        image: grey or RGB in [0, 1], float [S, s, c].
        mask: mask of patches or pixels, bool [H, W]; its sides divide the image's.
        tint: share of the tint's colour inside the mask, in [0, 1].
    """
    height, width = (a // b for a, b in zip(image.shape[:2], mask.shape, strict=True))
    inside = np.kron(mask, np.ones((height, width)))[..., None]
    tinted = (1 - tint) * image + tint * np.array([1.0, 0.6, 0.2])
    return tinted * inside + OUTSIDE * image * (1 - inside)
