import numpy as np

from benchmarks.knn import compare, features, ours, peak_memory, scikit_learn, whole_matrix


def test_all_ways_find_the_same_neighbours():
    bank, queries = features(400, 0), features(30, 1)
    found = ours(bank, queries, "cpu")
    for other in (
        whole_matrix(bank, queries, "cpu"),
        scikit_learn(bank, queries, "cosine"),
        scikit_learn(bank, queries, "euclidean"),
    ):
        assert (other == found).mean() > 0.99


def test_a_row_for_each_way():
    lines = compare(300, 20, "cpu", blocks=1)
    assert [line.split(" | ")[2] for line in lines][:2] == ["ours", "torch, whole matrix"]
    assert len(lines) == 4


def test_peak_memory_is_seen():
    with peak_memory("cpu") as peak:
        held = np.ones(2**24, dtype=np.float64)  # 128 MiB, touched
        assert held[-1] == 1
    assert 100 < peak.value < 200
