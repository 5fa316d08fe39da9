"""The quality of frozen features, measured by nearest neighbors, a linear layer and logistic regression.

Features come from the *online* encoder, before any projector, of pictures resized without augmentation. No choice uses
the test set: a probe reports its last state, and penalties and learning rates are chosen on a part of the training
    set.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ..losses import unit_vectors

# Numbers of neighbors and the temperature. `dino-knn`: Caron et al. 2021, section 4.1, used by most others since; the
# best k is usually 20. `instdisc-knn`: Wu et al. 2018, section 3.4, MoCo's CIFAR demonstration and lightly.
KNN_PROTOCOLS: dict[str, tuple[tuple[int, ...], float]] = {
    "dino-knn": ((10, 20, 100, 200), 0.07),
    "instdisc-knn": ((200,), 0.1),
}
LEARNING_RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@torch.no_grad()
def extract_features(
    encode: Callable[[torch.Tensor], torch.Tensor],
    pictures: Any,
    to_pixels: Callable[[Any], torch.Tensor],
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    progress: bool = False,
) -> torch.Tensor:
    """Features (pictures, width) in float32, on the CPU.

    Args:
        encode: pixels (batch, channels, h, w) -> features (batch, width).
        pictures: a sequence of undecoded pictures, read a slice at a time.
        to_pixels: a picture -> a normalized tensor (channels, h, w).
    """
    found = []
    for start in tqdm(range(0, len(pictures), batch_size), desc="features", unit="batch", disable=not progress):
        pixels = torch.stack([to_pixels(picture) for picture in pictures[start : start + batch_size]])
        found.append(encode(pixels.to(device)).float().cpu())
    return torch.cat(found)


@torch.no_grad()
def knn_accuracy(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    neighbors: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    chunk: int = 1024,
) -> dict[int, float]:
    """Weighted k-nearest-neighbor accuracy for every k (Wu et al. 2018, section 3.4).

    Each of the k nearest training rows votes for its class with weight exp(cosine similarity / temperature).

    Args:
        train_features, test_features: (rows, width); their lengths do not matter.
        train_labels, test_labels: (rows,) integers.
        neighbors: the values of k. A k that exceeds the training rows takes all of them.
        chunk: test rows at a time.

    Returns: the accuracy in 0 .. 1 for each k.
    """
    bank = unit_vectors(train_features.float())
    classes = _classes(train_labels, test_labels)
    most = min(max(neighbors), len(bank))
    right = dict.fromkeys(neighbors, 0)
    for start in range(0, len(test_features), chunk):
        rows = unit_vectors(test_features[start : start + chunk].float())
        similarity, index = (rows @ bank.T).topk(most, dim=1)
        votes = torch.exp((similarity - similarity[:, :1]) / temperature)
        labels = train_labels[index]
        for k in neighbors:
            score = torch.zeros(len(rows), classes, dtype=votes.dtype).scatter_add_(1, labels[:, :k], votes[:, :k])
            right[k] += int((score.argmax(1) == test_labels[start : start + chunk]).sum())
    return {k: count / len(test_features) for k, count in right.items()}


def _classes(*labels: torch.Tensor) -> int:
    return int(torch.cat(labels).max()) + 1


def _standardized(train: torch.Tensor, test: torch.Tensor) -> list[torch.Tensor]:
    """Both in float32, standardized by the mean and deviation of the training rows."""
    train, test = train.float(), test.float()
    mean, deviation = train.mean(0), train.std(0).clamp(min=1e-6)
    return [(features - mean) / deviation for features in (train, test)]


def _validation_split(labels: torch.Tensor, fraction: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows to fit on, and held-out rows to choose by."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    held = max(1, round(len(labels) * fraction))
    return order[held:], order[:held]


def _accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return float((logits.argmax(-1) == labels).float().mean())


def fit_logistic_regression(
    features: torch.Tensor, labels: torch.Tensor, classes: int, penalty: float, iterations: int = 200
) -> nn.Linear:
    """Multinomial logistic regression by L-BFGS. The loss is the mean cross-entropy plus penalty / 2 * |W|^2."""
    layer = nn.Linear(features.shape[1], classes, dtype=features.dtype)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(layer(features), labels) + penalty / 2 * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return layer


def logistic_regression(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    penalties: Sequence[float] = PENALTIES,
    validation_fraction: float = 0.2,
    seed: int = 0,
    iterations: int = 200,
) -> dict[str, float]:
    """Test accuracy of a logistic regression whose penalty is chosen on held-out training rows.

    Returns: `accuracy` on the test rows, fitted with the chosen penalty on all training rows; `penalty`, the chosen
        one; `validation_accuracy`, its accuracy on the held-out rows.
    """
    train, test = _standardized(train_features, test_features)
    classes = _classes(train_labels, test_labels)
    fit, held = _validation_split(train_labels, validation_fraction, seed)
    scores = []
    for penalty in penalties:
        layer = fit_logistic_regression(train[fit], train_labels[fit], classes, penalty, iterations)
        scores.append(_accuracy(layer(train[held]), train_labels[held]))
    best = max(range(len(scores)), key=scores.__getitem__)
    layer = fit_logistic_regression(train, train_labels, classes, penalties[best], iterations)
    accuracy = _accuracy(layer(test), test_labels)
    return {"accuracy": accuracy, "validation_accuracy": scores[best], "penalty": penalties[best]}


def linear_probe(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    learning_rates: Sequence[float] = LEARNING_RATES,
    epochs: int = 100,
    batch_size: int = 256,
    validation_fraction: float = 0.2,
    seed: int = 0,
) -> dict[str, Any]:
    """Test accuracy of a linear layer trained by SGD, whose learning rate is chosen on held-out training rows.

    SGD has momentum 0.9, no weight decay, and a cosine schedule that moves every step. One layer for each learning
    rate trains, all of them at once.

    Returns: `accuracy` on the test rows after the last epoch; `learning_rate`, the chosen one; `validation_accuracy`,
        its accuracy on the held-out rows; `by_learning_rate`, that of each learning rate.
    """
    train, test = _standardized(train_features, test_features)
    classes = _classes(train_labels, test_labels)
    fit, held = _validation_split(train_labels, validation_fraction, seed)
    rates = torch.tensor(list(learning_rates))[:, None, None]
    generator = torch.Generator().manual_seed(seed)
    # A column of ones is appended to the features, so the last row of a layer's weights is its bias.
    weights = torch.zeros(len(rates), train.shape[1] + 1, classes)
    moments = torch.zeros_like(weights)

    def scores(features: torch.Tensor) -> torch.Tensor:
        """(rows, width) -> (rates, rows, classes)."""
        return torch.matmul(torch.cat([features, torch.ones(len(features), 1)], dim=1), weights)

    steps = max(1, epochs * (len(fit) // min(batch_size, len(fit))))
    step = 0
    while step < steps:
        order = fit[torch.randperm(len(fit), generator=generator)]
        for rows in order.split(batch_size):
            if step == steps or (len(rows) < batch_size <= len(fit)):
                break
            features = torch.cat([train[rows], torch.ones(len(rows), 1)], dim=1)
            error = torch.matmul(features, weights).softmax(-1)
            error[:, torch.arange(len(rows)), train_labels[rows]] -= 1
            gradient = torch.matmul(features.T, error) / len(rows)
            moments.mul_(0.9).add_(gradient)
            rate = rates * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / steps)))
            weights.sub_(rate * moments)
            step += 1
    held_scores = [_accuracy(each, train_labels[held]) for each in scores(train[held])]
    best = max(range(len(held_scores)), key=held_scores.__getitem__)
    return {
        "accuracy": _accuracy(scores(test)[best], test_labels),
        "validation_accuracy": held_scores[best],
        "learning_rate": learning_rates[best],
        "by_learning_rate": dict(zip(learning_rates, held_scores, strict=True)),
    }
