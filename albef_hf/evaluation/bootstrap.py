"""Median ranks, and bootstrap intervals: how much a retrieval figure would vary on other data of the same kind."""

from collections.abc import Iterator

import numpy as np
import torch

from .recall import CUTOFFS, NO_RIGHT_ANSWER, named_metrics

WEIGHTS_AT_ONCE = 2**22


def median_rank(ranks: torch.Tensor) -> float:
    """The smallest rank, counted from 1, that at least half of the queries reach. Unanswerable ones are left out."""
    answerable = ranks[ranks != NO_RIGHT_ANSWER]
    return float(answerable.sort().values[(len(answerable) - 1) // 2] + 1)


def median_ranks(image_ranks: torch.Tensor, text_ranks: torch.Tensor) -> dict[str, float]:
    """`image_to_text_median_rank` and `text_to_image_median_rank`."""
    return {
        "image_to_text_median_rank": median_rank(image_ranks),
        "text_to_image_median_rank": median_rank(text_ranks),
    }


class _Queries:
    """The answerable queries of one direction, sorted by rank.

    Args:
        ranks: (queries,), counted from 0; -1 for an unanswerable query.
        groups: (queries,) codes from 0 to count - 1.
        count: how many groups there are.
    """

    def __init__(self, ranks: torch.Tensor, groups: torch.Tensor, count: int) -> None:
        answerable = (ranks != NO_RIGHT_ANSWER).numpy()
        values, codes = ranks.numpy()[answerable], groups.numpy()[answerable]
        order = values.argsort(kind="stable")
        self.ranks, self.groups = values[order], codes[order]
        self.sizes = np.bincount(codes, minlength=count).astype(np.float64)
        self.hits = {
            cutoff: np.bincount(codes, weights=values < cutoff, minlength=count).astype(np.float64)
            for cutoff in CUTOFFS
        }

    def recalls(self, weights: np.ndarray) -> dict[int, np.ndarray]:
        """weights (samples, groups) -> recall at each cutoff (samples,)."""
        return {cutoff: (weights @ hits) / (weights @ self.sizes) for cutoff, hits in self.hits.items()}

    def medians(self, weights: np.ndarray) -> np.ndarray:
        """weights (samples, groups) -> median rank, counted from 1 (samples,)."""
        reached = weights[:, self.groups].cumsum(axis=1)
        return self.ranks[(2 * reached >= reached[:, -1:]).argmax(axis=1)] + 1.0


def _draws(generator: np.random.Generator, groups: int, samples: int, at_once: int) -> Iterator[np.ndarray]:
    """How often each group was drawn in each sample: blocks of (samples, groups)."""
    for start in range(0, samples, at_once):
        size = min(at_once, samples - start)
        drawn = generator.integers(groups, size=(size, groups)) + groups * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * groups).reshape(size, groups)


def bootstrap_intervals(
    image_ranks: torch.Tensor,
    text_ranks: torch.Tensor,
    image_groups: torch.Tensor,
    text_groups: torch.Tensor,
    *,
    samples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the recalls, their mean and the median ranks.

    Groups are drawn with replacement, that is an image together with all its captions, for both directions at once:
    captions of one image succeed and fail together, so drawing them one by one would make the intervals too narrow.
    The queries are drawn; the candidates of each query stay the same.

    Args:
        image_ranks, text_ranks: (images,) and (texts,), counted from 0; -1 for a query without a right answer.
        image_groups, text_groups: (images,) and (texts,) group codes.
        samples: how many times to draw.
        level: share of the draws inside the interval.
        seed: of the draws.

    Returns: lower and upper end, under the names of `recall_metrics` and `median_ranks`.

    Raises:
        ValueError: fewer than one sample, or a level that is not between 0 and 1.
    """
    if samples < 1 or not 0 < level < 1:
        raise ValueError(f"bootstrap needs samples >= 1 and 0 < level < 1, not {samples} and {level}")
    used = torch.cat([image_groups[image_ranks != NO_RIGHT_ANSWER], text_groups[text_ranks != NO_RIGHT_ANSWER]])
    present, codes = torch.cat([used, image_groups, text_groups]).unique(return_inverse=True)
    # Groups are renumbered so that those with an answerable query come first; the others are not drawn.
    dense = torch.full((len(present),), -1)
    answerable = codes[: len(used)].unique()
    dense[answerable] = torch.arange(len(answerable))
    image_codes, text_codes = dense[codes[len(used) :]].split([len(image_groups), len(text_groups)])
    count = len(answerable)
    images, texts = _Queries(image_ranks, image_codes, count), _Queries(text_ranks, text_codes, count)
    values: dict[str, list[np.ndarray]] = {}
    at_once = max(1, WEIGHTS_AT_ONCE // max(count, len(text_ranks), len(image_ranks)))
    for weights in _draws(np.random.default_rng(seed), count, samples, at_once):
        found = named_metrics(images.recalls(weights), texts.recalls(weights))  # type: ignore[arg-type]
        found["image_to_text_median_rank"] = images.medians(weights)  # type: ignore[assignment]
        found["text_to_image_median_rank"] = texts.medians(weights)  # type: ignore[assignment]
        for name, value in found.items():
            values.setdefault(name, []).append(np.asarray(value))
    ends = [50 * (1 - level), 50 * (1 + level)]
    return {
        name: tuple(float(end) for end in np.percentile(np.concatenate(drawn), ends))  # type: ignore[misc]
        for name, drawn in values.items()
    }
