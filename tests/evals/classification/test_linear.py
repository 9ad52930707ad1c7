import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from vitrail.evals.classification import linear
from vitrail.evals.classification.few_labels import draw_per_class
from vitrail.evals.classification.linear import choose_c, linear_accuracy
from vitrail.evals.classification.linear_few import linear_k_per_class
from vitrail.evals.classification.sgd_probe import Probe, fit_probe, probe_predict


def clusters(n, seed, d=12, classes=4, noise=2.0):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, d))
    labels = rng.integers(classes, size=n)
    scales = np.linspace(0.1, 50, d)  # so that standardising matters
    features = (centres[labels] + noise * rng.normal(size=(n, d))) * scales + 7
    return features.astype(np.float32), labels


def objective(weight, bias, features, labels, l2):
    """Mean cross-entropy plus l2 / 2 |W|^2, in float64."""
    logits = features.astype(np.float64) @ weight.T.astype(np.float64) + bias.astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    log_probability = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    cross_entropy = -log_probability[np.arange(len(labels)), labels].mean()
    return cross_entropy + l2 / 2 * (weight.astype(np.float64) ** 2).sum()


@pytest.mark.parametrize("noise", [0.3, 2.0])
def test_the_probe_reaches_the_optimum_of_sklearn(noise):
    features, labels = clusters(2000, 0, noise=noise)
    test, test_labels = clusters(1000, 1, noise=noise)
    l2 = 1e-3
    config = Probe(epochs=100, min_steps=0, batch_size=256, lrs=(0.1,), l2=l2, held_out=0.1)
    head = fit_probe(features, labels, config)
    scaler = StandardScaler().fit(features)
    standard = scaler.transform(features)
    peer = LogisticRegression(C=1 / (l2 * len(features)), tol=1e-8, max_iter=10000)
    peer.fit(standard, labels)
    best = objective(peer.coef_, peer.intercept_, standard, labels, l2)
    ours = objective(head.weight.numpy(), head.bias.numpy(), standard, labels, l2)
    assert best <= ours * (1 + 1e-6)
    assert ours < best * 1.01
    agreement = head.logits(torch.from_numpy(test)).argmax(1).numpy()
    assert (agreement == peer.predict(scaler.transform(test))).mean() >= 0.97
    expected = peer.score(scaler.transform(test), test_labels)
    assert (agreement == test_labels).mean() == pytest.approx(expected, abs=0.01)


def test_the_sweep_passes_over_rates_that_hardly_move():
    """On separable data every rate classifies all held-out rows; only the loss tells."""
    features, labels = clusters(500, 2, noise=0.2)
    head = fit_probe(features, labels, Probe(epochs=10, min_steps=0, batch_size=50))
    assert head.lr > 1e-3
    assert head.held_out_loss < 0.1


def test_the_classifiers_of_a_sweep_do_not_see_each_other():
    features, labels = clusters(500, 2)
    together = fit_probe(features, labels, Probe(epochs=3, min_steps=0, lrs=(1e-5, 1e-2)))
    assert together.lr == 1e-2
    alone = fit_probe(features, labels, Probe(epochs=3, min_steps=0, lrs=(1e-2,)))
    torch.testing.assert_close(together.weight, alone.weight, rtol=1e-4, atol=1e-6)


def test_the_probe_is_a_function_of_its_seed():
    features, labels = clusters(300, 3)
    first, again = (
        fit_probe(features, labels, Probe(epochs=2, min_steps=0, seed=4)) for _ in range(2)
    )
    other = fit_probe(features, labels, Probe(epochs=2, min_steps=0, seed=5))
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)


def test_constant_columns_do_no_harm():
    features, labels = clusters(300, 4)
    features[:, 0] = 3.0
    assert np.isfinite(
        fit_probe(features, labels, Probe(epochs=1, min_steps=0)).weight.numpy()
    ).all()
    assert linear_accuracy(features, labels, features, labels) > 0.5


def test_full_linear_equals_sklearn_at_the_chosen_c():
    features, labels = clusters(300, 5)
    test, test_labels = clusters(300, 6)
    scaler = StandardScaler().fit(features)
    c, _ = choose_c(scaler.transform(features), labels)
    peer = LogisticRegression(C=c, max_iter=10000, tol=1e-8)
    peer.fit(scaler.transform(features), labels)
    assert linear_accuracy(features, labels, test, test_labels) == pytest.approx(
        peer.score(scaler.transform(test), test_labels), abs=0.004
    )


def test_c_is_chosen_on_train_rows_alone(monkeypatch):
    features, labels = clusters(200, 7)
    test, test_labels = clusters(100, 8)
    seen = []
    monkeypatch.setattr(linear, "choose_c", lambda f, y, s: seen.append(f.shape) or (1.0, 0.0))
    linear_accuracy(features, labels, test, test_labels)
    assert seen == [(200, 12)]


def test_noise_asks_for_a_stronger_penalty_than_signal():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=120)
    noise = rng.normal(size=(120, 30)).astype(np.float32)
    signal = noise.copy()
    signal[:, 0] += 20 * labels
    assert choose_c(noise, labels)[0] < choose_c(signal, labels)[0]


def test_rotating_onto_the_span_changes_no_prediction(monkeypatch):
    """More features than rows: the answer is that of the fit in all the dimensions."""
    features, labels = clusters(40, 9, d=200)
    test, test_labels = clusters(200, 10, d=200)
    monkeypatch.setattr(linear, "choose_c", lambda f, y, s: (0.1, 0.0))
    scaler = StandardScaler().fit(features)
    peer = LogisticRegression(C=0.1, max_iter=10000, tol=1e-8)
    peer.fit(scaler.transform(features), labels)
    expected = peer.score(scaler.transform(test), test_labels)
    assert linear_accuracy(features, labels, test, test_labels) == pytest.approx(expected, abs=0.01)


def test_draws_hold_k_of_every_class_and_depend_on_seed_and_labels_alone():
    labels = np.random.default_rng(0).integers(5, size=400)
    rows = draw_per_class(labels, 10, seed=1, draw=0)
    assert np.bincount(labels[rows]).tolist() == [10] * 5
    assert len(set(rows.tolist())) == 50
    np.testing.assert_array_equal(rows, draw_per_class(labels, 10, seed=1, draw=0))
    assert set(rows.tolist()) != set(draw_per_class(labels, 10, seed=1, draw=1).tolist())
    assert set(rows.tolist()) != set(draw_per_class(labels, 10, seed=2, draw=0).tolist())


def test_few_labels_report_mean_and_sample_deviation():
    features, labels = clusters(400, 11)
    test, test_labels = clusters(300, 12)
    result = linear_k_per_class(features, labels, test, test_labels, k=5, draws=3)
    assert len(result.draws) == 3
    assert result.mean == pytest.approx(sum(result.draws) / 3)
    squares = sum((a - result.mean) ** 2 for a in result.draws)
    assert result.std == pytest.approx((squares / 2) ** 0.5)
    full = linear_accuracy(features, labels, test, test_labels)
    assert 0.3 < result.mean < full
    assert result == linear_k_per_class(features, labels, test, test_labels, k=5, draws=3)


def test_large_data_go_to_the_probe(monkeypatch):
    features, labels = clusters(400, 13)
    test, test_labels = clusters(300, 14)
    logistic = linear_accuracy(features, labels, test, test_labels)
    monkeypatch.setattr(linear, "LOGISTIC_MAX_ROWS", 100)
    monkeypatch.setattr(linear, "Probe", lambda seed: Probe(min_steps=100, seed=seed))
    probe = linear_accuracy(features, labels, test, test_labels)
    assert probe == pytest.approx(logistic, abs=0.05)
    head = fit_probe(features, labels, Probe(min_steps=100, seed=0))
    assert probe == (probe_predict(head, test) == test_labels).mean()


@pytest.mark.parametrize("evaluate", [linear_accuracy, linear_k_per_class])
@pytest.mark.parametrize(
    ("labels_of", "message"),
    [
        (lambda y: y * 0, "all 100 train samples are of class 0"),
        (lambda y: y * 0 - 1, "100 of 100 train samples have no label"),
        (lambda y: y[:0], "train set is empty"),
    ],
)
def test_bad_labels_are_named(evaluate, labels_of, message):
    features, labels = clusters(100, 15)
    bad = labels_of(labels)
    with pytest.raises(ValueError, match=message):
        evaluate(features[: len(bad)], bad, features, labels)


def test_too_few_of_a_class_is_named():
    features, labels = clusters(100, 16)
    labels[labels == 2] = 1
    labels[7] = 2
    with pytest.raises(ValueError, match="class 2 has 1 train samples, fewer than the 10"):
        linear_k_per_class(features, labels, features, labels)
