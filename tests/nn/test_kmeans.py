"""k-means beside scikit-learn's, whitening beside its definition, empty clusters."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from vitrail.nn import kmeans as module
from vitrail.nn.kmeans import SPLIT, Clusters, kmeans, nearest, split_empty, whiten

CPU = torch.device("cpu")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def blobs(n: int = 600, k: int = 6, dim: int = 5, spread: float = 0.3) -> tuple:
    random = rng(1)
    centres = random.normal(size=(k, dim)) * 4
    which = np.arange(n) % k
    x = centres[which] + spread * random.normal(size=(n, dim))
    return torch.from_numpy(x.astype(np.float32)), which


def inertia(x: torch.Tensor, found: Clusters) -> float:
    """The mean squared distance to the centroid of the label."""
    return (x.double() - found.centroids[found.labels]).square().sum(1).mean().item()


def test_inertia_is_as_low_as_scikit_learn_s() -> None:
    x, which = blobs()
    tries = [kmeans(x, 6, rng(seed)) for seed in range(10)]
    best = min(tries, key=lambda found: inertia(x, found))
    theirs = KMeans(6, init="random", n_init=10, random_state=0).fit(x.numpy())
    assert inertia(x, best) == pytest.approx(theirs.inertia_ / len(x), rel=1e-4)
    assert normalized_mutual_info_score(best.labels.numpy(), which) > 0.99


def test_from_the_same_start_it_takes_scikit_learn_s_steps() -> None:
    x, _ = blobs(spread=2.0)
    start = x[torch.from_numpy(rng(3).permutation(len(x))[:6])]
    ours = kmeans(x, 6, rng(3), iterations=7)
    theirs = KMeans(6, init=start.numpy(), n_init=1, max_iter=7, tol=0, algorithm="lloyd")
    theirs.fit(x.numpy())
    torch.testing.assert_close(
        ours.centroids, torch.from_numpy(theirs.cluster_centers_), atol=1e-4, rtol=1e-4
    )
    assert (ours.labels.numpy() == theirs.labels_).mean() > 0.99


def test_labels_and_distances_are_of_the_nearest_centroid() -> None:
    x, _ = blobs(spread=2.0)
    found = kmeans(x, 9, rng())
    labels, distances = nearest(x, found.centroids)
    d = ((x.double().numpy()[:, None] - found.centroids.double().numpy()[None]) ** 2).sum(-1)
    assert (found.labels.numpy() == d.argmin(1)).all()
    assert torch.equal(labels, found.labels)
    np.testing.assert_allclose(distances.numpy(), d.min(1), rtol=1e-4, atol=1e-4)


def test_it_is_a_function_of_the_draws_and_not_of_the_chunks(monkeypatch) -> None:
    x, _ = blobs(spread=2.0)
    first = kmeans(x, 9, rng(5))
    assert torch.equal(kmeans(x, 9, rng(5)).labels, first.labels)
    assert not torch.equal(kmeans(x, 9, rng(6)).labels, first.labels)
    monkeypatch.setattr(module, "CPU_SCORES", 7 * 9)
    chunked = kmeans(x, 9, rng(5))
    assert torch.equal(chunked.labels, first.labels)
    torch.testing.assert_close(chunked.centroids, first.centroids)


def test_chunks_cover_every_row(monkeypatch) -> None:
    x, centroids = torch.randn(50, 4), torch.randn(8, 4)
    monkeypatch.setattr(module, "CPU_SCORES", 1)
    labels, distance = nearest(x, centroids)
    exact = torch.cdist(x.double(), centroids.double()) ** 2
    assert torch.equal(labels, exact.argmin(1))
    torch.testing.assert_close(distance.double(), exact.amin(1), atol=1e-5, rtol=1e-5)


def test_an_empty_cluster_is_put_beside_a_full_one() -> None:
    centroids = torch.tensor([[1.0, 2.0, -4.0], [9.0, 9.0, 9.0], [5.0, 5.0, 5.0]])
    found = split_empty(centroids, torch.tensor([10, 0, 1]), rng())
    up, down = 1 + SPLIT, 1 - SPLIT
    assert torch.equal(found[2], centroids[2])  # one sample cannot be shared
    torch.testing.assert_close(found[1], torch.tensor([up, 2 * down, -4 * up]))
    torch.testing.assert_close(found[0], torch.tensor([down, 2 * up, -4 * down]))


def test_larger_clusters_are_split_more_often() -> None:
    centroids = torch.eye(3)
    split = [
        int(((split_empty(centroids, torch.tensor([31, 0, 11]), rng(i)) - centroids)[2] != 0).any())
        for i in range(400)
    ]
    assert sum(split) / 400 == pytest.approx(10 / 40, abs=0.06)


def test_a_cluster_left_empty_shares_another_s_samples() -> None:
    # 96 samples at one point and 4 at another: of 8 random ones most start at the same place.
    x = torch.cat([torch.randn(96, 3) * 0.1 + 5, torch.randn(4, 3) * 0.1 - 5])
    x[:60] = x[0]
    found = kmeans(x, 8, rng(0), iterations=20)
    sizes = torch.bincount(found.labels, minlength=8)
    assert (sizes > 0).sum() >= 6
    assert found.centroids.isfinite().all()


def test_as_many_clusters_as_samples() -> None:
    x, _ = blobs(n=12)
    assert inertia(x, kmeans(x, 12, rng())) == pytest.approx(0, abs=1e-4)
    same = kmeans(torch.ones(5, 3), 5, rng())
    assert same.centroids.isfinite().all()
    for k in (0, 13):
        with pytest.raises(ValueError, match=f"{k} clusters of 12 samples"):
            kmeans(x, k, rng())


def test_whitening_is_the_definition_s(monkeypatch) -> None:
    random = rng(2)
    x = (random.normal(size=(300, 8)) @ random.normal(size=(8, 8)) + 50).astype(np.float32)
    monkeypatch.setattr(module, "ROWS", 77)
    found = whiten(torch.from_numpy(x), 5, CPU).double().numpy()
    # By the singular value decomposition of the centred data, in float64.
    centred = x.astype(np.float64) - x.astype(np.float64).mean(0)
    u, _, _ = np.linalg.svd(centred, full_matrices=False)
    expected = u[:, :5] / np.linalg.norm(u[:, :5], axis=1, keepdims=True)
    signs = np.sign((found * expected).sum(0))
    np.testing.assert_allclose(found * signs, expected, atol=1e-5)


def test_whitened_rows_have_unit_norm_and_what_has_no_variance_is_zero() -> None:
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    x[:, 3] = x[:, 0] + x[:, 1]  # no sixth direction
    found = whiten(x, 20, CPU)
    assert found.shape == (40, 6)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(40))
    assert (found[:, 5] == 0).all()
    assert (found[:, :5].abs().amax(0) > 0.1).all()


def test_equal_rows_are_zero_and_not_nan() -> None:
    assert torch.equal(whiten(torch.full((9, 4), 3.0), 2, CPU), torch.zeros(9, 2))
