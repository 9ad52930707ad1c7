import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from vitrail.evals.retrieval import image_ranking
from vitrail.evals.retrieval.image_ranking import average_precision, rank_classes, ranking_table


def clustered(n=60, classes=4, d=6):
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=n)
    centres = rng.normal(size=(classes, d))
    return (centres[labels] + rng.normal(size=(n, d))).astype(np.float32), labels


def by_sklearn(features, labels):
    """Average precision of each query that has others of its class, from float64 cosines."""
    unit = features.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    found = {}
    for i in range(len(labels)):
        others = np.arange(len(labels)) != i
        right = (labels == labels[i])[others]
        if right.any():
            found[i] = average_precision_score(right, (unit @ unit[i])[others])
    return found


@pytest.mark.parametrize("chunk", [image_ranking.CHUNK, 7 * 60])
def test_the_mean_of_average_precisions_is_sklearns(monkeypatch, chunk):
    monkeypatch.setattr(image_ranking, "CHUNK", chunk)
    features, labels = clustered()
    labels[0] = 9  # alone
    expected = by_sklearn(features, labels)
    found = rank_classes(features, labels)
    assert len(expected) == 59
    assert found.mean_average_precision == pytest.approx(np.mean(list(expected.values())), abs=1e-6)
    assert found.alone == pytest.approx(1 / 60)


def test_equal_similarities_count_together():
    """Rows along axes: cosines are exactly 0 and 1."""
    rng = np.random.default_rng(1)
    features = np.eye(4, dtype=np.float32)[rng.integers(4, size=40)]
    labels = rng.integers(3, size=40)
    found = rank_classes(features, labels)
    expected = by_sklearn(features, labels)
    assert found.mean_average_precision == pytest.approx(
        np.mean(list(expected.values())), abs=1e-12
    )


def test_average_precision_by_hand():
    values = torch.tensor([[3.0, 2.0, 1.0], [3.0, 3.0, 1.0]])
    right = torch.tensor([[True, False, True], [False, True, True]])
    torch.testing.assert_close(
        average_precision(values, right),
        torch.tensor([(1 + 2 / 3) / 2, (1 / 2 + 2 / 3) / 2], dtype=torch.float64),
    )


def test_recall_by_hand():
    """On a line of angles: 0° a, 10° b, 25° a, 40° b, 100° b."""
    angles = np.deg2rad([0.0, 10, 25, 40, 100])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = rank_classes(features, np.array([0, 1, 0, 1, 1]), ks=(1, 2, 3))
    # Wrong ones before the first right one: 1 (10°), 2 (0°, 25°), 2 (40°, 10°), 1 (25°), 0.
    assert found.recall == {1: 0.2, 2: 0.6, 3: 1.0}


def test_features_that_are_all_alike_get_chance_and_find_nothing():
    labels = np.array([0, 0, 0, 1, 1])
    found = rank_classes(np.ones((5, 3), dtype=np.float32), labels)
    assert found.mean_average_precision == pytest.approx((3 * 2 / 4 + 2 * 1 / 4) / 5)
    assert found.chance == pytest.approx(found.mean_average_precision)
    assert found.recall[1] == 0


def test_a_single_class_is_found_whole():
    features, _ = clustered(12)
    found = rank_classes(features, np.zeros(12, dtype=np.int64))
    assert (found.mean_average_precision, found.recall[1], found.chance) == (1, 1, 1)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (np.ones((0, 2)), [], "set is empty"),
        (np.ones((2, 2)), [0, -1], "1 of 2 test samples have no label"),
        (np.ones((2, 2)), [0, 1], "none of the 2 images has another of its class"),
        (np.full((2, 2), np.nan), [0, 0], "NaN"),
    ],
)
def test_what_cannot_be_ranked_is_refused(features, labels, message):
    with pytest.raises(ValueError, match=message):
        rank_classes(features.astype(np.float32), np.array(labels, dtype=np.int64))


def test_the_table_shows_percentages():
    recall = {f"recall@{k}": {"raw": 0.5, "trained": 1.0} for k in (1, 5, 10)}
    table = ranking_table({"raw": 0.25, "trained": 0.75, "chance": 0.1} | recall)
    assert [next(iter(column.cells)) for column in table.columns] == ["mAP", "25.0", "75.0"]
    assert "10.0" in str(table.title)
