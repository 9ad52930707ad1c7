"""Frozen features of a whole source, in one pass over its images.

Shape legend: N samples · D features · B images of one batch · C channels · S pixels a side.
"""

from array import array
from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn import functional as F

from vitrail.backbones.contract import Backbone, TokenBackbone
from vitrail.backbones.skeleton import SkeletonBackbone
from vitrail.data.contract import Source, number_of
from vitrail.data.decode.colours import fill_no_range, in_colours
from vitrail.data.loading.loader import read_images
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.views.preprocess import Preprocess
from vitrail.encoder import Encoder, evaluating
from vitrail.evals.seen.identical import add_digests

# preprocessed batch [B, C, S, S] -> features float32 [B, D]
Embed = Callable[[Tensor], np.ndarray]

RAW_PIXELS_LIMIT = 2**29  # float32 values, 2 GiB


def features(
    encoder: Encoder,
    source: Source,
    quarantine: Quarantine | None = None,
    batch_size: int = 256,
    workers: int = 0,
) -> tuple[Float32[np.ndarray, "N D"], Int64[np.ndarray, " N"], list[str]]:
    """Computes the features of all readable samples of a source.

    Args:
        encoder: encoder to use.
        source: images, with or without labels.
        quarantine: record of unreadable images, with its limit; a new one in memory if None.
        batch_size: images of a batch.
        workers: processes that decode images; 0 decodes in this one.

    Returns:
        features float32 [N, D], labels int64 [N] (-1 for none) and ids, in the source's order.
    """
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
    digests: "array[int] | None" = None,
) -> tuple[dict[str, np.ndarray], Int64[np.ndarray, " N"], Int64[np.ndarray, " N"]]:
    """Computes several embeddings of the same images, which are decoded and preprocessed once.

    Args:
        preprocess: preprocessing of the images.
        embeds: embeddings by name; without any, images are only read.
        source: images, with or without labels.
        quarantine: record of unreadable images, with its limit; a new one in memory if None.
        batch_size: images of a batch.
        workers: processes that decode images; 0 decodes in this one.
        digests: where the digests of the decoded images are appended; None for none.

    Returns:
        a table [N, D] for each name, labels int64 [N] (-1 for none), and positions in the source
        int64 [N].

    Raises:
        ValueError: no image can be read.
    """
    quarantine = quarantine or Quarantine(None, len(source))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in embeds}
    readable: list[int] = []
    for index, images in _batches(source, quarantine, batch_size, workers):
        readable += index
        if digests is not None:
            add_digests(images, digests)
        if not embeds:
            continue
        pixels_BCSS = preprocess(images)
        for name, embed in embeds.items():
            parts[name].append(embed(pixels_BCSS))
    if not readable:
        raise ValueError(f"{source.spec}: none of its {len(source)} images can be read")
    labels = [source.label(i) for i in readable]
    numbers = np.array([number_of(label) for label in labels], dtype=np.int64)
    table = {name: np.concatenate(part) for name, part in parts.items()}
    return table, numbers, np.array(readable, dtype=np.int64)


def _batches(
    source: Source, quarantine: Quarantine, batch_size: int, workers: int
) -> Iterator[tuple[list[int], list[Tensor] | Tensor]]:
    """Yields positions and images of all readable samples, batch by batch."""
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
    """Returns the baseline without an encoder: preprocessed pixels, reduced to side x side."""

    def embed(pixels_BCSS: Tensor) -> np.ndarray:
        if side < pixels_BCSS.shape[-1]:
            pixels_BCSS = F.interpolate(pixels_BCSS, size=side, mode="area")
        return pixels_BCSS.flatten(1).float().cpu().numpy()

    return embed


def raw_side(preprocess: Preprocess, channels: int, n_samples: int) -> int:
    """Returns the image's side, halved until the raw pixels of all samples fit in 2 GiB."""
    side = preprocess.size
    while n_samples * channels * side**2 > RAW_PIXELS_LIMIT and side > 8:
        side //= 2
    return side


def as_colours(encoder: Encoder, images: list[Tensor]) -> Float32[np.ndarray, "B S S colours"]:
    """Returns the encoder's preprocessed input as colours in [0, 1] (grey or RGB), for figures."""
    pixels_BCSS = encoder.preprocess(images)
    mean = torch.tensor(encoder.preprocess.mean)[:, None, None]
    std = torch.tensor(encoder.preprocess.std)[:, None, None]
    scaled = bool(len(images)) and fill_no_range(images[0])
    colours = in_colours(pixels_BCSS * std + mean, scaled)
    return colours.permute(0, 2, 3, 1).float().numpy()


LAST_BLOCKS = 4
TOGETHER = 32  # images of a forward pass, as the tokens of all layers are in memory

POOLED, WITH_PATCHES = "pooled", "pooled + mean patch"


class FeatureChoices:
    """An embedding for several choices of features, each of them a contiguous range of columns.

    The columns are the mean patch, the pooled feature, and the class tokens of the earlier layers
    after the backbone's final norm, from the last but one backwards. With a class token in all
    layers (ViT, CRATE, AoT, ToST-ViT), the pooled feature is the last layer's class token, and the
    choices are "pooled", "pooled + mean patch", "last n class tokens", and the latter with "+ mean
    patch". The layers of ToST have no class token, which leaves the first two choices; ResNet and
    Swin, whose pooled feature is the mean of the patches, have the first alone.

    Args:
        encoder: frozen encoder.
        last_blocks: largest number n of class tokens, at least 1; clipped to the number of layers.
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

    def embed(self, pixels: Float[Tensor, "B C S S"]) -> Float32[np.ndarray, "B E"]:
        """Returns the columns of a preprocessed batch."""
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
    """Returns the number of layers whose class tokens are used."""
    return min(wanted, len(backbone.blocks)) if isinstance(backbone, SkeletonBackbone) else 1
