"""Exact search for the nearest vectors."""

import torch

from ..evaluation.retrieval_ranking import SIMILARITIES_AT_ONCE


def nearest(queries: torch.Tensor, features: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact search in blocks of bounded memory.

    Args:
        queries: unit vectors (queries, dim), float32.
        features: unit vectors (n, dim), float32 or float16; products are float32.

    Returns: similarities and positions in `features`, (queries, k) each, best first.
    """
    scores, positions = [], []
    columns = min(len(features), SIMILARITIES_AT_ONCE // 16)
    for block in queries.split(max(1, SIMILARITIES_AT_ONCE // columns)):
        best = torch.empty(len(block), 0, dtype=queries.dtype)
        where = torch.empty(len(block), 0, dtype=torch.int64)
        for start in range(0, len(features), columns):
            part = features[start : start + columns].to(queries.dtype)
            found, column = (block @ part.T).topk(min(k, len(part)), dim=1)
            best, order = torch.cat([best, found], dim=1).topk(min(k, best.shape[1] + found.shape[1]), dim=1)
            where = torch.cat([where, column + start], dim=1).gather(1, order)
        scores.append(best)
        positions.append(where)
    return torch.cat(scores), torch.cat(positions)
