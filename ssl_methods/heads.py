"""Projectors and predictors: small perceptrons behind a backbone, discarded after pre-training."""

from collections.abc import Sequence

from torch import nn


def perceptron(
    widths: Sequence[int], *, hidden_norm: bool, last_norm: bool, hidden_bias: bool, last_bias: bool
) -> nn.Sequential:
    """Linear layers with ReLU between them.

    Args:
        widths: of the input, each hidden layer, and the output.
        hidden_norm: batch normalization before each ReLU.
        last_norm: batch normalization without scale and shift behind the last layer.
        hidden_bias, last_bias: whether the linear layers have a bias.

    Returns: (batch, widths[0]) -> (batch, widths[-1]).
    """
    layers: list[nn.Module] = []
    for index in range(len(widths) - 1):
        last = index == len(widths) - 2
        layers.append(nn.Linear(widths[index], widths[index + 1], bias=last_bias if last else hidden_bias))
        if last and last_norm:
            layers.append(nn.BatchNorm1d(widths[index + 1], affine=False))
        elif not last:
            layers += [nn.BatchNorm1d(widths[index + 1])] if hidden_norm else []
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
