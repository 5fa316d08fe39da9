"""What tells a healthy run from a collapsed one without labels. All values are 0-d tensors on the device."""

import math

import torch

from albef_hf.gathering import norms_over_ranks
from albef_hf.losses import full_precision, unit_vectors
from albef_hf.momentum import own_parts


def projection_spread(projections: torch.Tensor) -> torch.Tensor:
    """Standard deviation of unit-length projections (batch, dim) per coordinate, times sqrt(dim): about 1 where they
    are spread over the whole sphere, 0 where all are equal (SimSiam, section 4.1)."""
    return unit_vectors(projections).std(0).mean() * math.sqrt(projections.shape[1])


def effective_rank(features: torch.Tensor) -> torch.Tensor:
    """exp of the entropy of the singular values (RankMe, equation 1): 1 .. min(rows, dim). features: (rows, dim).

    NaN where a feature is not finite, as in a step that will be skipped."""
    features = full_precision(features)
    values = torch.linalg.svdvals(features.nan_to_num(0.0, 0.0, 0.0))  # LAPACK refuses what is not finite
    shares = values / values.sum().clamp(min=1e-12) + 1e-7
    return torch.where(torch.isfinite(features).all(), (-(shares * shares.log()).sum()).exp(), torch.nan)


def uniformity(projections: torch.Tensor) -> torch.Tensor:
    """log of the mean of exp(-2 ||a - b||^2) over all pairs of projections (batch, dim): 0 where all are equal, about
    -4 on a sphere of many dimensions (Wang and Isola 2020, section 4.1)."""
    rows = unit_vectors(projections)
    others = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    return torch.exp(4 * (rows @ rows.T) - 4).masked_fill(~others, 0).sum().div(others.sum()).log()


def pair_statistics(queries: torch.Tensor, keys: torch.Tensor) -> dict[str, torch.Tensor]:
    """Mean cosines of positive and negative pairs, mean squared distance of positives (2 - 2 cos), share of queries
    whose nearest key is their own. queries, keys: (batch, dim); row i of both comes from one image."""
    similarity = unit_vectors(queries) @ unit_vectors(keys).T
    n, own = len(similarity), similarity.diagonal()
    # Where all keys are equal every key is a nearest one: a right answer must be alone.
    alone = (similarity >= own[:, None]).sum(1) == 1
    return {
        "positive_similarity": own.mean(),
        "negative_similarity": (similarity.sum() - own.sum()) / max(1, n * (n - 1)),
        "alignment": 2 - 2 * own.mean(),
        "contrastive_accuracy": alone.float().mean(),
    }


def momentum_drift(copies: list[torch.Tensor], originals: list[torch.Tensor]) -> torch.Tensor:
    """Length of the difference of all parameters over the length of the originals: 0 for a copy that is equal."""
    norms = norms_over_ranks if hasattr(originals[0], "placements") else torch._foreach_norm
    copies, originals = own_parts(copies), own_parts(originals)
    difference = torch.stack(norms(torch._foreach_sub(copies, originals))).norm()
    return difference / torch.stack(norms(originals)).norm().clamp(min=1e-12)
