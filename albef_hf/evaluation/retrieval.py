"""Image-text retrieval in both directions: contrastive scores, then matching scores for the best k.

The two steps are the published evaluation (paper section 6, "Image-Text Retrieval"; released `Retrieval.py`): cosine
similarity ranks all candidates, and the matching logit of class 1 gives the first k of each query a new order. The
scores are the same; the work is less:

- ranks share the work: each encodes its shard of the images and texts once and scores the pairs of its own images, so
  image tokens are never sent;
- the keys and values of an image are projected once for all its texts in both directions, and a pair that both
  directions ask for is scored once;
- texts are fused in batches of nearly equal length, so that there is little padding;
- several k cost as much as the largest of them;
- similarities exist in blocks of rows only; token states stay in memory while they fit into `token_memory`, and in
  files of `token_folder` otherwise.

Everything runs in the dtype of the model's weights, outside autocast: 16-bit logits would tie, and ties count as
wrong.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from ..data.retrieval import RetrievalData
from ..processing_albef import AlbefProcessor
from .bootstrap import bootstrap_intervals, median_ranks
from .mode import evaluation_mode
from .recall import CUTOFFS, chance_metrics, check_groups, group_codes, recall_metrics
from .retrieval_features import ImageFeatures, TextFeatures, TokenStorage
from .retrieval_ranking import Ranking, match_shortlists, rank_by_similarity, rerank

TOKEN_MEMORY = 2**30
RERANKED = "reranked_"
SCORES = ("matching", "sum", "contrastive")

Value = TypeVar("Value")
Groups = tuple[torch.Tensor, torch.Tensor]  # group codes of the images and of the texts


@dataclass
class RetrievalResult:
    """The result of a retrieval evaluation. Recalls are fractions.

    The final order of candidates is the re-ranked one where k > 0, and the contrastive one otherwise.

    Args:
        name: of the evaluated data.
        images, texts: how many there are.
        k: how many candidates of each query were re-ranked, the largest number of a sweep; 0 for none.
        metrics: `image_to_text_r1` ... `mean_recall` of the contrastive order; with k > 0 also of the re-ranked order,
            under names that begin with `reranked_`.
        chance: the expected value of each metric for a random order.
        image_to_text: (images, 10) the first texts of each image in the final order, best first; fewer columns where
            there are fewer texts.
        text_to_image: (texts, 10) the first images of each text, likewise.
        image_to_text_scores, text_to_image_scores: the scores of these in the final order, cosine similarity or
            matching logit; not a number for candidates that were not re-ranked.
        image_ranks, text_ranks: (images,) and (texts,) wrong candidates ahead of the best right one in the final
            order;
            -1 for a query without a right answer, which the metrics leave out.
        score: what the first k were re-ranked by, see `evaluate_retrieval`.
        median_ranks: `image_to_text_median_rank` and `text_to_image_median_rank`, where 1 is the best; with k > 0 also
            under names that begin with `reranked_`.
        intervals: lower and upper end for each name in `metrics` and `median_ranks`; empty without a bootstrap.
        sweep: for each k that was asked for, the metrics and median ranks after re-ranking, without `reranked_`.
    """

    name: str
    images: int
    texts: int
    k: int
    metrics: dict[str, float]
    chance: dict[str, float]
    image_to_text: np.ndarray
    text_to_image: np.ndarray
    image_to_text_scores: np.ndarray
    text_to_image_scores: np.ndarray
    image_ranks: np.ndarray
    text_ranks: np.ndarray
    score: str = "matching"
    median_ranks: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    sweep: dict[int, dict[str, float]] = field(default_factory=dict)

    @property
    def final_prefix(self) -> str:
        """What names begin with in `metrics` and `chance` for the final order."""
        return RERANKED if self.k > 0 else ""

    def to_json(self) -> str:
        """One JSON object. Scores are rounded to six places; `null` stands for a score that is not a number."""
        values = asdict(self)
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                values[name] = [
                    [round(score, 6) if np.isfinite(score) else None for score in row]
                    if name.endswith("scores")
                    else row
                    for row in value.tolist()
                ]
        return json.dumps(values, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "RetrievalResult":
        """Read what `to_json` wrote."""
        values = json.loads(text)
        for each in fields(cls):
            if each.type is np.ndarray:
                kind = np.float32 if each.name.endswith("scores") else np.int64
                values[each.name] = np.array(values[each.name], dtype=kind)
        values["intervals"] = {name: tuple(ends) for name, ends in values.get("intervals", {}).items()}
        values["sweep"] = {int(k): metrics for k, metrics in values.get("sweep", {}).items()}
        return cls(**values)


def check_candidates(k: int | Sequence[int], images: int, texts: int) -> list[int]:
    """The numbers of candidates to re-rank, ascending, without 0.

    Raises:
        ValueError: a number is negative or larger than a gallery.
    """
    ks = sorted({k} if isinstance(k, int) else set(k))
    if any(each < 0 for each in ks):
        raise ValueError(f"k is the number of candidates to re-rank, 0 or more, not {ks[0]}")
    smaller, what = min((images, "images"), (texts, "texts"))
    if ks and ks[-1] > smaller:
        raise ValueError(
            f"k = {ks[-1]} candidates of each query cannot be re-ranked: the gallery of {what} has {smaller}, so use "
            f"k <= {smaller}"
        )
    return [each for each in ks if each > 0]


def evaluate_retrieval(
    model: nn.Module,
    processor: AlbefProcessor,
    data: RetrievalData,
    *,
    k: int | Sequence[int] = 0,
    score: str = "matching",
    batch_size: int = 64,
    accelerator: Accelerator | None = None,
    max_length: int = 25,
    workers: int = 0,
    token_memory: int = TOKEN_MEMORY,
    token_dtype: torch.dtype | None = None,
    token_folder: str | Path | None = None,
    bootstrap: int = 0,
    seed: int = 0,
) -> RetrievalResult:
    """Retrieve texts with images, and images with texts. Every rank gets the whole result.

    Each module is put back into its training mode, and no random number is drawn from a shared generator.

    Args:
        model: has `get_image_features` and `get_text_features`; for k > 0 also `project_image_tokens` and
            `matching_logits`.
        k: how many candidates of each query to re-rank; 0 for none. A list such as [16, 64] re-ranks by each number in
            one pass, and the result's final order is that of the largest.
        score: `matching` re-ranks by the matching logit (published), `sum` by this logit plus the cosine similarity
            (BLIP, LAVIS), `contrastive` does not re-rank, whatever k.
        batch_size: how many images, or texts, are encoded at a time.
        accelerator: unwraps the model; the model stays on its device.
        max_length: longer texts are cut to this many tokens.
        workers: processes that decode images; 0: this process does it.
        token_memory: bytes that the token states of the images, and those of the texts, may each take on a rank. If
            they need more, they are computed again when needed; the result is the same.
        token_dtype: what token states are kept in, such as `torch.float16`: half the memory, and matching logits that
            differ in the third digit.
        token_folder: where files may hold token states that exceed `token_memory`, so that nothing is computed again.
            Each rank has its own; they have no name and vanish when the evaluation ends.
        bootstrap: number of draws for 95 % intervals, see `bootstrap_intervals`; 0 for no intervals.
        seed: of these draws.

    Raises:
        ValueError: no text belongs to any image, k is larger than a gallery, another number is out of range, the score
            is unknown, the model has no matching head though k > 0, or `token_folder` has no room.
    """
    model = model if accelerator is None else accelerator.unwrap_model(model)
    ks = _checked_candidates(model, data, k, score, batch_size, bootstrap)
    groups = group_codes(data.image_groups, data.text_groups)
    folder = None if token_folder is None else Path(token_folder)
    storage = TokenStorage(token_memory, token_dtype, folder) if ks else None
    with evaluation_mode(model), torch.inference_mode():
        images = ImageFeatures(model, processor, data.images, batch_size, workers, storage)
        texts = TextFeatures(model, processor, data.texts, batch_size, max_length, storage)
        contrastive = _rank(images, texts, groups, max(ks, default=0))
        reranked, sweep = _rerank(model, images, texts, contrastive, groups, ks, score) if ks else (None, {})
    rankings = {"": contrastive} if reranked is None else {"": contrastive, RERANKED: reranked}
    return _result(data.name, groups, rankings, sweep, score, bootstrap, seed)


@dataclass
class _Rankings:
    """Both directions: texts of every image, and images of every text."""

    image_to_text: Ranking
    text_to_image: Ranking

    def metrics(self) -> dict[str, float]:
        return recall_metrics(self.image_to_text.ranks, self.text_to_image.ranks)

    def median_ranks(self) -> dict[str, float]:
        return median_ranks(self.image_to_text.ranks, self.text_to_image.ranks)


def _checked_candidates(
    model: nn.Module, data: RetrievalData, k: int | Sequence[int], score: str, batch_size: int, bootstrap: int
) -> list[int]:
    """The numbers of candidates to re-rank, ascending; empty for none. Raises: see `evaluate_retrieval`."""
    if score not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, not {score!r}")
    check_groups(data.image_groups, data.text_groups)
    ks = check_candidates(k, len(data.image_groups), len(data.text_groups)) if score != "contrastive" else []
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if bootstrap < 0:
        raise ValueError(f"bootstrap is the number of draws, 0 or more, not {bootstrap}")
    if ks and not hasattr(model, "matching_logits"):
        raise ValueError(f"{type(model).__name__} has no matching head to re-rank with: use k=0 instead of {ks[-1]}")
    return ks


def _rank(images: ImageFeatures, texts: TextFeatures, groups: Groups, k: int) -> _Rankings:
    image_groups, text_groups = groups
    return _Rankings(
        rank_by_similarity(images.features, texts.features, image_groups, text_groups, k),
        rank_by_similarity(texts.features, images.features, text_groups, image_groups, k),
    )


def _rerank(
    model: nn.Module,
    images: ImageFeatures,
    texts: TextFeatures,
    contrastive: _Rankings,
    groups: Groups,
    ks: Sequence[int],
    score: str,
) -> tuple[_Rankings, dict[int, dict[str, float]]]:
    """The rankings after re-ranking the first k for the largest k, and metrics and median ranks for each k."""
    image_groups, text_groups = groups
    of_images, of_texts = contrastive.image_to_text, contrastive.text_to_image
    largest = ks[-1]
    shortlists = of_images.candidates[:, :largest], of_texts.candidates[:, :largest]
    image_scores, text_scores = match_shortlists(model, images, texts, *shortlists)
    if score == "sum":
        image_scores += of_images.scores[:, :largest]
        text_scores += of_texts.scores[:, :largest]
    sweep = {}
    for k in ks:
        reranked = _Rankings(
            rerank(of_images, image_scores[:, :k], image_groups, text_groups),
            rerank(of_texts, text_scores[:, :k], text_groups, image_groups),
        )
        sweep[k] = reranked.metrics() | reranked.median_ranks()
    return reranked, sweep


def _result(
    name: str,
    groups: Groups,
    rankings: Mapping[str, _Rankings],
    sweep: dict[int, dict[str, float]],
    score: str,
    bootstrap: int,
    seed: int,
) -> RetrievalResult:
    """rankings: by the prefix of their metrics; the last is the final one."""
    expected = chance_metrics(*groups)
    chance: dict[str, float] = {}
    metrics: dict[str, float] = {}
    medians: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for prefix, both in rankings.items():
        chance |= _prefixed(prefix, expected)
        metrics |= _prefixed(prefix, both.metrics())
        medians |= _prefixed(prefix, both.median_ranks())
        if bootstrap:
            ranks = both.image_to_text.ranks, both.text_to_image.ranks
            intervals |= _prefixed(prefix, bootstrap_intervals(*ranks, *groups, samples=bootstrap, seed=seed))
    final = list(rankings.values())[-1]
    shown = max(CUTOFFS)
    return RetrievalResult(
        name=name,
        images=len(groups[0]),
        texts=len(groups[1]),
        k=max(sweep, default=0),
        metrics=metrics,
        chance=chance,
        image_to_text=final.image_to_text.candidates[:, :shown].numpy(),
        text_to_image=final.text_to_image.candidates[:, :shown].numpy(),
        image_to_text_scores=final.image_to_text.scores[:, :shown].numpy(),
        text_to_image_scores=final.text_to_image.scores[:, :shown].numpy(),
        image_ranks=final.image_to_text.ranks.numpy(),
        text_ranks=final.text_to_image.ranks.numpy(),
        score=score,
        median_ranks=medians,
        intervals=intervals,
        sweep=sweep,
    )


def _prefixed(prefix: str, values: Mapping[str, Value]) -> dict[str, Value]:
    return {prefix + name: value for name, value in values.items()}


def read_result(path: Path) -> RetrievalResult:
    """The result in a file that holds what `to_json` wrote."""
    return RetrievalResult.from_json(path.read_text(encoding="utf-8"))
