"""ALBEF's losses as pure functions of tensors, and the precision they are computed in.

In all of these functions, labels of -100 are ignored. `teacher_logits` have the shape of `logits`; they come from the
momentum copies and should carry no gradient. `alpha` is the weight of the soft targets made from them, and has no
effect without them. Callers convert half precision to float32 first, and gather across ranks.
"""

import torch
from torch import nn

IGNORED = -100  # a label that is ignored, or an id that is unknown


def full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """To float32 at least: 16 bits are too few for similarities divided by 0.07 and for softmaxes over a queue."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def unit_vectors(vectors: torch.Tensor) -> torch.Tensor:
    """Normalize vectors (..., dim) to length one, in float32 at least."""
    return nn.functional.normalize(full_precision(vectors), dim=-1)


def without_autocast(tensor: torch.Tensor) -> torch.autocast:
    """A context without autocast on this tensor's device: operations keep the precision of their inputs."""
    return torch.autocast("cpu" if tensor.is_meta else tensor.device.type, enabled=False)


def distills(alpha: float | torch.Tensor) -> bool:
    """Whether soft targets of weight alpha are needed. For a tensor, always: its value is not read from the device."""
    return isinstance(alpha, torch.Tensor) or alpha > 0


@torch.no_grad()
def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The share of labels (...) whose logit is the largest of logits (..., classes)."""
    right = (logits.argmax(-1) == labels).sum()
    return right / (labels != IGNORED).sum().clamp(min=1)


def check_pairs(pixel_values: torch.Tensor | None, input_ids: torch.Tensor | None) -> None:
    """Raise a ValueError for images without texts, texts without images, or different numbers of them."""
    for name, tensor in (("pixel_values", pixel_values), ("input_ids", input_ids)):
        if tensor is None:
            raise ValueError(f"each image needs a text and each text an image, but {name} are missing")
    images, texts = len(pixel_values), len(input_ids)  # type: ignore[arg-type]
    if images != texts:
        raise ValueError(f"losses need pairs, but there are {images} images and {texts} texts")


def contrastive_loss(
    logits: torch.Tensor,
    positives: torch.Tensor,
    teacher_logits: torch.Tensor | None = None,
    alpha: float | torch.Tensor = 0.0,
    left_out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Image-text contrast in one direction with distilled targets (equations 1, 2 and 6), mean over the queries.

    Computed as logsumexp(s) - alpha * sum(q * s) - (1 - alpha) * sum(hard * s) for logits s and soft targets q. It
    differs from the paper's (1 - alpha) * L + alpha * KL by the teacher's entropy, a constant.

    Args:
        logits: (queries, keys), similarity divided by the temperature.
        positives: (queries,) column of the positive key, or (queries, keys) boolean: several share the hard target.
        left_out: (queries, keys) boolean, True where a key is neither positive nor negative.
    """
    finite = logits
    if left_out is not None:
        logits = logits.masked_fill(left_out, float("-inf"))
        finite = finite.masked_fill(left_out, 0.0)
        if teacher_logits is not None:
            teacher_logits = teacher_logits.masked_fill(left_out, float("-inf"))
    if positives.dtype == torch.bool:
        weights = positives.to(logits.dtype)
        hard = (finite * weights).sum(1) / weights.sum(1)
    else:
        hard = finite.gather(1, positives[:, None]).squeeze(1)
    loss = logits.logsumexp(1)
    if teacher_logits is None:
        return (loss - hard).mean()
    soft = (teacher_logits.softmax(1) * finite).sum(1)
    return (loss - alpha * soft - (1 - alpha) * hard).mean()


def distilled_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    teacher_logits: torch.Tensor | None = None,
    alpha: float | torch.Tensor = 0.0,
) -> torch.Tensor:
    """Cross-entropy with the targets  alpha * softmax(teacher_logits) + (1 - alpha) * one_hot(labels)  (equation 7).

    logits: (rows, classes); labels: (rows,). Returns: (rows,), 0 where the label is ignored.
    """
    hard = logits.gather(1, labels.clamp(min=0)[:, None]).squeeze(1)
    rows = logits.logsumexp(1) - (1 - alpha if teacher_logits is not None else 1.0) * hard
    if teacher_logits is not None:
        rows = rows - alpha * (teacher_logits.softmax(1) * logits).sum(1)
    return rows.masked_fill(labels == IGNORED, 0.0)


def mean_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    teacher_logits: torch.Tensor | None = None,
    alpha: float | torch.Tensor = 0.0,
    count: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean of `distilled_cross_entropy` over labeled rows, 0 without any. At masked positions this is masked language
    modeling (equation 3). count: what the sum is divided by; the number of labeled rows where left out."""
    if count is None:
        count = (labels != IGNORED).sum().to(logits.dtype)
    rows = distilled_cross_entropy(logits, labels, teacher_logits, alpha)
    return rows.sum() / torch.where(count > 0, count, 1)


def answer_losses(
    logits: torch.Tensor,
    labels: torch.Tensor,
    teacher_logits: torch.Tensor | None = None,
    alpha: float | torch.Tensor = 0.0,
) -> torch.Tensor:
    """Language modeling loss of each answer, summed over its tokens (section 5, "VQA"; published code).

    logits: (answers, tokens, vocabulary), which predict the labels (answers, tokens) at the same positions.
    Returns: (answers,).
    """
    soft = None if teacher_logits is None else teacher_logits.flatten(0, 1)
    rows = distilled_cross_entropy(logits.flatten(0, 1), labels.flatten(), soft, alpha)
    return rows.view_as(labels).sum(1)


def matching_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Image-text matching (equation 4), mean over labeled pairs, 0 without any.
    logits: (pairs, 2); labels: (pairs,), 1 is "match"."""
    total = nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def sample_hard_negatives(
    similarity: torch.Tensor, excluded: torch.Tensor, draws: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one negative for each query, with probability softmax(similarity) over what is not excluded (section 3.2).

    Excluded columns are masked *before* the softmax. The published code masks after it, which leaves nothing to draw
    from once the positive has all of the probability. Where similarities are not finite, the draw is uniform.

    similarity: (queries, candidates), divided by the temperature; excluded: of the same shape, True for candidates
    that must not be drawn; draws: (queries,) uniform in [0, 1), which determine the result on any number of ranks.
    Returns: (queries,) columns, and (queries,) boolean, False where all candidates are excluded: ignore that column.
    """
    allowed = ~excluded
    weights = similarity.detach().masked_fill(excluded, float("-inf"))
    weights = weights.to(torch.promote_types(weights.dtype, torch.float32)).softmax(1)
    usable = torch.isfinite(weights).all(1, keepdim=True)
    weights = torch.where(usable, weights, allowed.to(weights.dtype))
    cumulative = weights.cumsum(1)
    # A draw just below 1 must stay below the total after rounding.
    threshold = draws.to(weights.dtype)[:, None].clamp(max=1 - 1e-6) * cumulative[:, -1:]
    index = (cumulative <= threshold).sum(1).clamp(max=similarity.shape[1] - 1)
    return index, allowed.any(1)
