"""Zero-shot classification and retrieval: against plain loops, and with a space made by hand."""

import itertools

import numpy as np
import pytest

from vitrail.evals.retrieval.caption_recall import first_ranks, retrieval
from vitrail.evals.retrieval.zeroshot import class_vectors, zeroshot
from vitrail.text_encoder import TextEncoder


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


class ByHand(TextEncoder):
    """A text encoder that knows its prompts by heart."""

    def __init__(self, vectors: dict[str, list[float]]):
        self.vectors = vectors

    def transform(self, texts):
        return unit(np.array([self.vectors[text] for text in texts]))


TEXT = ByHand(
    {
        "a cat": [1, 0, 0],
        "the cat": [1, 1, 0],
        "a dog": [0, 1, 0],
        "the dog": [0, 1, 0],
        "a fish": [0, 0, 1],
        "the fish": [0, 0, 1],
    }
)
CLASSES = ["cat", "dog & fish"]
TEMPLATES = ("a {}", "the {}")


def test_a_class_is_the_mean_of_its_prompts_and_names():
    found = class_vectors(TEXT, CLASSES, TEMPLATES)
    cat = unit(np.array([[1, 0, 0], [1, 1, 0]])).mean(axis=0)
    other = unit(np.array([[0, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]])).mean(axis=0)
    np.testing.assert_allclose(found, unit(np.stack([cat, other])), atol=1e-6)


def test_accuracies_by_hand():
    images = unit(np.array([[1, 0.1, 0], [0, 0.2, 1], [1, 0, 0], [1, 0, 0], [1, 0, 0]]))
    labels = np.array([0, 1, 1, -1, 0])
    found = zeroshot(TEXT, images, labels, CLASSES, TEMPLATES)
    assert found == {
        "accuracy": pytest.approx(3 / 4),
        "mean_per_class": pytest.approx((1 + 1 / 2) / 2),
        "chance": 1 / 2,
        "majority": 1 / 2,
    }


@pytest.mark.parametrize("templates", [(), ("a photo",), ("a {}", "none")])
def test_templates_without_a_place_for_the_name_are_refused(templates):
    with pytest.raises(ValueError, match=r"templates are .*'a photo of a \{\}'"):
        class_vectors(TEXT, CLASSES, templates)


def test_one_class_or_no_label_is_refused():
    images = unit(np.ones((2, 3)))
    for labels, classes in (([0, 0], ["cat"]), ([-1, -1], CLASSES)):
        with pytest.raises(ValueError, match="two classes or more"):
            zeroshot(TEXT, images, np.array(labels), classes, TEMPLATES)


def slow_recall(similarity: np.ndarray, right: list[set[int]], k: int) -> float:
    found = 0
    for row, own in zip(similarity, right, strict=True):
        # Wrong ones first among equals.
        order = sorted(range(len(row)), key=lambda c: (-row[c], c in own))
        found += bool(own & set(order[:k]))
    return found / len(right)


def random_pairs(seed: int):
    rng = np.random.default_rng(seed)
    pictures = [f"p{i}" for i in rng.integers(0, 12, 30)]
    captions = [f"c{i}" for i in rng.integers(0, 9, 30)]
    by_name = {name: rng.integers(-2, 3, 4) for name in {*pictures, *captions}}  # with ties
    images = np.array([by_name[p] for p in pictures], dtype=np.float32)
    texts = np.array([by_name[c] for c in captions], dtype=np.float32)
    return images, texts, pictures, captions


@pytest.mark.parametrize("seed", range(5))
def test_recall_is_that_of_a_sorted_list(seed, monkeypatch):
    monkeypatch.setattr(
        "vitrail.evals.retrieval.caption_recall.CHUNK", 20
    )  # two or three queries at a time
    images, texts, pictures, captions = random_pairs(seed)
    found = retrieval(images, texts, pictures, captions, ks=(1, 3, 99))
    for name, (own, other, x, y) in {
        "image_to_text": (pictures, captions, images, texts),
        "text_to_image": (captions, pictures, texts, images),
    }.items():
        queries, candidates = sorted(set(own)), sorted(set(other))
        similarity = np.array(
            [[x[own.index(q)] @ y[other.index(c)] for c in candidates] for q in queries]
        )
        right = [
            {candidates.index(c) for o, c in zip(own, other, strict=True) if o == q}
            for q in queries
        ]
        for k in (1, 3, 99):
            assert found[name][f"recall@{k}"] == pytest.approx(slow_recall(similarity, right, k))
        draws = list(itertools.combinations(range(len(candidates)), 3))
        chance = np.mean([np.mean([bool(r & set(d)) for d in draws]) for r in right])
        assert found[name]["chance@3"] == pytest.approx(chance)
        assert found[name]["candidates"] == len(candidates)


@pytest.mark.parametrize("count", [5, 13, 100])
def test_a_collapsed_space_finds_nothing(count):
    # The last bits of equal products differ by where they stand in the matrix.
    same = np.repeat(unit(np.random.default_rng(count).normal(size=(1, 64))), count, axis=0)
    names = [str(i) for i in range(count)]
    found = retrieval(same, same, names, names, ks=(1, count - 1))
    for way in found.values():
        assert way["recall@1"] == way[f"recall@{count - 1}"] == 0
        assert way["median_rank"] == count


def test_vectors_that_are_not_finite_are_refused():
    broken = unit(np.ones((3, 3)))
    broken[1, 1] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        retrieval(broken, unit(np.ones((3, 3))), list("abc"), list("abc"))
    with pytest.raises(ValueError, match="NaN or infinity"):
        zeroshot(TEXT, broken, np.zeros(3, dtype=np.int64), CLASSES, TEMPLATES)


def test_one_endless_caption_costs_no_more_than_itself():
    eye = np.eye(4, dtype=np.float32)
    captions = ["a", "a\0", "b" * 10**7, "c"]  # as an array of strings: 160 MB
    found = retrieval(eye, eye, list("wxyz"), captions)
    assert found["image_to_text"]["candidates"] == 4


def test_own_captions_are_found():
    space = np.eye(5, dtype=np.float32)
    pairs = np.stack([np.arange(5), np.arange(5)], axis=1)
    assert (first_ranks(space, space, pairs) == 0).all()


def test_no_pairs_are_refused():
    with pytest.raises(ValueError, match="no pairs"):
        retrieval(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), [], [])
