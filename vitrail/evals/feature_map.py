"""A figure of the test features as points in a plane, coloured by class, for each kind.

The points are the two leading principal components, or on request UMAP's coordinates (McInnes et
al. 2018, arXiv:1802.03426), which need the package. Some of the points are drawn as their images.

Shape legend: N images · D features.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.linalg
from jaxtyping import Float, Float32, Float64, Int64
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from vitrail.data.contract import BadSampleError
from vitrail.evals.contract import Context
from vitrail.evals.features import shown
from vitrail.evals.figures.grid import INK, new_figure, save_png
from vitrail.nn.random import philox

Array = np.ndarray

POINTS = 2000  # points drawn at most
NAMED = 10  # entries of the legend: classes with their own colour, or one less and the rest
THUMBNAILS = 12  # images drawn in a panel at most
# contrast of 2.7:1 or more on white and on near-black; adjacent classes also differ in the shape
# of their points
COLOURS = (
    *("#3d8db4", "#de6b35", "#2a9d63", "#d1495b", "#9070cf"),
    *("#b08030", "#d067a8", "#2f9fa8", "#7f942c", "#6f87d8"),
)
SHAPES = "os^Dv"
PANEL, TITLE, LEGEND = 3.9, 0.3, 0.26  # inches: side of a panel, its title, a row of the legend
LEGEND_COLUMNS = 5  # with three panels; in proportion with fewer
THUMBNAIL = 0.085  # side, as a share of a panel's side
DPI = 130


@dataclass(frozen=True)
class Map:
    """The settings of the map.

    Attributes:
        layout: how features are brought to a plane; umap needs the package umap-learn.
    """

    layout: Literal["pca", "umap"] = "pca"


def principal_plane(features: Float32[Array, "N D"]) -> tuple[Float64[Array, "N 2"], float]:
    """Returns coordinates along the two leading components, and their share of the variance.

    The sign of a component is arbitrary: its coordinate of largest magnitude is made positive.

    Args:
        features: float32 [N, D].

    Raises:
        ValueError: fewer than 3 rows, or features that are not finite.
    """
    if len(features) < 3:
        raise ValueError(f"map: there are {len(features)} images; a map needs at least 3")
    if not np.isfinite(features).all():
        raise ValueError("map: features hold NaN or infinity; the encoder has diverged")
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    gram = centred @ centred.T  # small: N is at most POINTS
    n = len(gram)
    values, vectors = scipy.linalg.eigh(gram, subset_by_index=[n - 2, n - 1])
    plane = (vectors * np.sqrt(values.clip(min=0)))[:, ::-1]
    largest = plane[np.abs(plane).argmax(axis=0), [0, 1]]
    total = float(np.trace(gram))
    return plane * np.where(largest < 0, -1, 1), float(values.clip(min=0).sum() / max(total, 1e-30))


def umap_plane(features: Float32[Array, "N D"], seed: int) -> Float64[Array, "N 2"]:
    """Returns UMAP's coordinates by cosine distance, with the package's defaults.

    Args:
        features: float32 [N, D].
        seed: seed of UMAP.

    Raises:
        ValueError: UMAP is not installed, or fewer than 4 rows.
    """
    try:
        import umap
    except ImportError as error:
        raise ValueError("map: map_layout 'umap' needs UMAP: pip install umap-learn") from error
    if len(features) < 4:
        raise ValueError(f"map: there are {len(features)} images; UMAP needs at least 4")
    reducer = umap.UMAP(
        metric="cosine", random_state=seed, n_neighbors=min(15, len(features) - 1), n_jobs=1
    )
    return np.asarray(reducer.fit_transform(features), dtype=np.float64)


def draw_map(context: Context, config: Map) -> None:
    """Draws figures/map.png, with a panel for each kind of features."""
    test = context.test
    order = philox(context.seed, "map", 0).permutation(len(test.labels))
    rows = np.sort(order[:POINTS])
    planes, notes = {}, {}
    for kind, features in test.features.items():
        if config.layout == "umap":
            planes[kind], notes[kind] = umap_plane(features[rows], context.seed), "UMAP"
        else:
            planes[kind], share = principal_plane(features[rows])
            notes[kind] = f"{share:.0%} of the variance"
    labels = test.labels[rows]
    chosen = {kind: spread(plane) for kind, plane in planes.items()}
    pictures = _pictures(context, rows, {at for points in chosen.values() for at in points})
    names = [str(name) for name in test.source.classes or ()]
    map_figure(planes, notes, labels, names, chosen, pictures, context.figures / "map.png")


def map_figure(
    planes: dict[str, Float64[Array, "N 2"]],
    notes: dict[str, str],
    labels: Int64[Array, " N"],
    classes: list[str],
    chosen: dict[str, list[int]],
    pictures: dict[int, Float[Array, "S S colours"]],
    path: Path,
) -> Path:
    """Writes a PNG with a panel for each kind, and a legend of the most frequent classes.

    Args:
        planes: coordinates of the points for each kind, float64 [N, 2].
        notes: text beside each panel's title.
        labels: classes of the points, -1 for none, int64 [N].
        classes: names of the classes.
        chosen: rows to draw as images in each panel.
        pictures: those images by row, grey or RGB in [0, 1].
        path: path of the PNG, returned.
    """
    named = _named(labels)
    handles = _handles(named, labels, classes)
    columns = max(2, LEGEND_COLUMNS * len(planes) // 3)
    bottom = LEGEND * -(-len(handles) // columns) + (0.12 if handles else 0.04)
    width, height = PANEL * len(planes), PANEL + TITLE + bottom
    figure = new_figure(width, height, DPI)
    for panel, (kind, plane) in enumerate(planes.items()):
        left, side = (panel * PANEL + 0.06) / width, PANEL - 0.12
        axes: Any = figure.add_axes((left, bottom / height, side / width, side / height))
        _frame(axes, kind, notes[kind])
        unit = _unit(plane)
        _points(axes, unit, labels, named)
        for at in chosen[kind]:
            if at in pictures:
                _thumbnail(axes, unit[at], pictures[at], _colour(int(labels[at]), named))
    if handles:
        figure.legend(
            handles=handles,
            loc="lower center",
            ncols=columns,
            frameon=False,
            labelcolor=INK,
            fontsize=11,
            handletextpad=0.2,
            columnspacing=1.4,
        )
    return save_png(figure, path)


def spread(plane: Float64[Array, "N 2"]) -> list[int]:
    """Returns up to THUMBNAILS rows by farthest-point sampling, without overlap of their images."""
    unit = _unit(plane)
    apart = 1.3 * THUMBNAIL
    first = int(np.square(unit - 0.5).sum(1).argmin())
    rows, nearest = [first], np.abs(unit - unit[first]).max(1)
    while len(rows) < THUMBNAILS:
        at = int(nearest.argmax())
        if nearest[at] < apart:
            break
        rows.append(at)
        nearest = np.minimum(nearest, np.abs(unit - unit[at]).max(1))
    return rows


def _unit(plane: Array) -> Array:
    """Scales points into [0.06, 0.94]², both axes alike; outliers are clipped to the border."""
    low, high = np.percentile(plane, [0.5, 99.5], axis=0)
    scale = max(float((high - low).max()), 1e-12)
    return np.clip(0.5 + 0.86 * (plane - (low + high) / 2) / scale, 0.06, 0.94)


def _named(labels: Array) -> list[int]:
    """Returns the classes with their own colour, the most frequent ones, by number."""
    present, counts = np.unique(labels[labels >= 0], return_counts=True)
    limit = NAMED if len(present) <= NAMED else NAMED - 1  # the last entry is "… more"
    return sorted(present[np.argsort(-counts, kind="stable")][:limit].tolist())


def _colour(label: int, named: list[int]) -> str:
    return COLOURS[named.index(label)] if label in named else INK


def _points(axes: Any, unit: Array, labels: Array, named: list[int]) -> None:
    size = float(np.clip(14000 / len(unit), 12, 50))
    style = {"s": size, "linewidths": 0, "alpha": 0.75}
    others = ~np.isin(labels, named)
    axes.scatter(*unit[others].T, color=INK, **(style | {"alpha": 0.45, "s": 0.7 * size}))
    for i, label in enumerate(named):
        members = unit[labels == label]
        axes.scatter(*members.T, color=COLOURS[i], marker=SHAPES[i % len(SHAPES)], **style)


def _thumbnail(axes: Any, centre: Array, picture: Array, colour: str) -> None:
    x, y = np.clip(centre, THUMBNAIL / 2, 1 - THUMBNAIL / 2) - THUMBNAIL / 2
    picture = np.broadcast_to(picture, (*picture.shape[:2], 3))
    extent = (x, x + THUMBNAIL, y, y + THUMBNAIL)
    axes.imshow(picture, extent=extent, zorder=3, interpolation="antialiased", aspect="auto")
    frame = Rectangle(
        (x, y), THUMBNAIL, THUMBNAIL, fill=False, edgecolor=colour, linewidth=2, zorder=4
    )
    axes.add_patch(frame)


def _frame(axes: Any, kind: str, note: str) -> None:
    axes.set_facecolor("none")
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[])
    axes.set_title(kind, loc="left", fontsize=14, color=INK, fontweight="bold")
    axes.set_title(note, loc="right", fontsize=11, color=INK)
    for spine in axes.spines.values():
        spine.set(color=INK, alpha=0.4, linewidth=0.8)


def _handles(named: list[int], labels: Array, classes: list[str]) -> list[Line2D]:
    """Returns the legend's entries: one for each named class, and one for all others."""
    style: dict[str, Any] = {"linestyle": "none", "markeredgewidth": 0, "markersize": 8}
    handles = [
        Line2D([], [], color=COLOURS[i], marker=SHAPES[i % len(SHAPES)], label=label, **style)
        for i, label in enumerate(_legible(classes[c] if c < len(classes) else c) for c in named)
    ]
    others = len(np.unique(labels[labels >= 0])) - len(named)
    if others:
        handles.append(Line2D([], [], color=INK, marker="o", label=f"{others} more", **style))
    return handles


def _legible(name: Any) -> str:
    """Returns a name that matplotlib can show in a legend.

    It is short and printable, without math mode or a leading underscore, which hides an entry.
    """
    text = "".join(c if c.isprintable() else "?" for c in str(name)).replace("$", r"\$")
    text = text if len(text) <= 18 else f"{text[:17]}…"
    return f" {text}" if text.startswith("_") else text


def _pictures(context: Context, rows: Array, wanted: set[int]) -> dict[int, Array]:
    """Returns the images of the wanted rows that can be read."""
    pictures = {}
    for at in sorted(wanted):
        try:
            image = context.test.source.read(int(context.test.index[rows[at]])).image
        except BadSampleError:
            continue
        pictures[at] = shown(context.encoder, [image])[0]
    return pictures
