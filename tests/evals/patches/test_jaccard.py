import numpy as np
import pytest

from vitrail.evals.patches.jaccard import saliency_jaccard


def by_hand(values, mask, void, keep=0.6):
    """Largest patches until the share is reached; a pixel is of the patch its middle lies in."""
    left, chosen = keep * values.sum(), set()
    for at in sorted(np.ndindex(*values.shape), key=lambda at: -values[at]):
        if left <= 1e-9:
            break
        chosen.add(at)
        left -= values[at]
    both = either = 0
    for y, x in np.ndindex(*mask.shape):
        if void[y, x]:
            continue
        patch = (
            int((y + 0.5) / mask.shape[0] * values.shape[0]),
            int((x + 0.5) / mask.shape[1] * values.shape[1]),
        )
        both += bool(mask[y, x] and patch in chosen)
        either += bool(mask[y, x] or patch in chosen)
    return both / either


@pytest.mark.parametrize("with_void", [False, True])
def test_it_is_the_mean_of_the_overlap_with_what_is_seen_most(with_void):
    rng = np.random.default_rng(0)
    maps = rng.random((5, 3, 4, 6)) ** 3
    sizes = [(8, 12), (9, 11), (4, 6), (3, 5), (20, 7)]
    masks = [rng.random(size) < 0.4 for size in sizes]
    voids = [(rng.random(size) < 0.3) & with_void for size in sizes]
    found = saliency_jaccard(maps, masks, voids if with_void else None)
    table = np.array(
        [[by_hand(head, m, v) for head in h] for h, m, v in zip(maps, masks, voids, strict=True)]
    )
    averages = [by_hand(h.mean(0), m, v) for h, m, v in zip(maps, masks, voids, strict=True)]
    np.testing.assert_allclose(found.heads, table.mean(0), atol=1e-6)
    assert found.best_head == table.mean(0).argmax()
    assert found.best == pytest.approx(table.mean(0).max())
    assert found.best_per_image == pytest.approx(table.max(1).mean())
    assert found.average == pytest.approx(np.mean(averages))
    assert found.images == 5


def test_a_map_of_the_foreground_is_perfect_and_of_the_rest_worthless():
    mask = np.zeros((8, 8), dtype=bool)
    mask[2:6, 2:6] = True
    patches = mask[::2, ::2].astype(np.float32)
    maps = np.stack([1 - patches, patches])[None]
    found = saliency_jaccard(maps, [mask], keep=1.0)
    assert found.heads == [0, 1]
    assert (found.best_head, found.best, found.best_per_image) == (1, 1, 1)
    assert found.average == pytest.approx(16 / 64)


@pytest.mark.parametrize(
    ("maps", "masks", "ignored", "message"),
    [
        (np.ones((0, 1, 2, 2)), [], None, "maps of 0 images"),
        (np.ones((2, 1, 2, 2)), [np.ones((2, 2), bool)], None, "masks of 1"),
        (np.ones((1, 1, 2, 2)), [np.zeros((2, 2), bool)], None, "image 0 has no foreground"),
        (np.ones((1, 1, 2, 2)), [np.ones((2, 2), bool)], [np.ones((2, 2), bool)], "no foreground"),
        (np.ones((1, 1, 2, 2)), [np.ones((2, 2), bool)], [np.ones((3, 2), bool)], "ignored"),
    ],
)
def test_what_cannot_be_compared_is_refused(maps, masks, ignored, message):
    with pytest.raises(ValueError, match=f"jaccard: .*{message}"):
        saliency_jaccard(maps, masks, ignored)
