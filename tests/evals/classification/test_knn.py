import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from tests.rounding import rounding_bound
from vitrail.evals.classification import knn
from vitrail.evals.classification.knn import (
    GROUP,
    _top_k_of_groups,
    knn_accuracy,
    knn_predict,
    neighbours,
    vote,
)


def clusters(n, seed, d=16, classes=5, noise=1.5):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, d))
    labels = rng.integers(classes, size=n)
    return (centres[labels] + noise * rng.normal(size=(n, d))).astype(np.float32), labels


def oracle(bank, labels, queries, k, tau):
    """Wu et al. 2018, section 3.4, one query at a time in float64."""
    bank, queries = bank.astype(np.float64), queries.astype(np.float64)
    bank = bank / np.sqrt((bank**2).sum(1, keepdims=True))
    queries = queries / np.sqrt((queries**2).sum(1, keepdims=True))
    answers = []
    for query in queries:
        cosine = bank @ query
        nearest = sorted(range(len(bank)), key=lambda i: (-cosine[i], i))[:k]
        score = dict.fromkeys(sorted(set(labels.tolist())), 0.0)
        for i in nearest:
            score[labels[i]] += 1.0 if tau is None else np.exp(cosine[i] / tau)
        answers.append(max(score, key=lambda c: (score[c], -c)))
    return np.array(answers)


@pytest.mark.parametrize("tau", [0.07, 0.5, None])
@pytest.mark.parametrize("k", [1, 7, 20])
def test_votes_equal_a_float64_oracle(k, tau):
    bank, labels = clusters(300, 0)
    queries, _ = clusters(150, 1)
    np.testing.assert_array_equal(
        knn_predict(bank, labels, queries, k, tau), oracle(bank, labels, queries, k, tau)
    )


@pytest.mark.parametrize("weighted", [True, False])
def test_accuracy_equals_sklearn(weighted):
    bank, labels = clusters(400, 2)
    queries, query_labels = clusters(200, 3)
    weights = (lambda distance: np.exp((1 - distance) / 0.07)) if weighted else "uniform"
    peer = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=weights)
    expected = peer.fit(bank, labels).score(queries, query_labels)
    tau = 0.07 if weighted else None
    assert knn_accuracy(bank, labels, queries, query_labels, 20, tau) == pytest.approx(expected)
    assert 0.4 < expected < 1  # a problem with something to get wrong


@pytest.mark.parametrize(("query_chunk", "bank_chunk"), [(1, 1), (7, 13), (64, 3), (1000, 1000)])
def test_chunks_change_nothing(query_chunk, bank_chunk):
    bank, _ = clusters(101, 4)
    queries, _ = clusters(30, 5)
    whole = neighbours(bank, queries, 9)
    parts = neighbours(bank, queries, 9, query_chunk=query_chunk, bank_chunk=bank_chunk)
    # A product of two vectors, and of each the squares of its length, a root and a quotient.
    d = bank.shape[1]
    off = rounding_bound(d + 2 * (d + 2), scale=1)
    np.testing.assert_allclose(parts[0], whole[0], atol=off, rtol=0)
    np.testing.assert_array_equal(parts[1], whole[1])


@pytest.mark.parametrize("bank_chunk", [2, 5, 100])
def test_equal_similarities_go_to_the_lowest_index(bank_chunk):
    bank = np.tile(np.eye(2, dtype=np.float32), (20, 1))  # e0 e1 e0 e1 ...
    _, index = neighbours(bank, bank[1:2], 4, bank_chunk=bank_chunk)
    assert index.tolist() == [[1, 3, 5, 7]]


def test_equal_votes_go_to_the_lowest_class():
    similarity = np.array([[0.5, 0.5, 0.5, 0.5]], dtype=np.float32)
    assert vote(similarity, np.array([[3, 1, 1, 3]]), 5, None).tolist() == [1]
    assert vote(similarity, np.array([[3, 1, 1, 3]]), 5, 0.07).tolist() == [1]


def test_a_tiny_temperature_does_not_overflow():
    similarity = np.array([[0.9, 0.1]], dtype=np.float32)
    with np.errstate(all="raise", under="ignore"):
        assert vote(similarity, np.array([[1, 0]]), 2, 1e-4).tolist() == [1]


def test_zero_features_are_far_from_everything_and_stay_finite():
    bank = np.array([[0.0, 0.0], [1.0, 0.0]], dtype=np.float32)
    similarity, _ = neighbours(bank, np.zeros((1, 2), dtype=np.float32), 2)
    assert similarity.tolist() == [[0.0, 0.0]]


def test_no_matrix_grows_with_queries_times_bank(monkeypatch):
    """The largest similarity matrix is a chunk's, whatever the sizes."""
    largest = []
    mm = torch.mm

    def watched(a, b, *, out):
        largest.append(out.numel())
        return mm(a, b, out=out)

    monkeypatch.setattr(torch, "mm", watched)
    bank, queries = clusters(3000, 6, d=4)[0], clusters(2000, 7, d=4)[0]
    tracemalloc.start()
    neighbours(bank, queries, 5, query_chunk=64, bank_chunk=128)
    numpy_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(largest) == 64 * 128
    assert numpy_peak < 3000 * 2000  # bytes; the full matrix would be four times that


def test_k_above_the_bank_is_clipped_with_a_note():
    bank, labels = clusters(6, 8)
    with pytest.warns(UserWarning, match="clipped to the 6 samples"):
        similarity, index = neighbours(bank, bank, 50)
    assert similarity.shape == index.shape == (6, 6)
    with pytest.warns(UserWarning, match="clipped"):
        assert len(knn_predict(bank, labels, bank, 50)) == 6


def test_a_single_class_is_predicted_and_unknown_classes_are_wrong():
    bank = np.eye(4, dtype=np.float32)
    labels = np.zeros(4, dtype=np.int64)
    assert knn_accuracy(bank, labels, bank, labels, 2) == 1.0
    assert knn_accuracy(bank, labels, bank, labels + 3, 2) == 0.0


def test_no_queries_give_no_answers():
    bank, labels = clusters(5, 9)
    assert knn_predict(bank, labels, bank[:0], 3).shape == (0,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b, y, q, m: (b[:0], y[:0], q, m), "train set is empty"),
        (lambda b, y, q, m: (b, y, q[:0], m[:0]), "test set is empty"),
        (lambda b, y, q, m: (b, np.where(y == 0, -1, y), q, m), "have no label"),
        (lambda b, y, q, m: (b, y, q, m * 0 - 1), "20 of 20 test samples have no label"),
        (lambda b, y, q, m: (b * np.float32(np.nan), y, q, m), "40 of 40 rows hold NaN"),
        (lambda b, y, q, m: (b, y, q[:, :3], m), "16 dimensions and queries 3"),
    ],
)
def test_bad_input_is_named(change, message):
    bank, labels = clusters(40, 10)
    queries, query_labels = clusters(20, 11)
    with pytest.raises(ValueError, match=message):
        knn_accuracy(*change(bank, labels, queries, query_labels), 3)


def test_bad_settings_are_named():
    bank, labels = clusters(40, 12)
    with pytest.raises(ValueError, match="k = 0"):
        knn_predict(bank, labels, bank, 0)
    with pytest.raises(ValueError, match=r"tau = -1"):
        knn_predict(bank, labels, bank, 3, -1.0)


@pytest.mark.parametrize("k", [1, 5, 40])
def test_groups_keep_the_order_of_equal_values(k):
    """Few distinct values in many columns: nearly everything is a tie."""
    values = torch.from_numpy(np.random.default_rng(13).integers(0, 4, size=(50, 64 * GROUP)))
    values = values.float()
    best, columns = _top_k_of_groups(values, k)
    expected, order = values.sort(dim=1, descending=True, stable=True)
    assert torch.equal(best, expected[:, :k])
    assert torch.equal(columns, order[:, :k])


def test_a_bank_of_many_chunks_and_blocks_of_queries(monkeypatch):
    bank, _ = clusters(5000, 14)
    queries, _ = clusters(300, 15)
    cosine = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, bank)]
    expected = np.argsort(-(cosine[0].astype(float) @ cosine[1].T), axis=1, kind="stable")[:, :6]
    monkeypatch.setattr(knn, "QUERY_BLOCK", 70)
    _, index = neighbours(bank, queries, 6, query_chunk=32, bank_chunk=1001)
    assert (index == expected).mean() > 0.999  # float32 may exchange two that are nearly equal
