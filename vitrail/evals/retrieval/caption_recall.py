"""Retrieval between images and captions, both ways: recall@k.

Karpathy & Fei-Fei 2015, section 4.2, as used since (Radford et al. 2021, appendix E.1). An image
with several captions is one query, and any of its captions is a correct answer; the same holds for
a caption that several images share.

Shape legend: N pairs · I pictures · C captions · Z dimensions of the joint space.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from rich.table import Table

from vitrail.data.contract import BadSampleError
from vitrail.data.subset import Subset
from vitrail.evals.contract import Context
from vitrail.evals.features import as_colours
from vitrail.evals.figures.grid import RIGHT, Cell, cell_side, save_grid
from vitrail.evals.protocol import ResultRow
from vitrail.evals.seen.training import stages
from vitrail.text_encoder import TextEncoder

KS = (1, 5, 10)
TIED = 1e-6  # cosines that differ by less count as equal: about the rounding of float32
CHUNK = 2**24  # similarities in memory at a time, 64 MiB of float32
ROWS, NEAREST = 6, 5  # captions, and images drawn for each


def retrieval(
    images: Float32[np.ndarray, "N Z"],
    texts: Float32[np.ndarray, "N Z"],
    pictures: Sequence[str],
    captions: Sequence[str],
    ks: Sequence[int] = KS,
) -> dict[str, dict[str, float]]:
    """Measures recall@k from images to captions and from captions to images.

    Row n is the pair of picture `pictures[n]` and caption `captions[n]`. Ties count against the
    model: constant vectors have a recall of 0.

    Args:
        images: vectors of the images, float32 [N, Z]; the similarity is the product with `texts`.
        texts: vectors of the captions, float32 [N, Z].
        pictures: id of the image of each row; equal ids are one image.
        captions: caption of each row; equal captions are one caption.
        ks: values of k, each at least 1; above the number of candidates the recall is 1.

    Returns:
        "image_to_text" and "text_to_image", each {"recall@k": fraction in [0, 1], "chance@k": that
        of a random order, "median_rank": from 1, "candidates": number of candidates}.

    Raises:
        ValueError: no pairs.
    """
    if not len(images):
        raise ValueError("retrieval: there are no pairs of an image and a caption")
    require_finite("retrieval", images, texts)
    image_at, image_of = _numbered(pictures)
    text_at, text_of = _numbered(captions)
    pairs = np.unique(np.stack([image_of, text_of], axis=1), axis=0)
    images_IZ, texts_CZ = images[image_at], texts[text_at]
    return {
        "image_to_text": _recalls(images_IZ, texts_CZ, pairs, ks),
        "text_to_image": _recalls(texts_CZ, images_IZ, pairs[:, ::-1], ks),
    }


def require_finite(protocol: str, *vectors: np.ndarray) -> None:
    """Checks that vectors hold neither NaN nor infinity.

    Args:
        protocol: name of the protocol, for the message.
        vectors: arrays to check.

    Raises:
        ValueError: a number that is not finite.
    """
    if not all(np.isfinite(part).all() for part in vectors):
        raise ValueError(
            f"{protocol}: some vectors of images or captions hold NaN or infinity; the encoder has "
            "diverged, so the numbers would mean nothing"
        )


def _numbered(
    names: Sequence[str],
) -> tuple[Int64[np.ndarray, " different"], Int64[np.ndarray, " N"]]:
    """Returns (the first row of each distinct name, the number of each row's name)."""
    number: dict[str, int] = {}
    rows = np.array([number.setdefault(name, len(number)) for name in names], dtype=np.int64)
    return np.unique(rows, return_index=True)[1], rows


def _recalls(
    queries: np.ndarray, candidates: np.ndarray, pairs: np.ndarray, ks: Sequence[int]
) -> dict[str, float]:
    """Returns recall, chance and median rank of one direction."""
    ranks = first_ranks(queries, candidates, pairs)
    right = np.bincount(pairs[:, 0], minlength=len(queries))
    found = {f"recall@{k}": float((ranks < k).mean()) for k in ks}
    chance = {f"chance@{k}": float(_chance(len(candidates), right, k).mean()) for k in ks}
    median = {"median_rank": float(np.median(ranks) + 1), "candidates": len(candidates)}
    return found | chance | median


def first_ranks(
    queries: Float32[np.ndarray, "Q Z"],
    candidates: Float32[np.ndarray, "C Z"],
    pairs: Int64[np.ndarray, "P 2"],
) -> Int64[np.ndarray, " Q"]:
    """Counts the wrong candidates before the first correct one, or equal to it up to TIED.

    Args:
        queries: vectors of the queries, float32 [Q, Z].
        candidates: vectors of the candidates, float32 [C, Z].
        pairs: (query, candidate) numbers that belong together, int64 [P, 2]; each query has one.

    Returns:
        rank of the first correct candidate from 0, int64 [Q].
    """
    ranks = np.empty(len(queries), dtype=np.int64)
    rows = max(1, CHUNK // len(candidates))
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    for start in range(0, len(queries), rows):
        similarity = queries[start : start + rows] @ candidates.T
        first, last = np.searchsorted(pairs[:, 0], (start, start + len(similarity)))
        query, candidate = pairs[first:last, 0] - start, pairs[first:last, 1]
        right = similarity[query, candidate]
        best = np.full(len(similarity), -np.inf, dtype=similarity.dtype)
        np.maximum.at(best, query, right)
        level = best - TIED
        as_near = (similarity >= level[:, None]).sum(axis=1)
        own = np.bincount(query, weights=right >= level[query], minlength=len(similarity))
        ranks[start : start + rows] = as_near - own.astype(np.int64)
    return ranks


def _chance(candidates: int, right: np.ndarray, k: int) -> np.ndarray:
    """Returns 1 - (C - r choose k) / (C choose k) for each r of `right`.

    This is the probability that k of C candidates drawn without replacement contain one of r.
    """
    drawn = np.arange(min(k, candidates))[:, None]
    return 1 - ((candidates - right - drawn).clip(min=0) / (candidates - drawn)).prod(axis=0)


def find_pairs(context: Context) -> dict[str, Any]:
    """Measures retrieval among the test pairs both ways, and draws what some captions find."""
    text, test = require_text(context, "retrieval"), context.test
    if not test.source.captioned:
        raise ValueError(
            f"retrieval: {test.source.spec} has no captions; name data that has by --data "
            "(pairs:FILE, emoji)"
        )
    index = test.index.tolist()
    captions = [test.source.text(i) or "" for i in index]
    pictures = [test.source.picture(i) for i in index]
    images, texts = text.place(test.features["trained"]), text.transform(captions)
    _draw(context, images, texts)
    return retrieval(images, texts, pictures, captions)


def require_text(context: Context, protocol: str) -> TextEncoder:
    """Returns the text side. Raises ValueError if there is none, or it was trained on the data."""
    if context.text is None:
        raise ValueError(
            f"{protocol}: the encoder has no text side; it is for runs of the objective 'clip'. "
            "Leave it out of --protocols"
        )
    source = context.test.source
    known = [stage.data for stage in stages(context.encoder.info)]
    if isinstance(source, Subset) and source.spec in (context.encoder.info.get("data"), *known):
        raise ValueError(
            f"{protocol}: {source.spec} has no test split of its own, so the encoder was trained "
            "on these very captions; give the table a column 'split', or name other data by --data"
        )
    return context.text


def _draw(context: Context, images: np.ndarray, texts: np.ndarray) -> None:
    """Draws figures/retrieval.png: a caption's own image, then those most similar to it."""
    source, rows = context.test.source, []

    def picture(row: int) -> np.ndarray:
        try:
            image = source.read(int(context.test.index[row])).image
        except BadSampleError:  # it was readable when its features were taken
            return np.full((1, 1, 1), 0.5, dtype=np.float32)
        return as_colours(context.encoder, [image])[0]

    def caption(row: int) -> str:
        return source.text(int(context.test.index[row])) or ""

    for row in context.chosen(min(ROWS, context.pictures)):
        cosines, own = images @ texts[row], caption(row)
        cells = [Cell(picture(row), own if len(own) <= 24 else f"{own[:23]}…")]
        for at in np.argsort(-cosines, kind="stable")[:NEAREST].tolist():
            right = source.text(int(context.test.index[at])) == own
            mark, frame = ("✓ ", RIGHT) if right else ("", None)
            cells.append(Cell(picture(at), f"{mark}{cosines[at]:.2f}", frame))
        rows.append(cells)
    titles = ["the caption's own", "nearest", *[""] * (max(map(len, rows)) - 2)]
    side = cell_side(context.encoder.preprocess.size)
    save_grid(rows, context.figures / "retrieval.png", side=side, columns=titles)


def retrieval_table(numbers: dict[str, Any]) -> Table:
    """Returns a table for the terminal, in percent, chance in brackets."""
    table = Table(title="recall among the first k, % (chance)", title_justify="left")
    table.add_column("")
    for k in KS:
        table.add_column(f"@{k}", justify="right")
    table.add_column("median rank", justify="right")
    for way, found in numbers.items():
        cells = [f"{100 * found[f'recall@{k}']:.1f} ({100 * found[f'chance@{k}']:.1f})" for k in KS]
        rank = f"{found['median_rank']:.0f} of {found['candidates']}"
        table.add_row(way.replace("_", " "), *cells, rank)
    return table


def retrieval_rows(numbers: Any) -> Iterator[ResultRow]:
    """Returns the report's rows; numbers may be of a damaged file."""
    ways = {
        "image_to_text": ("Caption of an image", "captions"),
        "text_to_image": ("Image of a caption", "images"),
    }
    for way, (title, candidates) in ways.items():
        found = numbers.get(way) if isinstance(numbers, dict) else None
        if not isinstance(found, dict):
            continue
        for k in KS:
            among = "the most similar" if k == 1 else f"among the {k} most similar"
            yield ResultRow(
                f"{title}, @{k}",
                f"How often it is {among} of {found.get('candidates', 'all')} {candidates}.",
                {"trained": found.get(f"recall@{k}"), "chance": found.get(f"chance@{k}")},
            )
