"""Boxes: their overlap, and which box a heat map points to.

A box is (x, y, width, height) in pixels; the origin is the upper left corner of the image.
"""

from collections.abc import Sequence

import numpy as np
import torch

Box = Sequence[float] | np.ndarray


def check_box(box: Box, width: float, height: float, where: str) -> None:
    """Check a box of an image of this size. where: what the box is, for the error.

    Raises:
        ValueError: the box is not four numbers, has no area, or is not inside the image.
    """
    values = [float(value) for value in box]
    if len(values) != 4 or not np.isfinite(values).all():
        raise ValueError(f"{where}: a box is x, y, width and height, not {list(box)}")
    x, y, wide, high = values
    # Annotations are rounded, so half a pixel outside is allowed.
    if wide <= 0 or high <= 0 or x < -0.5 or y < -0.5 or x + wide > width + 0.5 or y + high > height + 0.5:
        raise ValueError(f"{where}: box {values} is not inside the image of {width} x {height} pixels")


def intersection_over_union(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (..., 4) and (..., 4), broadcast: (...). It is 0 where a box has no area."""
    a, b = np.asarray(boxes, dtype=np.float64), np.asarray(others, dtype=np.float64)
    overlap = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = overlap.clip(min=0).prod(-1)
    union = a[..., 2:].clip(min=0).prod(-1) + b[..., 2:].clip(min=0).prod(-1) - shared
    return np.divide(shared, union, out=np.zeros_like(union), where=union > 0)


def grounding_accuracy(predicted: np.ndarray, references: np.ndarray, threshold: float = 0.5) -> float:
    """The share of boxes whose intersection over union with their reference is at least `threshold`.

    Args:
        predicted, references: (samples, 4).

    Raises:
        ValueError: the shapes differ, or there are no boxes.
    """
    predicted, references = np.asarray(predicted), np.asarray(references)
    if predicted.shape != references.shape or predicted.ndim != 2 or predicted.shape[1] != 4 or not len(predicted):
        raise ValueError(f"boxes of shape {predicted.shape} do not fit references of shape {references.shape}")
    return float((intersection_over_union(predicted, references) >= threshold).mean())


def score_proposals(heat_map: np.ndarray, proposals: np.ndarray, exponent: float = 0.5) -> np.ndarray:
    """Score each proposal: the sum of its heat, divided by area ** exponent (published: 0.5).

    Args:
        heat_map: (height, width), of the image's size.
        proposals: (proposals, 4). Edges are rounded down to whole pixels, as published.
        exponent: 0 favors large boxes, 1 small ones.

    Returns: (proposals,).
    """
    height, width = heat_map.shape
    proposals = np.asarray(proposals, dtype=np.float64)
    sums = np.zeros((height + 1, width + 1))
    sums[1:, 1:] = heat_map.astype(np.float64).cumsum(0).cumsum(1)
    left, right = (edge.astype(int).clip(0, width) for edge in (proposals[:, 0], proposals[:, 0] + proposals[:, 2]))
    top, bottom = (edge.astype(int).clip(0, height) for edge in (proposals[:, 1], proposals[:, 1] + proposals[:, 3]))
    heat = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return heat / proposals[:, 2:].prod(-1) ** exponent


def hottest_region(heat_map: torch.Tensor, height: int, width: int, threshold: float = 0.5) -> np.ndarray:
    """The box that a heat map points to where there are no proposals.

    Patches with at least `threshold` of the greatest heat are hot. Of the regions of connected hot patches, the one
    that holds most heat is chosen. A map without any heat gives the whole image.

    Args:
        heat_map: (rows, columns) of patches.
        height, width: of the image, in pixels.

    Returns: (4,) the box around the region.
    """
    heat = heat_map.detach().double().cpu().numpy()
    hot = heat >= threshold * heat.max()
    rows, columns = heat.shape
    # Each hot patch takes the largest label among itself and its four neighbors until no label changes.
    labels = np.where(hot, np.arange(1, heat.size + 1).reshape(heat.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        spread = np.max(
            [padded[1:-1, 1:-1], padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]], 0
        )
        spread = np.where(hot, spread, 0)
        if (spread == labels).all():
            break
        labels = spread
    held = np.bincount(labels.ravel(), weights=heat.ravel())
    regions = np.unique(labels[hot])
    y, x = np.nonzero(labels == regions[held[regions].argmax()])
    top, left, bottom, right = y.min() / rows, x.min() / columns, (y.max() + 1) / rows, (x.max() + 1) / columns
    return np.array([left * width, top * height, (right - left) * width, (bottom - top) * height])


def random_box_accuracy(proposals: Sequence[np.ndarray], references: np.ndarray, threshold: float = 0.5) -> float:
    """The expected accuracy of choosing a proposal at random: the mean share of proposals that are right.

    Args:
        proposals: for each sample (proposals, 4).
        references: (samples, 4).
    """
    shares = [
        float((intersection_over_union(each, reference) >= threshold).mean())
        for each, reference in zip(proposals, references, strict=True)
    ]
    return float(np.mean(shares))


def center_box(width: float, height: float, proposals: np.ndarray | None = None) -> np.ndarray:
    """The proposal whose center is nearest to that of the image; without proposals, the middle half of each side."""
    if proposals is None or not len(proposals):
        return np.array([width / 4, height / 4, width / 2, height / 2])
    proposals = np.asarray(proposals, dtype=np.float64)
    centers = proposals[:, :2] + proposals[:, 2:] / 2
    return proposals[((centers - [width / 2, height / 2]) ** 2).sum(1).argmin()]
