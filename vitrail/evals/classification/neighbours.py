"""A figure of test images and their nearest training images in feature space."""

from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from vitrail.data.contract import BadSampleError, Source
from vitrail.encoder import Encoder
from vitrail.evals.classification.search import neighbours
from vitrail.evals.contract import Context
from vitrail.evals.features import as_colours
from vitrail.evals.figures.grid import RIGHT, WRONG, Cell, cell_side, save_grid

ROWS = 6  # test images, at most


def draw_neighbours(context: Context) -> None:
    """Draws figures/neighbours.png, of trained features."""
    rows, train, test = context.chosen(context.pictures)[:ROWS], context.train, context.test
    neighbours_figure(
        context.encoder,
        train.source,
        train.features["trained"],
        train.index,
        test.source,
        test.features["trained"][rows],
        test.index[rows],
        context.figures / "neighbours.png",
    )


def neighbours_figure(
    encoder: Encoder,
    train: Source,
    train_features: Float32[np.ndarray, "N D"],
    train_index: Int64[np.ndarray, " N"],
    test: Source,
    test_features: Float32[np.ndarray, "n D"],
    test_index: Int64[np.ndarray, " n"],
    path: Path,
    k: int = 6,
) -> Path:
    """Writes a PNG with a row for each test image: the image and its k nearest train images.

    In labelled data, a green frame and a tick mark neighbours of the same class; a red frame and a
    cross mark others.

    Args:
        encoder: its preprocessing is applied to the images shown.
        train: source of the train images.
        train_features: features of the train images, float32 [N, D].
        train_index: number in `train` of the sample of each feature row, int64 [N].
        test: source of the test images.
        test_features: features of the test images to show, float32 [n, D].
        test_index: number in `test` of the sample of each feature row, int64 [n].
        path: path of the PNG, returned.
        k: neighbours of each image.
    """
    similarity, nearest = neighbours(train_features, test_features, min(k, len(train_features)))
    rows = []
    for query, row, cosines in zip(test_index.tolist(), nearest, similarity, strict=True):
        label = test.label(query)
        shown = _picture(encoder, test, query)
        if shown is None:
            continue
        cells = [Cell(shown, _name(test, label))]
        for at, cosine in zip(train_index[row].tolist(), cosines.tolist(), strict=True):
            other, frame, mark = train.label(at), None, ""
            if label is not None and other is not None:
                frame, mark = (RIGHT, "✓ ") if other == label else (WRONG, "✗ ")
            caption = " · ".join(filter(None, [f"{mark}{_name(train, other)}", f"{cosine:.2f}"]))
            shown = _picture(encoder, train, at)
            if shown is None:  # readable when its features were taken
                shown, caption = (
                    np.full((1, 1, 1), 0.5, dtype=np.float32),
                    "cannot be read any more",
                )
            cells.append(Cell(shown, caption, frame))
        rows.append(cells)
    if not rows:
        raise ValueError(f"{test.spec}: none of the images chosen to look at can be read any more")
    titles = ["test image", "nearest", *[""] * (nearest.shape[1] - 1)]
    side = cell_side(encoder.preprocess.size)
    return save_grid(rows, path, side=side, columns=titles)


def _picture(encoder: Encoder, source: Source, index: int) -> np.ndarray | None:
    """Returns an image in colours; None if it cannot be read."""
    try:
        return as_colours(encoder, [source.read(index).image])[0]
    except BadSampleError:
        return None


def _name(source: Source, label: int | None) -> str:
    if label is None or source.classes is None:
        return ""
    name = str(source.classes[label])
    return name if len(name) <= 14 else f"{name[:13]}…"
