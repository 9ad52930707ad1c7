"""The table of evaluation protocols: each turns features into numbers, or images into a picture.

The order of the rows is that of `vitrail list protocols` and of the tables and pictures in a
report. A row is light (see `vitrail.evals.protocol`): what it names is imported when it runs.
"""

from vitrail.evals.protocol import Figure, Protocol
from vitrail.registry import Registry

CLASSIFICATION = "vitrail.evals.classification"
RETRIEVAL = "vitrail.evals.retrieval"
PATCHES = "vitrail.evals.patches"

KNN = {"knn": f"{CLASSIFICATION}.knn:Knn"}
LINEAR = {"linear": f"{CLASSIFICATION}.linear_few:Linear"}
FINETUNE = {"finetune": f"{CLASSIFICATION}.finetune:Finetune"}
MASKCUT = {"maskcut": f"{PATCHES}.maskcut:MaskCut"}
COCO = {"coco": f"{PATCHES}.detection:CocoPlace"}

LABELS = frozenset({"labels", "features"})  # of protocols that classify features
ACCURACY = frozenset({"metric"})
SEEDED = frozenset({"metric", "seed"})

ROWS = {
    "knn": Protocol(
        run=f"{CLASSIFICATION}.knn:knn",
        title="k-nearest neighbours",
        meaning="Accuracy of the k nearest neighbours, votes weighted by exp(cosine / tau).",
        explanation="Each test image is given the class that its {k} most similar training images "
        "vote for. Nothing is trained: images of one class simply have to lie together.",
        needs=LABELS,
        configs=KNN,
        shared=ACCURACY,
        by=("k", "more_k"),
    ),
    "knn_majority": Protocol(
        run=f"{CLASSIFICATION}.knn:knn_majority",
        title="k-nearest neighbours, one vote each",
        meaning="Accuracy of the k nearest neighbours, one vote each.",
        explanation="The same, with every one of the {k} neighbours' votes counting alike.",
        needs=LABELS,
        configs=KNN,
        ignores=frozenset({"knn.tau"}),
        shared=ACCURACY,
        by=("k", "more_k"),
    ),
    "linear_10_per_class": Protocol(
        run=f"{CLASSIFICATION}.linear_few:linear_10_per_class",
        title="Linear, 10 labels per class",
        meaning="Accuracy of a linear classifier with 10 labels per class, over random draws.",
        explanation="A linear classifier that sees only 10 labelled images of each class; the "
        "mean and the standard deviation over {draws} random choices of these.",
        needs=LABELS,
        configs=LINEAR,
        shared=SEEDED,
    ),
    "linear_1_percent": Protocol(
        run=f"{CLASSIFICATION}.linear_few:linear_1_percent",
        title="Linear, 1 % of the labels",
        meaning="Accuracy of a linear classifier with 1 % of the labels, over 3 fixed subsets.",
        explanation="A linear classifier that sees the labels of one training image in a hundred; "
        "the mean and the standard deviation over 3 fixed choices of these.",
        needs=LABELS,
        shared=ACCURACY,
        optional=True,
    ),
    "linear_10_percent": Protocol(
        run=f"{CLASSIFICATION}.linear_few:linear_10_percent",
        title="Linear, 10 % of the labels",
        meaning="Accuracy of a linear classifier with 10 % of the labels, likewise.",
        explanation="The same with one image in ten.",
        needs=LABELS,
        shared=ACCURACY,
        optional=True,
    ),
    "linear": Protocol(
        run=f"{CLASSIFICATION}.linear:linear",
        title="Linear, all labels",
        meaning="Accuracy of a linear classifier on all labelled training images.",
        explanation="A linear classifier that sees the label of every training image.",
        needs=LABELS,
        shared=SEEDED,
    ),
    "linear_sweep": Protocol(
        run=f"{CLASSIFICATION}.linear_sweep:linear_sweep",
        title="Linear, best features",
        meaning="Accuracy of a linear classifier of the best of several features.",
        explanation="The same, looking at whichever of several features of the encoder predicts a "
        "held-out part of the training images best.",
        needs=LABELS,
        configs={"linear_sweep": f"{CLASSIFICATION}.linear_sweep:LinearSweep"},
        shared=SEEDED,
        optional=True,
    ),
    "finetune_1_percent": Protocol(
        run=f"{CLASSIFICATION}.finetune:finetune_1_percent",
        title="Fine-tuned, 1 % of the labels",
        meaning="Accuracy after training the encoder on 1 % of the labels, over 3 subsets.",
        explanation="The whole encoder is trained on, with one label in a hundred; the mean and "
        "the standard deviation over 3 fixed choices of these.",
        needs=frozenset({"labels"}),
        configs=FINETUNE,
        shared=ACCURACY,
        optional=True,
    ),
    "finetune_10_percent": Protocol(
        run=f"{CLASSIFICATION}.finetune:finetune_10_percent",
        title="Fine-tuned, 10 % of the labels",
        meaning="Accuracy after training the encoder on 10 % of the labels, likewise.",
        explanation="The same with one label in ten.",
        needs=frozenset({"labels"}),
        configs=FINETUNE,
        shared=ACCURACY,
        optional=True,
    ),
    "finetune": Protocol(
        run=f"{CLASSIFICATION}.finetune:finetune_all",
        title="Fine-tuned, all labels",
        meaning="Accuracy after training the whole encoder on all labels.",
        explanation="The whole encoder is trained on with all labels. Untrained: it has only "
        "these.",
        needs=frozenset({"labels"}),
        configs=FINETUNE,
        shared=SEEDED,
        optional=True,
    ),
    "mean_average_precision": Protocol(
        run=f"{RETRIEVAL}.image_ranking:rank_test",
        title="Mean average precision",
        meaning="Mean average precision and recall@k of test images of an image's own class.",
        explanation="Of test images of one's own class, ordered by similarity; also recall@k",
        needs=LABELS,
        optional=True,  # it orders all pairs of test images
        table=f"{RETRIEVAL}.image_ranking:ranking_table",
    ),
    "confusion": Protocol(
        run=f"{CLASSIFICATION}.confusion:draw_confusion",
        title="What it takes for what",
        meaning="Picture: which classes k-NN takes for which.",
        needs=LABELS,
        configs=KNN,
        ignores=frozenset({"knn.more_k"}),
        unit=None,
        figure=Figure(
            kind="a table of classes",
            caption="Of the test images of each class (row), the percentage that k-nearest "
            "neighbours take for each class (column), with trained features. What is right "
            "lies on the diagonal.",
            shared=(),
        ),
    ),
    "neighbours": Protocol(
        run=f"{CLASSIFICATION}.neighbours:draw_neighbours",
        title="Nearest neighbours",
        meaning="Picture: the nearest training images of a few test images.",
        needs=frozenset({"features"}),
        unit=None,
        figure=Figure(
            kind="a grid of images",
            caption="On the left of each row a test image, then the training images whose "
            "features are most similar, with the cosine similarity (1 is the same direction). "
            "Where labels are known, ✓ and green mark the same class, ✗ and red another.",
        ),
    ),
    "zeroshot": Protocol(
        run=f"{RETRIEVAL}.zeroshot:name_classes",
        title="Zero-shot classification",
        meaning="Accuracy of the nearest class name, of encoders with a text side.",
        needs=frozenset({"text", "features"}),
        configs={"zeroshot": f"{RETRIEVAL}.zeroshot:Zeroshot"},
        unit="",
        table=f"{RETRIEVAL}.zeroshot:zeroshot_table",
        rows=f"{RETRIEVAL}.zeroshot:zeroshot_rows",
    ),
    "retrieval": Protocol(
        run=f"{RETRIEVAL}.caption_recall:find_pairs",
        title="Retrieval",
        meaning="Numbers and picture: recall@k of images by captions and captions by images.",
        needs=frozenset({"text", "captions", "features"}),
        unit="",
        table=f"{RETRIEVAL}.caption_recall:retrieval_table",
        rows=f"{RETRIEVAL}.caption_recall:retrieval_rows",
        figure=Figure(
            title="What captions find",
            kind="a grid of test images",
            caption="On the left of each row the image that a caption was written for, then the "
            "images most similar to the caption, with the cosine similarity. ✓ and green mark "
            "its own.",
        ),
    ),
    "saliency": Protocol(
        run=f"{PATCHES}.saliency:draw_saliency",
        title="Where it looks",
        meaning="Picture: the attention maps of the last layer.",
        needs=frozenset({"patches"}),
        unit=None,
        figure=Figure(
            kind="a grid of test images",
            caption="How much each patch of the image gives to the image's feature in the last "
            "layer: on average over the attention heads, as the fewest patches that hold 60 % "
            "of the average, and for each head. Brighter is more.",
            shared=("seed", "pictures", "image_size"),
        ),
    ),
    "pca": Protocol(
        run=f"{PATCHES}.pca:draw_pca",
        title="What it tells apart",
        meaning="Picture: principal components of patch features.",
        needs=frozenset({"patches"}),
        unit=None,
        figure=Figure(
            kind="a grid of test images",
            caption="Principal components of the features of all patches in these images. The "
            "first, in the second row, separates the foreground, in the third; the next three "
            "are drawn in it as red, green and blue: patches of like colour have like "
            "features, in whichever image.",
            shared=("seed", "pictures", "image_size"),
        ),
    ),
    "xray": Protocol(
        run="vitrail.evals.xray:measure_layers",
        title="Layer by layer",
        meaning="Numbers and picture: coding rate, compression, sparsity, coherence by layer.",
        shared=frozenset({"seed"}),  # it draws the images
        unit="",
        table="vitrail.evals.figures.layers:layers_table",
        listed=False,
        figure=Figure(
            kind="curves over the layers, 0 being the embedding",
            caption="What the layers do to the tokens of an image, before and after training. "
            "Where the coding rate falls, tokens grow alike; where the encoder's attention "
            "works within subspaces, a stroke of the compression term that falls is a layer "
            "whose attention compresses, as CRATE is designed to. Shades are the standard "
            "deviation over images.",
            shared=("seed",),
        ),
    ),
    "map": Protocol(
        run="vitrail.evals.feature_map:draw_map",
        title="Where the images lie",
        meaning="Picture: all test images in a plane, coloured by class.",
        needs=frozenset({"features"}),
        configs={"map": "vitrail.evals.feature_map:Map"},
        unit=None,
        compares=True,
        figure=Figure(
            kind="three maps of points",
            caption="Each point is a test image, brought from its features to a plane: of raw "
            "pixels, of the untrained encoder and of the trained one. Colours are classes, "
            "where they are known.",
            shared=("seed",),
        ),
    ),
    "parts": Protocol(
        run=f"{PATCHES}.pca:draw_parts",
        title="Like parts",
        meaning="Picture: like parts of images of one class, by components of their patches.",
        needs=frozenset({"labels", "patches"}),
        unit=None,
        figure=Figure(
            kind="a grid of test images",
            caption="Four images of a class, and beside each its parts: principal components of "
            "the patches of these four images alone, the first for the foreground, the next "
            "three as red, green and blue. Parts of one colour are alike to the encoder.",
            shared=("seed", "image_size"),
        ),
    ),
    "jaccard": Protocol(
        run=f"{PATCHES}.jaccard:jaccard",
        title="Jaccard",
        meaning="Numbers and picture: overlap of saliency with objects, of data with masks.",
        explanation="Numbers and picture: saliency against the objects that are marked, of data "
        "with masks.",
        needs=frozenset({"masks", "patches"}),
        shared=frozenset({"image_size"}),
        unit="",
        table=f"{PATCHES}.jaccard:jaccard_table",
        figure=Figure(
            title="Where it looks, and what is marked",
            kind="a grid of test images",
            caption="The patches that hold 60 % of the last layer's map, of the best head and of "
            "the average, over the objects that people have marked.",
            shared=("seed", "pictures", "image_size"),
        ),
    ),
    "maskcut": Protocol(
        run=f"{PATCHES}.maskcut:draw_maskcut",
        title="Objects it finds by itself",
        meaning="Picture: objects that MaskCut finds in a few images.",
        configs=MASKCUT,
        optional=True,
        unit=None,
        figure=Figure(
            kind="a grid of test images",
            caption="Objects that MaskCut separates by the last layer's keys, without any label: "
            "the graph of an image's patches is cut where they are least alike.",
        ),
    ),
    "detection": Protocol(
        run=f"{PATCHES}.detection:detect",
        title="Detection",
        meaning="AP of MaskCut's boxes and masks on annotated images (--coco.folder DIR).",
        configs=MASKCUT | COCO,
        optional=True,
        unit="",
        table=f"{PATCHES}.detection:detection_table",
        figure=Figure(
            title="Objects found, and objects marked",
            kind="a grid of annotated images",
            caption="Objects that MaskCut separates without any label, above those that people "
            "have marked. A marked object has the colour of the found one that it shares most "
            "with; white: none.",
            shared=("pictures",),
        ),
    ),
}

PROTOCOLS = Registry("protocol", Protocol, ROWS)
