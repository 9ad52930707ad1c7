"""Frozen features of a whole source, read once.

Shape legend: N samples · D features · B images of one batch · C channels · S pixels a side.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn import functional as F

from vitrail.backbones.contract import Backbone, TokenBackbone
from vitrail.backbones.skeleton import SkeletonBackbone
from vitrail.data.contract import Source, number_of
from vitrail.data.loading.loader import read_images
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.views.preprocess import Preprocess
from vitrail.encoder import Encoder, evaluating
from vitrail.evals.figures.grid import fill_no_range, in_colours

Array = np.ndarray
# From a preprocessed batch [B, C, S, S] to float32 [B, D].
Embed = Callable[[Tensor], Array]

RAW_PIXELS_LIMIT = 2**29  # float32 values, 2 GiB


def features(
    encoder: Encoder,
    source: Source,
    quarantine: Quarantine | None = None,
    batch_size: int = 256,
    workers: int = 0,
) -> tuple[Float32[Array, "N D"], Int64[Array, " N"], list[str]]:
    """Features, labels (-1 where there is none) and ids of all readable samples, in order."""
    embeds: dict[str, Embed] = {"features": encoder.embed}
    table, labels, index = collect(
        encoder.preprocess, embeds, source, quarantine, batch_size, workers
    )
    return table["features"], labels, [source.id(i) for i in index.tolist()]


def collect(
    preprocess: Preprocess,
    embeds: dict[str, Embed],
    source: Source,
    quarantine: Quarantine | None = None,
    batch_size: int = 256,
    workers: int = 0,
) -> tuple[dict[str, Array], Int64[Array, " N"], Int64[Array, " N"]]:
    """Several embeddings of the same images, which are decoded and preprocessed once.

    Returns:
        the tables [N, D] by name, labels (-1 where there is none), and positions in the source.
    """
    quarantine = quarantine or Quarantine(None, len(source))
    parts: dict[str, list[Array]] = {name: [] for name in embeds}
    kept: list[int] = []
    for index, images in _batches(source, quarantine, batch_size, workers):
        kept += index
        pixels_BCSS = preprocess(images)
        for name, embed in embeds.items():
            parts[name].append(embed(pixels_BCSS))
    if not kept:
        raise ValueError(f"{source.spec}: none of its {len(source)} images can be read")
    labels = [source.label(i) for i in kept]
    numbers = np.array([number_of(label) for label in labels], dtype=np.int64)
    table = {name: np.concatenate(part) for name, part in parts.items()}
    return table, numbers, np.array(kept, dtype=np.int64)


def _batches(
    source: Source, quarantine: Quarantine, batch_size: int, workers: int
) -> Iterator[tuple[list[int], list[Tensor] | Tensor]]:
    pixels = source.pixels()
    if pixels is not None:
        for start in range(0, len(pixels), batch_size):
            stop = min(start + batch_size, len(pixels))
            yield list(range(start, stop)), pixels[start:stop]
        return
    for index, images in read_images(source, quarantine, workers):
        for start in range(0, len(index), batch_size):
            rows = slice(start, start + batch_size)
            yield index[rows], images[rows]


def raw_pixels(side: int) -> Embed:
    """The baseline without an encoder: the preprocessed pixels, shrunk to side x side."""

    def embed(pixels_BCSS: Tensor) -> Array:
        if side < pixels_BCSS.shape[-1]:
            pixels_BCSS = F.interpolate(pixels_BCSS, size=side, mode="area")
        return pixels_BCSS.flatten(1).float().cpu().numpy()

    return embed


def raw_side(preprocess: Preprocess, channels: int, n_samples: int) -> int:
    """The largest halving of the image's side at which the raw pixels of all samples fit 2 GiB."""
    side = preprocess.size
    while n_samples * channels * side**2 > RAW_PIXELS_LIMIT and side > 8:
        side //= 2
    return side


def shown(encoder: Encoder, images: list[Tensor]) -> Float32[Array, "B S S colours"]:
    """What the encoder is given, as colours in [0, 1] (grey or RGB), for pictures."""
    pixels_BCSS = encoder.preprocess(images)
    mean = torch.tensor(encoder.preprocess.mean)[:, None, None]
    std = torch.tensor(encoder.preprocess.std)[:, None, None]
    scaled = bool(len(images)) and fill_no_range(images[0])
    colours = in_colours(pixels_BCSS * std + mean, scaled)
    return colours.permute(0, 2, 3, 1).float().numpy()


LAST_BLOCKS = 4
TOGETHER = 32  # images whose layers are all held at once

POOLED, WITH_PATCHES = "pooled", "pooled + mean patch"


class FeatureChoices:
    """An embedding whose columns hold all choices, each of them one run of columns.

    Columns: the mean patch, the pooled feature, and the class tokens of the layers before, after
    the backbone's final norm, going backwards. With a class token that passes all layers (ViT,
    CRATE, AoT, ToST-ViT), the pooled feature is the last layer's: there are "pooled", "pooled +
    mean patch", "last n class tokens", and these "+ mean patch". ToST has no class token to look
    at in its layers; ResNet and Swin, whose pooled feature is the mean of the patches, have it
    alone.

    Args:
        encoder: frozen.
        last_blocks: n, at least 1; clipped to the layers that there are.
    """

    def __init__(self, encoder: Encoder, last_blocks: int = LAST_BLOCKS):
        if last_blocks < 1:
            raise ValueError(f"last_blocks is {last_blocks}; it must be at least 1")
        self._backbone = encoder.backbone
        self._n_last = _layers_of(encoder.backbone, last_blocks)
        width = encoder.embed_dim
        self.columns = {POOLED: slice(0, width)}
        if isinstance(encoder.backbone, TokenBackbone):
            self.columns = {POOLED: slice(width, 2 * width), WITH_PATCHES: slice(0, 2 * width)}
        if self._n_last > 1:
            name = f"last {self._n_last} class tokens"
            self.columns[name] = slice(width, (1 + self._n_last) * width)
            self.columns[f"{name} + mean patch"] = slice(0, (1 + self._n_last) * width)

    def embed(self, pixels: Float[Tensor, "B C S S"]) -> Float32[Array, "B E"]:
        """The columns of one preprocessed batch."""
        device = next(self._backbone.parameters()).device
        with evaluating(self._backbone):
            parts = [self._columns_of(part.to(device)) for part in pixels.split(TOGETHER)]
        return torch.cat(parts).float().cpu().numpy()

    def _columns_of(self, pixels_BCSS: Tensor) -> Tensor:
        backbone = self._backbone
        if not isinstance(backbone, TokenBackbone):
            return backbone(pixels_BCSS).pooled
        if not isinstance(backbone, SkeletonBackbone):
            features = backbone(pixels_BCSS)
            assert features.patches is not None
            return torch.cat([features.patches.mean((1, 2)), features.pooled], dim=1)
        states = backbone.layer_states(pixels_BCSS)[-self._n_last :]
        last_BND = backbone.norm(states[-1].after)
        before = [backbone.norm(state.after[:, 0]) for state in reversed(states[:-1])]
        mean_BD = last_BND[:, backbone.n_prefix :].mean(1)
        return torch.cat([mean_BD, last_BND[:, 0], *before], dim=1)


def _layers_of(backbone: Backbone, wanted: int) -> int:
    """How many layers' class tokens can be had."""
    return min(wanted, len(backbone.blocks)) if isinstance(backbone, SkeletonBackbone) else 1
