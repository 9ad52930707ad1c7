"""DeepCluster beside its formula, and what its epochs begin with."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from tests.objectives.tiny import (
    HORIZON,
    N_SAMPLES,
    build,
    in_float64,
    make_backbone,
    make_batch,
)
from tests.rounding import EXACT, float64_kept, rounding_bound
from vitrail.data.views.plan import RandomResizedCrop
from vitrail.objectives.build import build_objective
from vitrail.objectives.deepcluster import Config, agreement

TINY = Config(views=RandomResizedCrop(size=16), n_clusters=6)


def noise(seed: int, rows: int = N_SAMPLES, width: int = 32) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@float64_kept()
@pytest.mark.parametrize("ungrouped", [0, 3])
def test_loss_is_the_cross_entropy_of_the_pseudo_labels(ungrouped: int) -> None:
    objective = build(TINY).double()
    torch.nn.init.normal_(objective.network.head.weight)
    objective.pseudo_labels[:ungrouped] = -1
    batch = in_float64(make_batch(objective.views(), 8))
    batch.index.copy_(torch.tensor([0, 1, 2, 31, 30, 8, 17, 5]))
    out = objective(batch, 0)
    with torch.no_grad():
        pooled = objective.encoder(batch.views[0]).pooled
        logits = objective.network.head(pooled).numpy()
    labels = objective.pseudo_labels[batch.index].numpy()
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    kept = labels >= 0
    losses = -log_p[np.arange(8), labels.clip(0)][kept]
    assert kept.sum() == 8 - ungrouped
    assert math.isclose(out["loss"].item(), losses.mean(), rel_tol=EXACT["rtol"])
    hits = logits.argmax(1)[kept] == labels[kept]
    # Two whole numbers, divided in float32.
    assert math.isclose(out["accuracy"].item(), hits.mean(), rel_tol=rounding_bound(1))
    torch.testing.assert_close(out["features"], pooled, **EXACT)


def test_the_source_s_labels_play_no_part() -> None:
    objective = build(TINY)
    batch = make_batch(objective.views(), 8)
    loss = objective(batch, 0)["loss"]
    batch.label.fill_(-1)
    assert objective(batch, 0)["loss"] == loss


def test_one_sample_trains() -> None:
    objective = build(TINY)
    assert objective(make_batch(objective.views(), 1), 0)["loss"].isfinite()
    assert objective.min_batch_size == 1


def test_before_any_epoch_nothing_is_learned() -> None:
    objective = build_objective(TINY, make_backbone(), HORIZON, None, N_SAMPLES)
    assert (objective.groups == -1).all()
    assert objective(make_batch(objective.views(), 4), 0)["loss"] == 0


def test_pseudo_labels_are_the_clusters_of_the_whitened_features() -> None:
    """Six groups along five directions, beside a direction of no meaning and large variance."""
    objective = build(replace(TINY, pca_dim=6))
    which = np.arange(N_SAMPLES) % 6
    random = np.random.default_rng(0)
    x = np.eye(6, 32)[which] + 0.01 * random.normal(size=(N_SAMPLES, 32))
    x[:, 20] += 100 * random.normal(size=N_SAMPLES)
    found = []
    for epoch in range(8):  # k-means from random samples does not always find the best
        objective.before_epoch(epoch, 0, lambda: torch.from_numpy(x).float())
        found.append(normalized_mutual_info_score(objective.groups.numpy(), which))
    raw = KMeans(6, n_init=5, random_state=0).fit(x)
    assert max(found) > 0.75
    assert normalized_mutual_info_score(raw.labels_, which) < 0.5


def test_clusters_and_head_are_functions_of_seed_and_epoch() -> None:
    def after(epoch: int, seed: int) -> dict[str, Tensor]:
        objective = build(TINY)
        objective.before_epoch(epoch, seed, lambda: noise(1))
        return objective.state_dict()

    first, again = after(3, 5), after(3, 5)
    assert all(torch.equal(first[key], again[key]) for key in first)
    for other in (after(4, 5), after(3, 6)):
        for key in ("pseudo_labels", "network.head.weight"):
            assert not torch.equal(other[key], first[key])
        assert torch.equal(other["network.head.bias"], first["network.head.bias"])


def test_the_head_is_drawn_anew_and_the_backbone_is_not_touched() -> None:
    objective = build(replace(TINY, n_clusters=30))
    head, before = objective.network.head, objective.encoder.state_dict()
    with torch.no_grad():
        head.bias.fill_(3)
        head.weight.fill_(3)
    before = {key: value.clone() for key, value in before.items()}
    fresh = objective.before_epoch(1, 0, lambda: noise(2))
    assert {id(p) for p in fresh} == {id(head.weight), id(head.bias)}
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert head.weight.mean().abs() < 1e-3
    assert (head.bias == 0).all()
    assert all(torch.equal(v, before[k]) for k, v in objective.encoder.state_dict().items())
    assert objective(make_batch(objective.views(), 8), 0)["loss"].item() == pytest.approx(
        objective.chance_loss, rel=0.02
    )


def test_images_without_features_have_no_pseudo_label() -> None:
    objective = build(TINY)
    x = noise(0)
    x[[4, 9]] = torch.nan
    objective.before_epoch(0, 0, lambda: x)
    assert (objective.groups == -1).nonzero().flatten().tolist() == [4, 9]
    assert objective.groups.max() < 6
    x[5:] = torch.nan
    with pytest.raises(ValueError, match=r"4 of 32 images have features at epoch 7.*n_clusters, 6"):
        objective.before_epoch(7, 0, lambda: x)


def test_nmi_is_of_the_assignments_of_successive_epochs() -> None:
    objective = build(TINY)
    before = objective.groups.clone()
    objective.before_epoch(1, 0, lambda: noise(3))
    a, b = before.numpy(), objective.groups.numpy()
    joint = np.zeros((6, 6))
    np.add.at(joint, (a, b), 1 / len(a))
    p, q = joint.sum(1), joint.sum(0)
    mutual = sum(
        joint[i, j] * np.log(joint[i, j] / (p[i] * q[j])) for i, j in np.argwhere(joint > 0)
    )
    entropies = [-(m[m > 0] * np.log(m[m > 0])).sum() for m in (p, q)]
    assert objective.nmi.item() == pytest.approx(mutual / np.mean(entropies), rel=1e-5)
    out = objective(make_batch(objective.views(), 4), 0)
    assert out["nmi"] == objective.nmi


def test_nmi_does_not_mind_names_and_leaves_out_the_ungrouped() -> None:
    a = torch.tensor([0, 0, 1, 1, 2, 2, -1, 0])
    b = torch.tensor([2, 2, 0, 0, 1, 1, 0, -1])
    assert agreement(a, b) == pytest.approx(1)
    assert agreement(torch.full((8,), -1), b) == 0
    assert agreement(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])) == pytest.approx(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_clusters": 1}, "n_clusters is 1"),
        ({"pca_dim": 0}, "pca_dim is 0"),
        ({"kmeans_iterations": 0}, "kmeans_iterations is 0"),
        ({"reassign": 0.0}, "reassign is 0.0"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"deepcluster: {message}"):
        Config(**changes)


def test_more_clusters_than_images_are_refused() -> None:
    with pytest.raises(ValueError, match="n_clusters is 33, more than the 32 images"):
        build(replace(TINY, n_clusters=33))
