import os
import subprocess
import sys
from pathlib import Path

from benchmarks.knn import compare, features, ours, scikit_learn, whole_matrix


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


CHILD = """
import numpy as np
from benchmarks.knn import peak_memory

with peak_memory("cpu") as peak:
    held = np.ones(2**24, dtype=np.float64)  # 128 MiB, touched
    assert held[-1] == 1
print(peak.value)
"""


def test_peak_memory_is_seen():
    # A process of its own: this one may still hold the memory that an earlier test has freed.
    command = [sys.executable, "-c", CHILD]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert 100 < float(done.stdout) < 200
