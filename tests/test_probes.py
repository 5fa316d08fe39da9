"""Nearest neighbors, linear probe and logistic regression on frozen features."""

import math

import pytest
import torch

from albef_hf.evaluation.probes import (
    KNN_PROTOCOLS,
    extract_features,
    fit_logistic_regression,
    knn_accuracy,
    linear_probe,
    logistic_regression,
)


def clusters(count, seed, classes=4, width=10, noise=0.6):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.eye(width)[:classes] * 2
    labels = torch.randint(classes, (count,), generator=generator)
    return centers[labels] + noise * torch.randn(count, width, generator=generator), labels


def test_knn_by_hand():
    """Votes are exp(s / T): one very near neighbor beats two that are further away."""
    train = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8]])
    labels = torch.tensor([0, 1, 1])
    test = torch.tensor([[0.95, math.sqrt(1 - 0.95**2)]])
    near, far = 0.95, 0.95 * 0.6 + math.sqrt(1 - 0.95**2) * 0.8
    for temperature in (0.05, 0.07, 0.5):
        expected = float(math.exp(near / temperature) > 2 * math.exp(far / temperature))
        found = knn_accuracy(train, labels, test, torch.tensor([0]), (1, 3), temperature)
        assert found == {1: 1.0, 3: expected}
    assert knn_accuracy(train, labels, test, torch.tensor([0]), (3,), 0.5)[3] == 0.0


def test_knn_in_chunks_and_of_any_length():
    train, y = clusters(300, 0)
    test, t = clusters(100, 1)
    whole = knn_accuracy(train, y, test, t)
    assert whole == knn_accuracy(train * 7, y, test, t, chunk=13)
    assert set(whole) == {10, 20, 100, 200} == set(KNN_PROTOCOLS["dino-knn"][0]) and whole[20] > 0.9


def test_logistic_regression_agrees_with_scikit_learn():
    sklearn = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    train, y = clusters(200, 0, noise=1.5)
    layer = fit_logistic_regression(train.double(), y, 4, penalty=0.1, iterations=500)
    # scikit-learn's C multiplies the *sum* of the losses.
    other = sklearn.LogisticRegression(C=1 / (0.1 * len(train)), tol=1e-10, max_iter=10_000).fit(train.double(), y)
    torch.testing.assert_close(layer.weight.detach(), torch.from_numpy(other.coef_), atol=1e-4, rtol=1e-3)


def test_probes_choose_on_training_rows_only():
    train, y = clusters(400, 0, noise=1.0)
    test, t = clusters(200, 1, noise=1.0)
    wrong = (t + 1) % 4
    for probe in (logistic_regression, linear_probe):
        right = probe(train, y, test, t)
        assert right["accuracy"] > 0.75 and right["validation_accuracy"] > 0.75
        spoiled = probe(train, y, test, wrong)
        assert spoiled["accuracy"] < 0.2
        # The test labels change neither the choice nor what it was made by.
        keys = [key for key in right if key != "accuracy"]
        assert all(right[key] == spoiled[key] for key in keys)


def test_held_out_rows_are_not_fitted():
    """Noise that can be learned by heart: rows that a probe has seen are all right, others right by chance."""
    generator = torch.Generator().manual_seed(0)
    train, labels = torch.randn(60, 200, generator=generator), torch.randint(4, (60,), generator=generator)
    for probe in (logistic_regression, linear_probe):
        found = probe(train, labels, train, labels)
        assert found["validation_accuracy"] < 0.7
    assert logistic_regression(train, labels, train, labels)["accuracy"] == 1


def test_test_rows_are_standardized_by_the_training_rows():
    train, y = clusters(300, 0)
    test, t = clusters(200, 1)
    scale, shift = torch.linspace(0.2, 4, 10), torch.linspace(-2, 3, 10)
    moved = test * scale + shift  # their own mean and deviation would undo this
    mean, deviation = train.mean(0), train.std(0)
    layer = fit_logistic_regression((train - mean) / deviation, y, 4, penalty=0.01)
    expected = float((layer((moved - mean) / deviation).argmax(1) == t).float().mean())
    assert logistic_regression(train, y, moved, t, penalties=(0.01,))["accuracy"] == pytest.approx(expected)
    plain = logistic_regression(train, y, test, t, penalties=(0.01,))["accuracy"]
    assert expected < plain - 0.1
    assert linear_probe(train, y, moved, t)["accuracy"] < linear_probe(train, y, test, t)["accuracy"] - 0.1


def test_neighbors_are_near_by_angle_not_by_length():
    train, y = clusters(300, 0, noise=1.2)
    test, t = clusters(100, 1, noise=1.2)
    lengths = [torch.rand(count, 1, generator=torch.Generator().manual_seed(count)) * 9 + 0.1 for count in (300, 100)]
    assert knn_accuracy(train * lengths[0], y, test * lengths[1], t) == knn_accuracy(train, y, test, t)


def test_linear_probe_trains_every_rate():
    train, y = clusters(400, 0, noise=1.0)
    found = linear_probe(train, y, *clusters(100, 1, noise=1.0), learning_rates=(0.0, 0.1), epochs=10)
    assert found["learning_rate"] == 0.1 and set(found["by_learning_rate"]) == {0.0, 0.1}


def test_features_come_in_order_and_batches():
    pictures = list(range(7))
    found = extract_features(lambda x: x * 2, pictures, lambda p: torch.tensor([float(p)]), batch_size=3)
    assert found.flatten().tolist() == [0, 2, 4, 6, 8, 10, 12]
