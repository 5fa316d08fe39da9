"""Ranking and re-ranking: cosine similarity ranks all candidates, and matching scores reorder the first k of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ..gathering import rank, world_size
from ..losses import full_precision
from .mode import failing_together
from .recall import CUTOFFS, ranks_from_scores, reranked_ranks
from .retrieval_features import ImageFeatures, TextFeatures, gather_shards, progress_bar, shard

SIMILARITIES_AT_ONCE = 2**24  # 64 MiB of float32
PAIRS_AT_ONCE = 256
# Texts are fused with others of nearly their length; a batch smaller than this is not worth the padding it saves.
BUCKET_TOKENS, BUCKET_PAIRS = 4, 16


@dataclass
class Ranking:
    """The candidates of every query of one direction, best first. All tensors are on the CPU.

    Args:
        ranks: (queries,) wrong candidates ahead of the best right one; -1 for a query without a right answer.
        candidates: (queries, kept) the first candidates.
        scores: (queries, kept) their scores.
    """

    ranks: torch.Tensor
    candidates: torch.Tensor
    scores: torch.Tensor


def rank_by_similarity(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    query_groups: torch.Tensor,
    candidate_groups: torch.Tensor,
    k: int,
) -> Ranking:
    """Rank all candidates of every query by cosine similarity. Each rank does its shard of the queries, in blocks.

    Args:
        queries: unit vectors (queries, projection_dim).
        candidates: unit vectors (candidates, projection_dim).
        query_groups, candidate_groups: (queries,) and (candidates,) group codes.
        k: how many candidates of each query will be re-ranked.
    """
    device = queries.device
    kept = min(max(k + 1, *CUTOFFS), len(candidates))  # one more than k, to see whether it ties with them
    local = torch.tensor(shard(len(queries), rank()), dtype=torch.int64)
    ranks = torch.empty(len(local), dtype=torch.int64, device=device)
    best = torch.empty(len(local), kept, dtype=torch.int64, device=device)
    scores = torch.empty(len(local), kept, dtype=queries.dtype, device=device)
    rows_at_once = max(1, SIMILARITIES_AT_ONCE // len(candidates))
    query_groups, candidate_groups = query_groups.to(device), candidate_groups.to(device)
    for start in range(0, len(local), rows_at_once):
        block = slice(start, start + rows_at_once)
        rows = local[block].to(device)
        similarity = queries[rows] @ candidates.T
        ranks[block] = ranks_from_scores(similarity, query_groups[rows], candidate_groups)
        scores[block], best[block] = similarity.topk(kept, dim=1)
    return Ranking(*(gather_shards(table, len(queries)).cpu() for table in (ranks, best, scores)))


def length_batches(lengths: torch.Tensor) -> Iterator[slice]:
    """Batches, as slices, of texts whose lengths (texts,) ascend.

    A batch has at most `PAIRS_AT_ONCE` texts. Their lengths differ by less than `BUCKET_TOKENS`, except where the
    batch would have fewer than `BUCKET_PAIRS` texts.
    """
    start = 0
    values = lengths.tolist()
    for position in range(1, len(values) + 1):
        size = position - start
        too_long = position < len(values) and values[position] >= values[start] + BUCKET_TOKENS
        if position == len(values) or size == PAIRS_AT_ONCE or (too_long and size >= BUCKET_PAIRS):
            yield slice(start, position)
            start = position


def match_image(model: Any, tokens: torch.Tensor, texts: TextFeatures, wanted: torch.Tensor) -> torch.Tensor:
    """Matching logits (class 1) of one image with some texts: (n,), on the CPU.

    Args:
        tokens: (1, tokens, width); they are projected once for all these texts.
        wanted: (n,) rows of `texts`.
    """
    by_length = texts.lengths[wanted].argsort(stable=True)
    keys_values = model.project_image_tokens(tokens)
    logits = []
    for batch in length_batches(texts.lengths[wanted[by_length]]):
        rows = wanted[by_length[batch]]
        states, attention_mask = texts.states(rows)
        expanded = [
            (key.expand(len(rows), -1, -1, -1), value.expand(len(rows), -1, -1, -1)) for key, value in keys_values
        ]
        logits.append(model.matching_logits(states, attention_mask, expanded)[:, 1])
    ordered = full_precision(torch.cat(logits)).cpu()
    return torch.empty_like(ordered).index_copy_(0, by_length, ordered)


def match_shortlists(
    model: nn.Module,
    images: ImageFeatures,
    texts: TextFeatures,
    image_shortlists: torch.Tensor,
    text_shortlists: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Matching logits (class 1) of the shortlisted pairs, of the same shapes as the shortlists.

    Each rank scores the pairs of its own images, for both directions; a pair in both is scored once.

    Args:
        image_shortlists: (images, k) texts for each image.
        text_shortlists: (texts, k) images for each text.
    """
    device = texts.device
    dtype = images.features.dtype
    image_scores = torch.zeros(image_shortlists.shape, dtype=dtype)
    text_scores = torch.zeros(text_shortlists.shape, dtype=dtype)
    # Image i stands at positions[starts[i] : starts[i + 1]] of the flattened shortlists of the texts.
    flat = text_shortlists.flatten()
    positions = flat.argsort(stable=True)
    starts = torch.searchsorted(flat[positions], torch.arange(len(image_shortlists) + 1))
    with failing_together(), progress_bar(len(images.rows), "re-ranking") as bar:
        for image, tokens in images.tokens():
            in_texts = positions[starts[image] : starts[image + 1]]
            asking_texts = in_texts // text_shortlists.shape[1]
            wanted = torch.cat([image_shortlists[image], asking_texts]).unique()
            score_of = torch.full((int(wanted[-1]) + 1,), float("nan"), dtype=dtype)
            score_of[wanted] = match_image(model, tokens, texts, wanted)
            image_scores[image] = score_of[image_shortlists[image]]
            text_scores.view(-1)[in_texts] = score_of[asking_texts]
            bar.update(1)
    if world_size() == 1:
        return image_scores, text_scores
    # A rank has scored all pairs of its images. In the rows of the texts, pairs of other images are zero.
    text_scores = text_scores.to(device)
    dist.all_reduce(text_scores)
    local_scores = image_scores[images.rows.start : images.rows.stop].to(device)
    return gather_shards(local_scores, len(image_shortlists)).cpu(), text_scores.cpu()


def rerank(
    ranking: Ranking, scores: torch.Tensor, query_groups: torch.Tensor, candidate_groups: torch.Tensor
) -> Ranking:
    """Order the first k candidates by new scores (queries, k). The others stay behind them, in their old order."""
    k = scores.shape[1]
    shortlist = ranking.candidates[:, :k]
    relevant = candidate_groups[shortlist] == query_groups[:, None]
    admitted = torch.ones_like(relevant)
    if ranking.scores.shape[1] > k:
        admitted = ranking.scores[:, :k] > ranking.scores[:, k : k + 1]
    ordered, order = scores.sort(dim=1, descending=True, stable=True)
    behind = torch.full_like(ranking.scores[:, k:], float("nan"))
    return Ranking(
        ranks=reranked_ranks(scores, ranking.ranks, relevant, admitted),
        candidates=torch.cat([shortlist.gather(1, order), ranking.candidates[:, k:]], dim=1),
        scores=torch.cat([ordered, behind], dim=1),
    )
