"""Zero-shot image-text retrieval in both directions: contrastive scores, then matching scores for the best k.

The two stages are the published evaluation (paper section 6, "Image-Text Retrieval"; released `Retrieval.py`): cosine
similarity ranks all candidates, and the matching logit of class 1 gives the first k of each query a new order. What is
computed is the same; how often is not:

- ranks share the work: each encodes its slice of images and texts once, and scores the pairs of its own images, so
  image tokens never travel;
- an image's keys and values are projected once, for all texts it meets in either direction, and a pair that both
  directions ask for is scored once;
- texts are fused in batches of nearly equal length, so that little padding is computed;
- several k cost as much as the largest of them;
- similarities exist in blocks of rows only, and token states are kept only while they fit `token_memory`, beyond it
  in files of `token_folder`.

Everything runs in the dtype of the model's weights, outside autocast: 16-bit logits tie, and ties count as wrong.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from .recall import CUTOFFS, chance_metrics, check_groups, group_codes, recall_metrics
from .retrieval_features import ImageSide, TextSide, TokenStorage
from .retrieval_ranking import Direction, contrast, match, rerank

TOKEN_MEMORY = 2**30
RERANKED = "reranked_"
SCORES = ("matching", "sum", "contrastive")

Value = TypeVar("Value")


@dataclass
class RetrievalResult:
    """What an evaluation found. Recalls are fractions.

    Args:
        name: of the evaluated data.
        images, texts: how many there were.
        k: candidates of each query that were re-ranked, the largest of a sweep; 0 for none.
        metrics: `image_to_text_r1` ... `mean_recall` by contrastive score, and with k > 0 the same under `reranked_`.
        chance: the expectation of each metric for a random order.
        image_to_text: (images, 10) the first texts of each image, best first, after the last stage; fewer columns
            where there are fewer texts.
        text_to_image: (texts, 10) likewise.
        image_to_text_scores, text_to_image_scores: their scores in the last stage, cosine similarity or matching
            logit; not a number for candidates that were not re-ranked.
        image_ranks, text_ranks: (images,) and (texts,) wrong candidates ahead of the best right one after the last
            stage; -1 for a query without a right answer, which the metrics leave out.
        score: what the first k were re-ranked by, see `evaluate_retrieval`.
        median_ranks: `image_to_text_median_rank` and `text_to_image_median_rank`, 1 being the best, and with k > 0 the
            same under `reranked_`.
        intervals: lower and upper end for each name of `metrics` and `median_ranks`; empty without a bootstrap.
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

    def to_json(self) -> str:
        """One JSON object; `null` stands for a score that does not exist."""
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
        """The inverse of `to_json` (scores were rounded to six places)."""
        values = json.loads(text)
        for each in fields(cls):
            if each.type is np.ndarray:
                kind = np.float32 if each.name.endswith("scores") else np.int64
                values[each.name] = np.array(values[each.name], dtype=kind)
        values["intervals"] = {name: tuple(ends) for name, ends in values.get("intervals", {}).items()}
        values["sweep"] = {int(k): metrics for k, metrics in values.get("sweep", {}).items()}
        return cls(**values)


def check_candidates(k: int | Sequence[int], images: int, texts: int) -> list[int]:
    """The numbers of candidates to re-rank, ascending; empty for none.

    Raises:
        ValueError: one that is negative, or larger than a gallery.
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
    """Retrieve texts with images and images with texts. Every rank gets the whole result.

    The model's training mode is put back afterwards, and no random number is drawn from a shared generator.

    Args:
        model: has `get_image_features` and `get_text_features`; for k > 0 also `project_image_tokens` and
            `matching_logits`.
        k: how many candidates of each query to re-rank; 0 for contrastive scores alone; several, such as [16, 64], for
            all of them in one pass, of which the largest is the result's last stage.
        score: `matching` re-ranks by the matching logit (published), `sum` by that logit plus the cosine similarity
            (BLIP, LAVIS), `contrastive` does not re-rank, whatever k.
        batch_size: images, and texts, encoded at a time.
        accelerator: places the model and knows its wrapper; without one the model stays where it is.
        max_length: tokens of a text.
        workers: processes that decode images; 0 decodes in this one.
        token_memory: bytes that token states of images, and of texts, may each take on a rank. What would take more is
            encoded again when it is needed; the result is the same.
        token_dtype: what token states are kept in between the stages, such as `torch.float16`: half the memory, and
            matching logits that differ in the third digit.
        token_folder: where files of this rank may hold token states that exceed `token_memory`, so that nothing is
            encoded again; the files have no name and go when the evaluation ends.
        bootstrap: draws for 95 % intervals of the last stage and the first, see `bootstrap_intervals`; 0 for none.
        seed: of these draws.

    Raises:
        ValueError: no text belongs to any image, k larger than a gallery, another number out of range, an unknown
            score, k > 0 for a model without a matching head, or a `token_folder` without room.
    """
    if accelerator is not None:
        model = accelerator.unwrap_model(model)
    if score not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, not {score!r}")
    check_groups(data.image_groups, data.text_groups)
    ks = check_candidates(k, len(data.image_groups), len(data.text_groups)) if score != "contrastive" else []
    k = max(ks, default=0)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if bootstrap < 0:
        raise ValueError(f"bootstrap is the number of draws, 0 or more, not {bootstrap}")
    if k > 0 and not hasattr(model, "matching_logits"):
        raise ValueError(f"{type(model).__name__} has no matching head to re-rank with: use k=0 instead of {k}")
    image_groups, text_groups = group_codes(data.image_groups, data.text_groups)
    folder = None if token_folder is None else Path(token_folder)
    storage = TokenStorage(token_memory, token_dtype, folder) if k > 0 else None

    with evaluation_mode(model), torch.inference_mode():
        images = ImageSide(model, processor, data.images, batch_size, workers, storage)
        texts = TextSide(model, processor, data.texts, batch_size, max_length, storage)
        image_side = contrast(images.features, texts.features, image_groups, text_groups, k)
        text_side = contrast(texts.features, images.features, text_groups, image_groups, k)
        stages = {"": (image_side, text_side)}
        sweep: dict[int, dict[str, float]] = {}
        if k > 0:
            shortlists = (image_side.candidates[:, :k], text_side.candidates[:, :k])
            image_scores, text_scores = match(model, images, texts, *shortlists)
            if score == "sum":
                image_scores += image_side.scores[:, :k]
                text_scores += text_side.scores[:, :k]
            for each in ks:
                stages[RERANKED] = (
                    rerank(image_side, image_scores[:, :each], image_groups, text_groups),
                    rerank(text_side, text_scores[:, :each], text_groups, image_groups),
                )
                sweep[each] = _metrics(*stages[RERANKED]) | _medians(*stages[RERANKED])
            image_side, text_side = stages[RERANKED]

    chance = chance_metrics(image_groups, text_groups)
    chances: dict[str, float] = {}
    metrics: dict[str, float] = {}
    medians: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for prefix, sides in stages.items():
        chances |= _prefixed(prefix, chance)
        metrics |= _prefixed(prefix, _metrics(*sides))
        medians |= _prefixed(prefix, _medians(*sides))
        if bootstrap:
            ranks = sides[0].ranks, sides[1].ranks
            found = bootstrap_intervals(*ranks, image_groups, text_groups, samples=bootstrap, seed=seed)
            intervals |= _prefixed(prefix, found)
    shown = max(CUTOFFS)
    return RetrievalResult(
        name=data.name,
        images=len(image_groups),
        texts=len(text_groups),
        k=k,
        metrics=metrics,
        chance=chances,
        image_to_text=image_side.candidates[:, :shown].numpy(),
        text_to_image=text_side.candidates[:, :shown].numpy(),
        image_to_text_scores=image_side.scores[:, :shown].numpy(),
        text_to_image_scores=text_side.scores[:, :shown].numpy(),
        image_ranks=image_side.ranks.numpy(),
        text_ranks=text_side.ranks.numpy(),
        score=score,
        median_ranks=medians,
        intervals=intervals,
        sweep=sweep,
    )


def _metrics(image_side: Direction, text_side: Direction) -> dict[str, float]:
    return recall_metrics(image_side.ranks, text_side.ranks)


def _medians(image_side: Direction, text_side: Direction) -> dict[str, float]:
    return median_ranks(image_side.ranks, text_side.ranks)


def _prefixed(prefix: str, values: Mapping[str, Value]) -> dict[str, Value]:
    return {prefix + name: value for name, value in values.items()}


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, and afterwards each in the mode it had (a frozen part may differ)."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def read_result(path: Path) -> RetrievalResult:
    """A result that `to_json` wrote."""
    return RetrievalResult.from_json(path.read_text(encoding="utf-8"))
