"""Recall at K where a query may have several right answers: arithmetic on scores, without model or data.

Each *query* ranks all *candidates*. A candidate is right (relevant) if its group equals the query's group. The rank of
a query is the number of wrong candidates ahead of its best right one, so rank 0 is a hit at 1. A wrong candidate with
the same score as the best right one counts as ahead, and so does one whose score is not a number. A model that gives
every pair the same score, or that has diverged, therefore has recall 0.
"""

from collections.abc import Hashable, Mapping, Sequence

import torch

CUTOFFS = (1, 5, 10)
NO_RIGHT_ANSWER = -1


def group_codes(
    image_groups: Sequence[Hashable], text_groups: Sequence[Hashable]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Number the groups: int64 codes (images,) and (texts,), which are equal where the groups are equal."""
    codes: dict[Hashable, int] = {}
    numbered = [[codes.setdefault(group, len(codes)) for group in groups] for groups in (image_groups, text_groups)]
    return torch.tensor(numbered[0], dtype=torch.int64), torch.tensor(numbered[1], dtype=torch.int64)


def relevant_counts(query_groups: torch.Tensor, candidate_groups: torch.Tensor) -> torch.Tensor:
    """How many right candidates each query has: codes (queries,) and (candidates,) -> int64 (queries,)."""
    highest = int(torch.cat([query_groups, candidate_groups]).max()) + 1
    return torch.bincount(candidate_groups, minlength=highest)[query_groups]


def best_ranks(scores: torch.Tensor, relevant: torch.Tensor, admitted: torch.Tensor | None = None) -> torch.Tensor:
    """How many wrong candidates are ahead of the best right one: (queries,). Ties count as ahead.

    Args:
        scores: (queries, candidates), higher is better.
        relevant: bool, same shape: whether a candidate is right.
        admitted: bool, same shape. A right candidate that is not admitted is ignored. Left out, all are admitted.

    Returns: -1 for a query without a right, admitted candidate.
    """
    right = relevant if admitted is None else relevant & admitted
    best = scores.masked_fill(~right, float("-inf")).amax(dim=1, keepdim=True)
    # "not below" instead of "at or above", so that a score that is not a number is ahead too.
    ranks = (~(scores < best) & ~relevant).sum(dim=1)
    return ranks.masked_fill(~right.any(dim=1), NO_RIGHT_ANSWER)


def ranks_from_scores(
    scores: torch.Tensor, query_groups: torch.Tensor, candidate_groups: torch.Tensor
) -> torch.Tensor:
    """`best_ranks` of scores (queries, candidates) under group codes (queries,) and (candidates,)."""
    return best_ranks(scores, query_groups[:, None] == candidate_groups[None, :])


def reranked_ranks(
    matching: torch.Tensor, first_ranks: torch.Tensor, relevant: torch.Tensor, admitted: torch.Tensor
) -> torch.Tensor:
    """Ranks (queries,) after the shortlist of each query was re-ranked, ahead of all other candidates.

    Args:
        matching: (queries, k) the new scores of the shortlist.
        first_ranks: (queries,) ranks before. A query without a right, admitted candidate in its shortlist keeps its
            rank, since the same candidates stay ahead of its right ones.
        relevant: bool (queries, k), whether a candidate of the shortlist is right.
        admitted: bool (queries, k), whether its old score is above that of every candidate outside the shortlist. A
            right candidate shortlisted only through a tie does not count.
    """
    ranks = best_ranks(matching, relevant, admitted)
    return torch.where(ranks == NO_RIGHT_ANSWER, first_ranks, ranks)


def recall_from_ranks(ranks: torch.Tensor, cutoff: int) -> float:
    """The share of queries with a right answer among their first `cutoff`. Unanswerable queries are left out."""
    answerable = ranks[ranks != NO_RIGHT_ANSWER]
    return (answerable < cutoff).double().mean().item()


def chance_recall(counts: torch.Tensor, candidates: int, cutoff: int) -> float:
    """The expected recall of a random order: one minus the hypergeometric probability of `cutoff` wrong draws.

    Args:
        counts: (queries,) number of right answers of each query; queries without any are left out.
        candidates: how many candidates each query ranks.
    """
    answerable = counts[counts > 0].double()
    misses = torch.ones_like(answerable)
    for drawn in range(min(cutoff, candidates)):
        misses = misses * ((candidates - answerable - drawn) / (candidates - drawn)).clamp(min=0)
    return (1 - misses).mean().item()


def named_metrics(image_to_text: Mapping[int, float], text_to_image: Mapping[int, float]) -> dict[str, float]:
    """Recalls by cutoff of both directions -> `image_to_text_r1` ..., and their mean as `mean_recall`."""
    metrics = {f"image_to_text_r{cutoff}": value for cutoff, value in image_to_text.items()}
    metrics |= {f"text_to_image_r{cutoff}": value for cutoff, value in text_to_image.items()}
    return metrics | {"mean_recall": sum(metrics.values()) / len(metrics)}


def recall_metrics(image_ranks: torch.Tensor, text_ranks: torch.Tensor) -> dict[str, float]:
    """Recall at 1, 5 and 10, with images as queries and with texts as queries, and the mean of the six. Fractions."""
    return named_metrics(
        {cutoff: recall_from_ranks(image_ranks, cutoff) for cutoff in CUTOFFS},
        {cutoff: recall_from_ranks(text_ranks, cutoff) for cutoff in CUTOFFS},
    )


def chance_metrics(image_groups: torch.Tensor, text_groups: torch.Tensor) -> dict[str, float]:
    """The expected `recall_metrics` of random orders."""
    image_counts = relevant_counts(image_groups, text_groups)
    text_counts = relevant_counts(text_groups, image_groups)
    return named_metrics(
        {cutoff: chance_recall(image_counts, len(text_groups), cutoff) for cutoff in CUTOFFS},
        {cutoff: chance_recall(text_counts, len(image_groups), cutoff) for cutoff in CUTOFFS},
    )


def check_groups(image_groups: Sequence[Hashable], text_groups: Sequence[Hashable]) -> None:
    """Raises:
    ValueError: there are no images or no texts, or no text belongs to any image.
    """
    if not len(image_groups) or not len(text_groups):
        raise ValueError(f"retrieval needs images and texts, got {len(image_groups)} and {len(text_groups)}")
    if set(image_groups).isdisjoint(text_groups):
        raise ValueError(
            f"no text belongs to any image: image groups begin {list(image_groups[:3])!r}, "
            f"text groups begin {list(text_groups[:3])!r}"
        )


def recall_from_scores(
    scores: torch.Tensor, image_groups: Sequence[Hashable], text_groups: Sequence[Hashable]
) -> tuple[dict[str, float], dict[str, float]]:
    """`recall_metrics` of one score matrix, read in both directions, and `chance_metrics`.

    Args:
        scores: (images, texts), higher is better.
        image_groups, text_groups: the group of each image and of each text.

    Raises:
        ValueError: the matrix does not fit the groups, or no text belongs to any image.
    """
    check_groups(image_groups, text_groups)
    if tuple(scores.shape) != (len(image_groups), len(text_groups)):
        raise ValueError(
            f"scores of shape {tuple(scores.shape)} do not fit {len(image_groups)} images and {len(text_groups)} texts"
        )
    image_codes, text_codes = group_codes(image_groups, text_groups)
    metrics = recall_metrics(
        ranks_from_scores(scores, image_codes, text_codes), ranks_from_scores(scores.T, text_codes, image_codes)
    )
    return metrics, chance_metrics(image_codes, text_codes)
