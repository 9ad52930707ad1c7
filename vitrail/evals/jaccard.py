"""Saliency against ground truth: the Jaccard similarity of the patches that hold 60 % of the mass.

Source: Caron et al. 2021 (DINO), section 4.2.2 and figure 4, on PASCAL VOC12: the best head, and
what it is for a supervised or untrained encoder. A patch counts for all of its pixels (nearest
upsampling), as published.

Shape legend: B images · h heads · H×W patches · y, x pixels of the truth.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from vitrail.evals.patches.saliency import KEEP, mass_mask

Array = np.ndarray


@dataclass(frozen=True)
class Jaccard:
    """Means over the images, in [0, 1]. heads: of each head's map; best_head: the number of the
    best of these, from 0; best: its mean; best_per_image: of the head that is best for each image,
    chosen by looking at the truth; average: of the map averaged over heads; images: how many."""

    heads: list[float]
    best_head: int
    best: float
    best_per_image: float
    average: float
    images: int


def saliency_jaccard(
    maps: Float[Array, "B h H W"],
    masks: Iterable[Bool[Array, "_ _"]],
    ignored: Iterable[Bool[Array, "_ _"]] | None = None,
    keep: float = KEEP,
) -> Jaccard:
    """The Jaccard similarity of thresholded maps with the foreground, per image, then averaged.

    Args:
        maps: >= 0, as `vitrail.evals.patches.saliency.token_maps` gives them.
        masks: of each image: its foreground [y, x], at any size, seen whole as the maps are.
        ignored: of each image: pixels that do not count, such as VOC's border of objects.
        keep: share of a map's mass, in (0, 1].

    Raises:
        ValueError: no maps, not as many masks as maps, sizes that differ, or no foreground.
    """
    n, n_heads = maps.shape[:2]
    masks = list(masks)
    voids = [np.zeros_like(mask) for mask in masks] if ignored is None else list(ignored)
    if not n or not n_heads or not n == len(masks) == len(voids):
        raise ValueError(
            f"jaccard: maps of {n} images and {n_heads} heads, masks of {len(masks)} and ignored "
            f"pixels of {len(voids)}; there must be as many of each, and at least one"
        )
    scores_Bh = np.zeros((n, n_heads + 1))  # the last: of the average map
    for b, (mask, void) in enumerate(zip(masks, voids, strict=True)):
        if mask.shape != void.shape:
            raise ValueError(f"jaccard: image {b} has a mask {mask.shape}, ignored {void.shape}")
        counted = ~void
        if not (mask & counted).any():
            raise ValueError(f"jaccard: image {b} has no foreground to compare with; leave it out")
        every_hHW = [*maps[b], maps[b].mean(0)]
        for h, values_HW in enumerate(every_hHW):
            shown = _nearest(mass_mask(values_HW, keep), mask.shape) & counted
            scores_Bh[b, h] = (shown & mask).sum() / (shown | (mask & counted)).sum()
    heads = scores_Bh[:, :-1].mean(0)
    best = int(heads.argmax())
    return Jaccard(
        heads=[round(float(x), 6) for x in heads],
        best_head=best,
        best=float(heads[best]),
        best_per_image=float(scores_Bh[:, :-1].max(1).mean()),
        average=float(scores_Bh[:, -1].mean()),
        images=n,
    )


def _nearest(mask: Bool[Array, "H W"], size: tuple[int, ...]) -> Bool[Array, "_ _"]:
    """The patch in which the middle of each pixel lies."""
    rows, columns = (
        ((2 * np.arange(pixels) + 1) * patches // (2 * pixels)).astype(int)
        for pixels, patches in zip(size, mask.shape, strict=True)
    )
    return mask[np.ix_(rows, columns)]
