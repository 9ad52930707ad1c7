"""Identical images: the same decoded pixels in two sets of images, found by their digests."""

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
from jaxtyping import Bool, UInt64
from torch import Tensor

from vitrail.data.contract import Source
from vitrail.data.loading.loader import read_images
from vitrail.data.loading.quarantine import Quarantine
from vitrail.data.subset import Subset
from vitrail.nn.random import philox

COMPARED = 2000  # images of another source that are decoded to be compared, at most
DIGEST = 8  # bytes; of a million images, two different ones share a digest with odds of 3e-8
LISTED = 3  # identical images listed by name

Digests = UInt64[np.ndarray, " N"]


def add_digests(images: Iterable[Tensor], digests: "array[int]") -> None:
    """Appends the digest of each image's decoded pixels, shape and bits."""
    for image in images:
        pixels = np.ascontiguousarray(image.cpu().numpy())
        found = blake2b(repr((pixels.shape, pixels.dtype.str)).encode(), digest_size=DIGEST)
        found.update(pixels.data)
        digests.append(int.from_bytes(found.digest(), "little"))


def as_table(digests: "array[int]") -> Digests:
    """Returns digests as an array, uint64 [N]."""
    return np.array(digests, dtype=np.uint64)


def digests_of(source: Source, workers: int = 0, count: int = COMPARED) -> Digests:
    """Decodes up to `count` drawn images of a source; the unreadable ones are left out.

    Args:
        source: of the images.
        workers: processes that decode; 0 is this process.
        count: images at most; all of a source that lives in memory.
    """
    pixels = source.pixels()
    found = array("Q")
    if pixels is not None:
        add_digests(pixels, found)
        return as_table(found)
    order = philox(0, "compared", 0).permutation(len(source))[:count]
    drawn = Subset(source, np.sort(order).tolist())
    for _, images in read_images(drawn, Quarantine(None, len(drawn), 1.0), workers):
        add_digests(images, found)
    return as_table(found)


def occurs_in(digests: Digests, others: UInt64[np.ndarray, " M"]) -> Bool[np.ndarray, " N"]:
    """Returns true for each digest that is also among the others."""
    return np.isin(digests, others)


def names_of(source: Source, index: Sequence[int]) -> list[str]:
    """Returns the ids of the first LISTED samples."""
    return [source.id(int(at)) for at in index[:LISTED]]
