"""The linear probe over several features: what it chooses, how well, and from which columns."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tests.evals.synthetic_runs import tiny_encoder
from vitrail.backbones.create import create_backbone
from vitrail.data.sources.registry import open_source
from vitrail.data.views.preprocess import Preprocess
from vitrail.encoder import Encoder
from vitrail.evals.classification import linear
from vitrail.evals.classification.finetune import labels_of
from vitrail.evals.classification.linear import linear_predict
from vitrail.evals.classification.sgd_probe import Probe, fit_probe, probe_predict
from vitrail.evals.features import POOLED, WITH_PATCHES, FeatureChoices

HALVES = {"left": slice(0, 6), "right": slice(6, 12), "both": slice(0, 12)}


def table(n, seed, signal):
    """12 columns of noise, of which `signal` also tell four classes apart."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=n)
    x = rng.normal(size=(n, 12))
    x[:, signal] += 2 * np.random.default_rng(99).normal(size=(4, 6))[labels]
    return x.astype(np.float32), labels


@pytest.fixture(scope="module")
def digits():
    """Pixels of the digits, in two choices of columns: (train, labels, test, labels)."""
    splits = [open_source("digits", split) for split in ("train", "test")]
    return [a for s in splits for a in (s.pixels().flatten(1).float().numpy() / 255, labels_of(s))]


@pytest.mark.parametrize(("columns", "batch"), [(slice(0, 64), 1024), (slice(8, 48), 1297)])
def test_the_sweep_agrees_with_sklearn_on_digits_to_a_fifth_of_a_point(digits, columns, batch):
    train, labels, test, test_labels = digits
    l2 = 1e-3
    config = Probe(l2=l2, lrs=(1e-3, 1e-1), batch_size=batch)
    head = fit_probe(train, labels, config, choices={"these": columns})
    scaler = StandardScaler().fit(train[:, columns])
    peer = LogisticRegression(C=1 / (l2 * len(train)), tol=1e-8, max_iter=10000)
    peer.fit(scaler.transform(train[:, columns]), labels)
    expected = peer.score(scaler.transform(test[:, columns]), test_labels)
    assert 0.8 < expected < 0.99  # there is something to get wrong
    accuracy = (probe_predict(head, test) == test_labels).mean()
    assert accuracy == pytest.approx(expected, abs=0.002 + 1e-9)


@pytest.mark.parametrize("rows", [10_000, 100])  # at most which the fit is exact
@pytest.mark.parametrize(("signal", "name"), [(slice(0, 6), "left"), (slice(6, 12), "right")])
def test_the_columns_with_the_signal_are_chosen(monkeypatch, rows, signal, name):
    monkeypatch.setattr(linear, "LOGISTIC_MAX_ROWS", rows)
    monkeypatch.setattr(linear, "Probe", lambda seed: Probe(min_steps=100, seed=seed))
    train, labels = table(500, 0, signal)
    test, test_labels = table(300, 1, signal)
    only = {key: HALVES[key] for key in ("left", "right")}
    found = linear_predict(train, labels, test, choices=only)
    assert found.choice == name
    assert found.setting.startswith("C=" if rows > 500 else "lr=")
    alone = linear_predict(train, labels, test, choices={name: HALVES[name]})
    np.testing.assert_array_equal(found.predicted, alone.predicted)
    assert (found.predicted == test_labels).mean() > 0.7


def test_all_choices_are_trained_as_each_would_be_alone():
    train, labels = table(400, 2, slice(0, 6))
    config = Probe(epochs=2, min_steps=0, lrs=(1e-2,))
    together = fit_probe(train, labels, config, choices=HALVES)
    alone = fit_probe(train, labels, config, choices={together.choice: together.columns})
    torch.testing.assert_close(together.weight, alone.weight)
    assert together.held_out_loss == pytest.approx(alone.held_out_loss, rel=1e-5)


def test_no_choice_sees_the_test_rows():
    train, labels = table(300, 3, slice(0, 6))
    test, _ = table(100, 4, slice(6, 12))
    first = linear_predict(train, labels, test, choices=HALVES)
    second = linear_predict(train, labels, test[::-1].copy(), choices=HALVES)
    assert (first.choice, first.setting) == (second.choice, second.setting)


@pytest.mark.parametrize("name", ["vit_nano_patch4_28", "crate_nano_patch4_28"])
def test_columns_of_a_backbone_with_class_tokens_in_all_layers(name):
    encoder = tiny_encoder("digits", size=8, name=name)
    pixels = torch.randn(40, 1, 8, 8)  # more than go through the layers together
    choices = FeatureChoices(encoder, 2)
    columns = torch.from_numpy(choices.embed(pixels))
    backbone = encoder.backbone.eval()
    with torch.no_grad():
        features = backbone(pixels)
        states = backbone.layer_states(pixels)
        before = backbone.norm(states[-2].after[:, 0])
    mean = features.patches.mean((1, 2))
    expected = {
        POOLED: [features.pooled],
        WITH_PATCHES: [mean, features.pooled],
        "last 2 class tokens": [features.pooled, before],
        "last 2 class tokens + mean patch": [mean, features.pooled, before],
    }
    assert list(choices.columns) == list(expected)
    for key, parts in expected.items():
        torch.testing.assert_close(
            columns[:, choices.columns[key]], torch.cat(parts, 1), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    ("name", "size", "names"),
    [
        ("tost_nano_patch4_28", 28, [POOLED, WITH_PATCHES]),
        ("resnet18_small", 16, [POOLED]),
        ("swin_nano_patch2_28", 28, [POOLED]),
    ],
)
def test_other_backbones_give_what_they_have(name, size, names):
    backbone = create_backbone(name, img_size=size, in_chans=1)
    encoder = Encoder(backbone, Preprocess(size, size, (0.5,), (0.5,)), {"seed": 0})
    pixels = torch.randn(3, 1, size, size)
    choices = FeatureChoices(encoder)
    columns = choices.embed(pixels)
    assert list(choices.columns) == names
    np.testing.assert_allclose(
        columns[:, choices.columns[POOLED]], encoder.embed(pixels), rtol=1e-4, atol=1e-5
    )
    features = backbone.eval()(pixels)
    if WITH_PATCHES in names:
        mean = features.patches.mean((1, 2)).detach().numpy()
        np.testing.assert_allclose(columns[:, : mean.shape[1]], mean, rtol=1e-4, atol=1e-5)


def test_layers_that_are_not_there_are_not_asked_for():
    encoder = tiny_encoder("digits", size=8)  # two layers
    assert "last 2 class tokens" in FeatureChoices(encoder, 9).columns
    assert list(FeatureChoices(encoder, 1).columns) == [POOLED, WITH_PATCHES]
    with pytest.raises(ValueError, match="last_blocks is 0"):
        FeatureChoices(encoder, 0)
