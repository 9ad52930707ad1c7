import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score
from sklearn.metrics import confusion_matrix as sklearn_confusion

from vitrail.evals.classification.confusion import confusion_matrix
from vitrail.evals.classification.few_labels import SUBSET_SEEDS, draw_share
from vitrail.evals.classification.linear_few import linear_share
from vitrail.evals.classification.scores import score
from vitrail.evals.figures.confusion import confusion_figure
from vitrail.evals.rank import rank_numbers, rankme

LABELS = np.random.default_rng(0).choice(5, size=1000, p=[0.6, 0.3, 0.08, 0.015, 0.005])


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 1.0])
def test_a_share_of_every_class_and_one_at_least(share):
    rows = draw_share(LABELS, share, seed=0)
    counts = np.bincount(LABELS, minlength=5)
    assert np.bincount(LABELS[rows], minlength=5).tolist() == [
        max(1, round(n * share)) for n in counts.tolist()
    ]
    assert (np.diff(rows) > 0).all()  # sorted, none twice


def test_subsets_are_a_function_of_labels_and_seed():
    first = draw_share(LABELS, 0.1, seed=0)
    np.testing.assert_array_equal(first, draw_share(LABELS.copy(), 0.1, seed=0))
    assert set(first.tolist()) != set(draw_share(LABELS, 0.1, seed=1).tolist())
    assert set(draw_share(LABELS, 0.01, seed=0).tolist()) < set(first.tolist())
    assert len(set(SUBSET_SEEDS)) == 3


def test_rows_without_a_label_are_never_drawn():
    labels = np.where(np.arange(1000) % 2, LABELS, -1)
    assert (labels[draw_share(labels, 0.5, seed=0)] >= 0).all()
    with pytest.raises(ValueError, match="none of the 3 rows has a label"):
        draw_share(np.full(3, -1), 0.5, seed=0)
    with pytest.raises(ValueError, match=r"share of 0"):
        draw_share(LABELS, 0, seed=0)


def test_few_labels_of_fixed_subsets():
    rng = np.random.default_rng(1)
    labels = rng.integers(4, size=800)
    x = (rng.normal(size=(4, 8))[labels] + rng.normal(size=(800, 8))).astype(np.float32)
    four = x[:500], labels[:500], x[500:], labels[500:]
    few, many = linear_share(*four, share=0.01), linear_share(*four, share=0.5)
    assert len(few.draws) == len(SUBSET_SEEDS)
    assert few.mean < many.mean
    assert few == linear_share(*four, share=0.01)


def test_mean_per_class_and_confusion_equal_sklearn():
    predicted = np.where(np.random.default_rng(2).random(1000) < 0.7, LABELS, 0)
    assert score(predicted, LABELS) == (predicted == LABELS).mean()
    per_class = score(predicted, LABELS, "mean_per_class")
    assert per_class == pytest.approx(balanced_accuracy_score(LABELS, predicted))
    assert per_class < score(predicted, LABELS) - 0.05
    counts = confusion_matrix(predicted, LABELS, 5)
    np.testing.assert_array_equal(counts, sklearn_confusion(LABELS, predicted))


def test_a_class_without_test_samples_does_not_count():
    assert score(np.array([2, 0]), np.array([2, 2]), "mean_per_class") == 0.5


def test_the_confusion_figure(tmp_path):
    counts, names = np.diag([3, 0, 2, 1, 5]), [f"class $x_{i}$" for i in range(5)]
    path = confusion_figure(counts, names, tmp_path / "c.png")
    assert path.read_bytes()[:4] == b"\x89PNG"
    again = confusion_figure(counts, names, tmp_path / "d.png")
    assert again.read_bytes() == path.read_bytes()
    with pytest.raises(ValueError, match="of 21 classes is not drawn"):
        confusion_figure(np.eye(21, dtype=np.int64), ["a"] * 21, path)


def test_rankme_by_its_formula():
    rng = np.random.default_rng(3)
    left, right = (np.linalg.qr(rng.normal(size=(40, 6)))[0] for _ in range(2))
    sigma = np.array([4.0, 2.0, 1.0, 1.0, 0.5, 0.5])
    z = (left * sigma) @ right.T
    p = sigma / sigma.sum()
    expected = np.exp(-(p * np.log(p)).sum())
    assert rankme(z.astype(np.float32)) == pytest.approx(expected, rel=1e-3)
    assert rankme(np.zeros((5, 3), dtype=np.float32)) == 1.0
    assert rankme(np.ones((1, 3), dtype=np.float32)) == pytest.approx(1, abs=1e-4)


def test_rank_numbers_name_both():
    z = np.random.default_rng(4).normal(size=(100, 8)).astype(np.float32)
    numbers = rank_numbers({"trained": z, "untrained": z[:, :2]}, seed=0)
    assert set(numbers) == {"dimensions", "effective_rank", "rankme"} | {
        "effective_rank_untrained",
        "rankme_untrained",
    }
    assert numbers["dimensions"] == 8
    assert numbers["rankme"] > 7 > 2.1 > numbers["rankme_untrained"]
