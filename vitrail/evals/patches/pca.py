"""What the encoder tells apart: principal components of the patch features of several images.

Source: Oquab et al. 2023 (DINOv2, arXiv:2304.07193), figure 1: the first component separates the
foreground, the next three are its colours. Departures: one PCA, not a second one of the foreground;
the threshold is Otsu's, and "foreground" is the side of it that the pictures' borders are not on.

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
from vitrail.evals.features import shown
from vitrail.evals.figures.grid import Cell, cell_side, enlarge, save_grid, upsample
from vitrail.evals.patches.saliency import OUTSIDE

Array = np.ndarray


@dataclass(frozen=True)
class PatchComponents:
    """first: the first component in [0, 1], high in the foreground; colours: the next three."""

    first: Float[Array, "N H W"]
    foreground: Bool[Array, "N H W"]
    colours: Float[Array, "N H W 3"]
    explained: Float[Array, " 4"]  # shares of the variance


def patch_features(encoder: Encoder, images: list[Tensor]) -> Float32[Array, "N H W D"]:
    """The patch features of uint8 images [C, H, W]. ValueError if the backbone has none."""
    with evaluating(encoder.backbone):
        patches = encoder.backbone(encoder.preprocess(images).to(encoder.device)).patches
    if patches is None:
        name = encoder.description()["backbone"] or type(encoder.backbone).__name__
        raise ValueError(
            f"pca: backbone {name} has no patch features to draw; leave it out of --protocols"
        )
    return patches.float().cpu().numpy()


def patch_components(patches: Float32[Array, "N H W D"]) -> PatchComponents:
    """The four leading components of all patches together; a pure function of the features.

    Raises:
        ValueError: fewer than 4 patches or features.
    """
    n, height, width, d = patches.shape
    rows = patches.reshape(-1, d).astype(np.float64)
    if min(rows.shape) < 4:
        raise ValueError(
            f"pca: {len(rows)} patches of {d} features; four components need 4 of each"
        )
    with np.errstate(invalid="ignore"):  # shares of no variance at all are 0 / 0
        pca = PCA(4, svd_solver="full").fit(rows)
    # A component's sign is arbitrary: its largest entry is positive.
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
    """The threshold that splits values into the two classes of largest between-class variance.

    Source: Otsu 1979, eq. 18. Of equal ones, the middle.
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
    """A PNG, a column an image: the image, the first component, the foreground that it gives, and
    in that the next three components as red, green and blue. All are of one PCA of all images."""
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
    """A PNG, two columns a group of as many images: the images, and beside each its parts, coloured
    by a PCA of the group alone. Like parts of the group have like colours (DINOv2, figure 1)."""
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
    """(the foreground of image n, [side, side, 1], and the colours in it)."""
    channels = [upsample(components.colours[n, ..., c], side) for c in range(3)]
    inside = upsample(components.foreground[n].astype(np.float32), side)[..., None] > 0.5
    return inside, np.where(inside, np.clip(np.stack(channels, -1), 0, 1), 0.12)
