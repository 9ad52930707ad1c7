"""Principal components of the patch features of several images, drawn as colours.

Source: Oquab et al. 2023 (DINOv2, arXiv:2304.07193), figure 1: the first component separates the
foreground, the next three are its colours. Departures: one PCA, not a second one of the foreground;
the threshold is Otsu's, and "foreground" is the side of it with less of the images' borders.

Shape legend: N images · H×W patches · D features.
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Float32
from sklearn.decomposition import PCA
from torch import Tensor

from vitrail.encoder import Encoder, evaluating
from vitrail.evals.contract import Context
from vitrail.evals.features import shown
from vitrail.evals.figures.grid import Cell, cell_side, enlarge, save_grid, upsample
from vitrail.evals.patches.saliency import OUTSIDE, at_size

Array = np.ndarray
PARTS_CLASSES, PARTS_EACH = 4, 4  # columns and rows of the picture of parts


def draw_pca(context: Context) -> None:
    """Draws figures/pca.png."""
    encoder = at_size(context.encoder, context.image_size, "pca")
    pca_figure(encoder, context.images(context.pictures), context.figures / "pca.png")


def draw_parts(context: Context) -> None:
    """Draws figures/parts.png, of images of a few classes."""
    encoder = at_size(context.encoder, context.image_size, "parts")
    groups = context.by_class(PARTS_CLASSES, PARTS_EACH)
    parts_figure(encoder, groups, context.figures / "parts.png")


@dataclass(frozen=True)
class PatchComponents:
    """The four leading principal components of the patch features of N images.

    Attributes:
        first: first component scaled to [0, 1], high in the foreground, float [N, H, W].
        foreground: patches above Otsu's threshold of the first component, bool [N, H, W].
        colours: second to fourth component, scaled and clipped to [0, 1], float [N, H, W, 3].
        explained: share of the variance of each component, float [4].
    """

    first: Float[Array, "N H W"]
    foreground: Bool[Array, "N H W"]
    colours: Float[Array, "N H W 3"]
    explained: Float[Array, " 4"]


def patch_features(encoder: Encoder, images: list[Tensor]) -> Float32[Array, "N H W D"]:
    """Returns the patch features of images.

    Args:
        encoder: encoder with patch features.
        images: uint8 [C, y, x] with the encoder's channels.

    Raises:
        ValueError: a backbone without patch features.
    """
    with evaluating(encoder.backbone):
        patches = encoder.backbone(encoder.preprocess(images).to(encoder.device)).patches
    if patches is None:
        name = encoder.description()["backbone"] or type(encoder.backbone).__name__
        raise ValueError(
            f"pca: backbone {name} has no patch features to draw; leave it out of --protocols"
        )
    return patches.float().cpu().numpy()


def patch_components(patches: Float32[Array, "N H W D"]) -> PatchComponents:
    """Computes the four leading components of all patches together.

    A pure function of the features.

    Args:
        patches: patch features of N images, float32 [N, H, W, D].

    Raises:
        ValueError: fewer than 4 patches or features.
    """
    n, height, width, d = patches.shape
    rows = patches.reshape(-1, d).astype(np.float64)
    if min(rows.shape) < 4:
        raise ValueError(
            f"pca: {len(rows)} patches of {d} features; four components need 4 of each"
        )
    with np.errstate(invalid="ignore"):  # constant features: shares of the variance are 0 / 0
        pca = PCA(4, svd_solver="full").fit(rows)
    # the sign of a component is arbitrary: its largest entry is made positive
    largest = np.abs(pca.components_).argmax(axis=1)
    signs = np.sign(pca.components_[np.arange(4), largest])
    projected = (pca.transform(rows) * signs).reshape(n, height, width, 4)
    first = projected[..., 0]
    border = np.ones((height, width), dtype=bool)
    border[1:-1, 1:-1] = False
    if height > 2 and width > 2 and first[:, border].mean() > first[:, ~border].mean():
        first = -first
    foreground = first > otsu(first)
    chosen = projected[foreground] if foreground.any() else projected.reshape(-1, 4)
    low, high = np.percentile(chosen[:, 1:], [2, 98], axis=0)
    colours = (projected[..., 1:] - low) / np.maximum(high - low, 1e-12)
    return PatchComponents(
        first=(first - first.min()) / max(float(np.ptp(first)), 1e-12),
        foreground=foreground,
        colours=np.clip(colours, 0, 1),
        explained=np.nan_to_num(pca.explained_variance_ratio_),
    )


def otsu(values: Float[Array, "..."], bins: int = 256) -> float:
    """Returns the threshold that splits values with the largest between-class variance.

    Source: Otsu 1979, eq. 18. Of equal thresholds, the middle one.

    Args:
        values: numbers of any shape.
        bins: bins of the histogram whose edges are the candidates.
    """
    counts, edges = np.histogram(values, bins)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sums = np.cumsum(counts * centres)
    mean_below = sums[:-1] / np.maximum(below, 1)
    mean_above = (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    between = below * above * (mean_below - mean_above) ** 2
    best = np.flatnonzero(between >= between.max() * (1 - 1e-9))
    return float(edges[1:-1][best[len(best) // 2]])


def pca_figure(encoder: Encoder, images: list[Tensor], path: Path) -> Path:
    """Writes a PNG with a column per image, from one PCA of all images.

    A column shows the image, the first component, the foreground by its threshold, and within the
    foreground the next three components as red, green and blue.
    """
    components = patch_components(patch_features(encoder, images))
    side = cell_side(encoder.preprocess.size)
    colour_map = matplotlib.colormaps["viridis"]
    columns = []
    for n, image_SSc in enumerate(shown(encoder, images)):
        first = colour_map(np.clip(upsample(components.first[n], side), 0, 1))[..., :3]
        inside, colours = _parts(components, n, side)
        drawn_SSc = enlarge(image_SSc, side)
        cut = np.where(inside, drawn_SSc, OUTSIDE * drawn_SSc)
        columns.append([Cell(image_SSc), Cell(first), Cell(cut), Cell(colours)])
    rows = [list(row) for row in zip(*columns, strict=True)]
    return save_grid(rows, path, side=side, margin=["image", "1st", "foreground", "2nd–4th"])


def parts_figure(encoder: Encoder, groups: dict[str, list[Tensor]], path: Path) -> Path:
    """Writes a PNG with two columns per group: the images, and beside each its coloured parts.

    The colours are components of a PCA of the group alone, so similar parts within a group have
    similar colours (DINOv2, figure 1).

    Args:
        encoder: encoder with patch features.
        groups: images of each group by name, the same number in each.
        path: path of the PNG, returned.
    """
    side = cell_side(encoder.preprocess.size)
    columns: list[list[Cell]] = []
    titles = []
    for name, images in groups.items():
        components = patch_components(patch_features(encoder, images))
        columns.append([Cell(image) for image in shown(encoder, images)])
        columns.append([Cell(_parts(components, n, side)[1]) for n in range(len(images))])
        titles += [name if len(name) <= 16 else f"{name[:15]}…", ""]
    rows = [list(row) for row in zip(*columns, strict=True)]
    return save_grid(rows, path, side=side, columns=titles)


def _parts(components: PatchComponents, n: int, side: int) -> tuple[Array, Array]:
    """Returns the foreground of image n, bool [side, side, 1], and its colours [side, side, 3]."""
    channels = [upsample(components.colours[n, ..., c], side) for c in range(3)]
    inside = upsample(components.foreground[n].astype(np.float32), side)[..., None] > 0.5
    return inside, np.where(inside, np.clip(np.stack(channels, -1), 0, 1), 0.12)
