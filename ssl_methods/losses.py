"""The losses of the image-only methods as pure functions of tensors. Gathering over ranks is the caller's business."""

import torch
from torch import nn

from albef_hf.losses import unit_vectors


def queue_contrastive_loss(
    queries: torch.Tensor, keys: torch.Tensor, queue: torch.Tensor, temperature: float
) -> torch.Tensor:
    """InfoNCE of each query against its own key and the keys of earlier batches (MoCo, equation 1).

    queries, keys: (batch, dim) unit vectors, row i of both from one image; queue: (size, dim), without these keys.
    Returns: scalar, ln(size + 1) where all similarities are equal.
    """
    positive = (queries * keys).sum(1, keepdim=True)
    logits = torch.cat([positive, queries @ queue.T], dim=1) / temperature
    return nn.functional.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))


def batch_contrastive_loss(
    queries: torch.Tensor, keys: torch.Tensor, temperature: float, first_row: int = 0
) -> torch.Tensor:
    """InfoNCE of each query against the keys of the whole batch, times 2 T (MoCo v3, section 3, algorithm 1).

    Args:
        queries: (batch, dim), of length 1.
        keys: (ranks * batch, dim), of length 1. The positive of query i is row `first_row` + i.

    Returns: scalar. 2 T ln(ranks * batch) where all similarities are equal.
    """
    labels = first_row + torch.arange(len(queries), device=queries.device)
    return nn.functional.cross_entropy(queries @ keys.T / temperature, labels) * (2 * temperature)


def byol_loss(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Squared distance of directions, 2 - 2 cos (BYOL, equation 2), in one direction.

    Args:
        predictions, targets: (batch, dim), of any length.

    Returns: scalar in [0, 4], 2 for orthogonal rows.
    """
    return (2 - 2 * (unit_vectors(predictions) * unit_vectors(targets)).sum(1)).mean()


def barlow_twins_loss(correlation: torch.Tensor, redundancy_weight: float) -> torch.Tensor:
    """Invariance and redundancy reduction (Barlow Twins, equation 1):
    sum_i (C_ii - 1)^2 + lambda sum_{i != j} C_ij^2.

    Args:
        correlation: (dim, dim), C of both views over the whole batch.
        redundancy_weight: lambda.

    Returns: scalar. 0 for the identity, `dim` for C = 0.
    """
    diagonal = correlation.diagonal()
    redundancy = correlation.square().sum() - diagonal.square().sum()
    return (diagonal - 1).square().sum() + redundancy_weight * redundancy
