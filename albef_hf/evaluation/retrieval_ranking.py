"""The two stages of retrieval: contrastive scores rank all candidates, matching scores re-rank the first k."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ..gathering import rank, world_size
from .recall import CUTOFFS, ranks_from_scores, reranked_ranks
from .retrieval_features import ImageSide, TextSide, full_precision, gather_shares, progress_bar, share

SIMILARITIES_AT_ONCE = 2**24  # 64 MiB of float32
PAIRS_AT_ONCE = 256
# Texts are fused with others of nearly their length; a batch smaller than this is not worth the padding it saves.
BUCKET_TOKENS, BUCKET_PAIRS = 4, 16


@dataclass
class Direction:
    """One direction. ranks (queries,); candidates and scores (queries, kept), best first. All on the CPU."""

    ranks: torch.Tensor
    candidates: torch.Tensor
    scores: torch.Tensor


def contrast(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    query_groups: torch.Tensor,
    candidate_groups: torch.Tensor,
    k: int,
) -> Direction:
    """Rank all candidates by similarity: this rank's queries, a block of rows at a time, then everybody's.

    Args:
        queries: unit vectors (queries, projection_dim).
        candidates: unit vectors (candidates, projection_dim).
        k: how many candidates the next stage needs.
    """
    device = queries.device
    kept = min(max(k + 1, *CUTOFFS), len(candidates))  # one more than re-ranked, to see whether it ties with them
    own = torch.tensor(share(len(queries), rank()), dtype=torch.int64)
    ranks = torch.empty(len(own), dtype=torch.int64, device=device)
    best = torch.empty(len(own), kept, dtype=torch.int64, device=device)
    scores = torch.empty(len(own), kept, dtype=queries.dtype, device=device)
    rows_at_once = max(1, SIMILARITIES_AT_ONCE // len(candidates))
    query_groups, candidate_groups = query_groups.to(device), candidate_groups.to(device)
    for start in range(0, len(own), rows_at_once):
        block = slice(start, start + rows_at_once)
        rows = own[block].to(device)
        similarity = queries[rows] @ candidates.T
        ranks[block] = ranks_from_scores(similarity, query_groups[rows], candidate_groups)
        scores[block], best[block] = similarity.topk(kept, dim=1)
    count = len(queries)
    return Direction(*(gather_shares(table, count).cpu() for table in (ranks, best, scores)))


def length_batches(lengths: torch.Tensor) -> Iterator[slice]:
    """Slices of ascending lengths (texts,): at most `PAIRS_AT_ONCE` texts that differ by less than `BUCKET_TOKENS`
    tokens, or more than that where they are fewer than `BUCKET_PAIRS`."""
    start = 0
    values = lengths.tolist()
    for position in range(1, len(values) + 1):
        size = position - start
        another = position < len(values) and values[position] >= values[start] + BUCKET_TOKENS
        if position == len(values) or size == PAIRS_AT_ONCE or (another and size >= BUCKET_PAIRS):
            yield slice(start, position)
            start = position


def match_image(model: Any, tokens: torch.Tensor, texts: TextSide, wanted: torch.Tensor) -> torch.Tensor:
    """Matching logits (class 1), on the CPU, of one image with some texts.

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
        shared = [
            (key.expand(len(rows), -1, -1, -1), value.expand(len(rows), -1, -1, -1)) for key, value in keys_values
        ]
        logits.append(model.matching_logits(states, attention_mask, shared)[:, 1])
    ordered = full_precision(torch.cat(logits)).cpu()
    return torch.empty_like(ordered).index_copy_(0, by_length, ordered)


def match(
    model: nn.Module, images: ImageSide, texts: TextSide, image_shortlist: torch.Tensor, text_shortlist: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Matching logits (class 1) of the shortlisted pairs, of the same shapes as the shortlists.

    Args:
        image_shortlist: (images, k) texts for each image.
        text_shortlist: (texts, k) images for each text.
    """
    device = texts.device
    own = images.own
    dtype = images.features.dtype
    image_scores = torch.zeros(image_shortlist.shape, dtype=dtype)
    text_scores = torch.zeros(text_shortlist.shape, dtype=dtype)
    # Where each image stands in the texts' shortlists: places[starts[i] : starts[i + 1]] of the flattened table.
    flat = text_shortlist.flatten()
    places = flat.argsort(stable=True)
    starts = torch.searchsorted(flat[places], torch.arange(len(image_shortlist) + 1))
    with progress_bar(len(own), "re-ranking") as bar:
        for image, tokens in images.tokens():
            asking = places[starts[image] : starts[image + 1]]
            asking_texts = asking // text_shortlist.shape[1]
            wanted = torch.cat([image_shortlist[image], asking_texts]).unique()
            score_of = torch.full((int(wanted[-1]) + 1,), float("nan"), dtype=dtype)
            score_of[wanted] = match_image(model, tokens, texts, wanted)
            image_scores[image] = score_of[image_shortlist[image]]
            text_scores.view(-1)[asking] = score_of[asking_texts]
            bar.update(1)
    if world_size() == 1:
        return image_scores, text_scores
    # A rank has the rows of its images, and of each text's row the places of its images: all others are zero.
    text_scores = text_scores.to(device)
    dist.all_reduce(text_scores)
    own_scores = image_scores[own.start : own.stop].to(device)
    return gather_shares(own_scores, len(image_shortlist)).cpu(), text_scores.cpu()


def rerank(
    side: Direction, scores: torch.Tensor, query_groups: torch.Tensor, candidate_groups: torch.Tensor
) -> Direction:
    """The first k candidates in the order of new scores (queries, k); the others stay behind them, in their order."""
    k = scores.shape[1]
    shortlist = side.candidates[:, :k]
    relevant = candidate_groups[shortlist] == query_groups[:, None]
    admitted = torch.ones_like(relevant)
    if side.scores.shape[1] > k:
        admitted = side.scores[:, :k] > side.scores[:, k : k + 1]
    ordered, order = scores.sort(dim=1, descending=True, stable=True)
    behind = torch.full_like(side.scores[:, k:], float("nan"))
    return Direction(
        ranks=reranked_ranks(scores, side.ranks, relevant, admitted),
        candidates=torch.cat([shortlist.gather(1, order), side.candidates[:, k:]], dim=1),
        scores=torch.cat([ordered, behind], dim=1),
    )
