"""The table of evaluation protocols: each turns features into numbers, or images into a picture."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from vitrail.evals.classification import protocols
from vitrail.evals.classification.neighbours import neighbours_figure
from vitrail.evals.contract import Material
from vitrail.evals.feature_map import draw_map
from vitrail.evals.figures.layers import layers_figure, layers_table
from vitrail.evals.patches.jaccard import jaccard, jaccard_table
from vitrail.evals.patches.pca import parts_figure, pca_figure
from vitrail.evals.patches.protocols import detect, detection_table, draw_objects
from vitrail.evals.patches.saliency import at_size, saliency_figure
from vitrail.evals.retrieval.image_ranking import rank_test, ranking_table
from vitrail.evals.retrieval.protocols import (
    find_pairs,
    name_classes,
    retrieval_table,
    zeroshot_table,
)
from vitrail.evals.xray import EPS, xray

Array = np.ndarray
XRAY_IMAGES = 32
PARTS_CLASSES, PARTS_EACH = 4, 4  # columns and rows of the picture of parts


class Protocol(NamedTuple):
    """One that needs no labels, or gives no numbers, draws figures/NAME.png.

    run: gives numbers for evaluation.json, or None where there is only the figure. labels: it needs
    them, and its numbers are accuracies. features: it needs those of the whole data. table: shows
    numbers that are not accuracies. optional: it runs where it is asked for by name, as it is slow.
    numbers: it gives some. compares: it wants raw and untrained features too, though it needs no
    labels.
    """

    run: Callable[[Material], Any]
    help: str
    labels: bool
    features: bool
    table: Callable[[Any], Table] | None = None
    optional: bool = False
    numbers: bool = True
    compares: bool = False


def _neighbours(m: Material) -> None:
    rows, train, test = m.chosen(m.settings.pictures)[:6], m.train, m.test
    neighbours_figure(
        m.encoder,
        train.source,
        train.features["trained"],
        train.index,
        test.source,
        test.features["trained"][rows],
        test.index[rows],
        m.figures / "neighbours.png",
    )


def _saliency(m: Material) -> None:
    encoder = at_size(m.encoder, m.settings.image_size, "saliency")
    saliency_figure(encoder, m.images(m.settings.pictures), m.figures / "saliency.png")


def _pca(m: Material) -> None:
    encoder = at_size(m.encoder, m.settings.image_size, "pca")
    pca_figure(encoder, m.images(m.settings.pictures), m.figures / "pca.png")


def _parts(m: Material) -> None:
    encoder = at_size(m.encoder, m.settings.image_size, "parts")
    parts_figure(encoder, m.by_class(PARTS_CLASSES, PARTS_EACH), m.figures / "parts.png")


def _xray(m: Material) -> dict[str, Any]:
    images = m.images(XRAY_IMAGES)
    layers = {"untrained": xray(m.encoder.untrained(), images), "trained": xray(m.encoder, images)}
    layers_figure(layers, m.figures / "xray.png")
    return {"images": len(images), "eps": EPS, **layers}


# name: run, help, needs labels, needs the features of all images, a table of its own
PROTOCOLS: dict[str, Protocol] = {
    "knn": Protocol(
        protocols.knn,
        "accuracy of 20 nearest neighbours (--k), votes weighted by exp(cos / 0.07)",
        True,
        True,
    ),
    "knn_majority": Protocol(
        protocols.knn_majority, "the same with one vote each, as the book has it", True, True
    ),
    "linear": Protocol(
        protocols.linear,
        "accuracy of a linear classifier on all labelled training images",
        True,
        True,
    ),
    "linear_10_per_class": Protocol(
        protocols.linear_per_class,
        "the same with 10 labelled images per class, mean and std of 10 draws",
        True,
        True,
    ),
    "linear_1_percent": Protocol(
        protocols.linear_of_share(0.01),
        "if named: the same with 1 % of the labels, mean and std of 3 fixed subsets",
        True,
        True,
        optional=True,
    ),
    "linear_10_percent": Protocol(
        protocols.linear_of_share(0.1), "if named: the same with 10 %", True, True, optional=True
    ),
    "linear_sweep": Protocol(
        protocols.linear_sweep,
        "if named: as linear, of the best of several features (last class tokens, mean patch)",
        True,
        True,
        optional=True,
    ),
    "finetune": Protocol(
        protocols.finetuned(1.0),
        "if named: accuracy after training the whole encoder on all labels (--finetune.lr ...)",
        True,
        False,
        optional=True,
    ),
    "finetune_1_percent": Protocol(
        protocols.finetuned(0.01),
        "if named: the same with 1 % of the labels, mean and std of 3 fixed subsets",
        True,
        False,
        optional=True,
    ),
    "finetune_10_percent": Protocol(
        protocols.finetuned(0.1), "if named: the same with 10 %", True, False, optional=True
    ),
    "confusion": Protocol(
        protocols.confusion,
        "picture: which classes k-NN takes for which",
        True,
        True,
        numbers=False,
    ),
    "mean_average_precision": Protocol(
        rank_test,
        "if named: of test images of one's own class, ordered by similarity; also recall@k",
        True,
        True,
        ranking_table,
        optional=True,  # it orders all pairs of test images
    ),
    "map": Protocol(
        draw_map,
        "picture: all test images in a plane, coloured by class (PCA, or UMAP if installed)",
        False,
        True,
        numbers=False,
        compares=True,
    ),
    "neighbours": Protocol(
        _neighbours,
        "picture: the nearest training images of a few test images",
        False,
        True,
        numbers=False,
    ),
    "saliency": Protocol(
        _saliency, "picture: what the last layer looks at", False, False, numbers=False
    ),
    "pca": Protocol(
        _pca, "picture: principal components of patch features", False, False, numbers=False
    ),
    "parts": Protocol(
        _parts,
        "picture: like parts of images of one class, by the components of their patches",
        True,
        False,
        numbers=False,
    ),
    "jaccard": Protocol(
        jaccard,
        "numbers and picture: saliency against the objects that are marked, of data with masks",
        False,
        False,
        jaccard_table,
    ),
    "maskcut": Protocol(
        draw_objects,
        "if named: picture: objects that MaskCut finds in a few images (--maskcut.tau ...)",
        False,
        False,
        optional=True,
        numbers=False,
    ),
    "detection": Protocol(
        detect,
        "if named: AP of MaskCut's boxes and masks on annotated images (--coco.folder DIR)",
        False,
        False,
        detection_table,
        optional=True,
    ),
    "zeroshot": Protocol(
        name_classes,
        "accuracy of the nearest class name (--templates), of encoders with a text side",
        False,
        True,
        zeroshot_table,
    ),
    "retrieval": Protocol(
        find_pairs,
        "numbers and picture: images found by captions and captions by images, recall@k",
        False,
        True,
        retrieval_table,
    ),
    "xray": Protocol(
        _xray,
        "numbers and picture, layer by layer: coding rate, compression, sparsity, coherence",
        False,
        False,
        layers_table,
    ),
}
