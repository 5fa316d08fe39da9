"""Zero-shot image-text retrieval in both directions: contrastive scores, then matching scores for the best k.

The two stages are the published evaluation (paper section 6, "Image-Text Retrieval"; released `Retrieval.py`): cosine
similarity ranks all candidates, and the matching logit of class 1 gives the first k of each query a new order. What is
computed is the same; how often is not:

- ranks share the work: each encodes its slice of images and texts once, and scores the pairs of its own images, so
  image tokens never travel;
- an image's keys and values are projected once, for all texts it meets in either direction, and a pair that both
  directions ask for is scored once;
- similarities exist in blocks of rows only, and token states are kept only while they fit `token_memory`.

Everything runs in the dtype of the model's weights, outside autocast: 16-bit logits tie, and ties count as wrong.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ..data.images import decode_image
from ..data.retrieval import RetrievalData
from ..gathering import gather_rows, rank, world_size
from ..processing_albef import AlbefProcessor
from .recall import (
    CUTOFFS,
    chance_metrics,
    check_groups,
    group_codes,
    ranks_from_scores,
    recall_metrics,
    reranked_ranks,
)

SIMILARITIES_AT_ONCE = 2**24  # 64 MiB of float32
PAIRS_AT_ONCE = 256
TOKEN_MEMORY = 2**30
RERANKED = "reranked_"


@dataclass
class RetrievalResult:
    """What an evaluation found. Recalls are fractions.

    Args:
        name: of the evaluated data.
        images, texts: how many there were.
        k: candidates of each query that were re-ranked by matching; 0 for none.
        metrics: `image_to_text_r1` ... `mean_recall` by contrastive score, and with k > 0 the same under `reranked_`.
        chance: the expectation of each metric for a random order.
        image_to_text: (images, 10) the first texts of each image, best first, after the last stage; fewer columns
            where there are fewer texts.
        text_to_image: (texts, 10) likewise.
        image_to_text_scores, text_to_image_scores: their scores in the last stage, cosine similarity or matching
            logit; not a number for candidates that were not re-ranked.
        image_ranks, text_ranks: (images,) and (texts,) wrong candidates ahead of the best right one after the last
            stage; -1 for a query without a right answer, which the metrics leave out.
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
        for field in fields(cls):
            if field.type is np.ndarray:
                kind = np.float32 if field.name.endswith("scores") else np.int64
                values[field.name] = np.array(values[field.name], dtype=kind)
        return cls(**values)


def evaluate_retrieval(
    model: nn.Module,
    processor: AlbefProcessor,
    data: RetrievalData,
    *,
    k: int = 0,
    batch_size: int = 64,
    accelerator: Accelerator | None = None,
    max_length: int = 25,
    workers: int = 0,
    token_memory: int = TOKEN_MEMORY,
) -> RetrievalResult:
    """Retrieve texts with images and images with texts. Every rank gets the whole result.

    The model's training mode is put back afterwards, and no random number is drawn.

    Args:
        model: has `get_image_features` and `get_text_features`; for k > 0 also `project_image_tokens` and
            `matching_logits`.
        k: how many candidates of each query to re-rank; 0 for contrastive scores alone.
        batch_size: images, and texts, encoded at a time.
        accelerator: places the model and knows its wrapper; without one the model stays where it is.
        max_length: tokens of a text.
        workers: processes that decode images; 0 decodes in this one.
        token_memory: bytes that token states of images, and of texts, may each take on a rank. What would take more is
            encoded again when it is needed; the result is the same.

    Raises:
        ValueError: no text belongs to any image, k or batch_size out of range, or k > 0 for a model without a
            matching head.
    """
    if accelerator is not None:
        model = accelerator.unwrap_model(model)
    if k < 0:
        raise ValueError(f"k is the number of candidates to re-rank, 0 or more, not {k}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if k > 0 and not hasattr(model, "matching_logits"):
        raise ValueError(f"{type(model).__name__} has no matching head to re-rank with: use k=0 instead of {k}")
    check_groups(data.image_groups, data.text_groups)
    image_groups, text_groups = group_codes(data.image_groups, data.text_groups)

    with evaluation_mode(model), torch.inference_mode():
        images = _Images(model, processor, data.images, batch_size, workers, token_memory if k > 0 else 0)
        texts = Texts(model, processor, data.texts, batch_size, max_length, token_memory if k > 0 else 0)
        image_side = _contrast(images.features, texts.features, image_groups, text_groups, k)
        text_side = _contrast(texts.features, images.features, text_groups, image_groups, k)
        metrics = recall_metrics(image_side.ranks, text_side.ranks)
        chance = chance_metrics(image_groups, text_groups)
        if k > 0:
            image_matching, text_matching = _match(
                model, images, texts, image_side.candidates[:, :k], text_side.candidates[:, :k]
            )
            image_side = _rerank(image_side, image_matching, image_groups, text_groups)
            text_side = _rerank(text_side, text_matching, text_groups, image_groups)
            reranked = recall_metrics(image_side.ranks, text_side.ranks)
            metrics |= {RERANKED + name: value for name, value in reranked.items()}
            chance |= {RERANKED + name: value for name, value in chance.items()}

    shown = max(CUTOFFS)
    return RetrievalResult(
        name=data.name,
        images=len(image_groups),
        texts=len(text_groups),
        k=k,
        metrics=metrics,
        chance=chance,
        image_to_text=image_side.candidates[:, :shown].numpy(),
        text_to_image=text_side.candidates[:, :shown].numpy(),
        image_to_text_scores=image_side.scores[:, :shown].numpy(),
        text_to_image_scores=text_side.scores[:, :shown].numpy(),
        image_ranks=image_side.ranks.numpy(),
        text_ranks=text_side.ranks.numpy(),
    )


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


def _full_precision(vectors: torch.Tensor) -> torch.Tensor:
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))


# ---------------------------------------------------------------------------------------------------------------------
# Rows of a table over ranks
# ---------------------------------------------------------------------------------------------------------------------


def _share(count: int, of_rank: int) -> range:
    """The rows of a table of `count` that a rank works on; shares differ by one row at most."""
    return range(of_rank * count // world_size(), (of_rank + 1) * count // world_size())


def _gather_shares(rows: torch.Tensor, count: int) -> torch.Tensor:
    """The rows of all ranks' shares, in order: (own share, ...) -> (count, ...) on every rank."""
    if world_size() == 1:
        return rows
    sizes = [len(_share(count, each)) for each in range(world_size())]
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
    padded[: len(rows)] = rows
    gathered = gather_rows(padded).unflatten(0, (world_size(), max(sizes)))
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


# ---------------------------------------------------------------------------------------------------------------------
# The two sides
# ---------------------------------------------------------------------------------------------------------------------


class PixelRows(Dataset):
    """Images as the model takes them, by position in a list of rows."""

    def __init__(self, images: datasets.Dataset, processor: AlbefProcessor, rows: Sequence[int]) -> None:
        self.images, self.processor, self.rows = images, processor, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> torch.Tensor:
        image = decode_image(self.images[self.rows[position]]["image"])
        return self.processor(images=[image], return_tensors="pt")["pixel_values"][0]


def encode_pixels(model: Any, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (batch, channels, h, w) -> tokens (batch, tokens, width) and unit vectors (batch, projection_dim)."""
    weight = next(model.parameters())
    output = model.get_image_features(pixel_values.to(weight.device, weight.dtype))
    return output.last_hidden_state, _full_precision(output.pooler_output)


class _Images:
    """features (images, projection_dim) of all images, on every rank; token states of this rank's share."""

    def __init__(
        self,
        model: nn.Module,
        processor: AlbefProcessor,
        images: datasets.Dataset,
        batch_size: int,
        workers: int,
        token_memory: int,
    ) -> None:
        self.model: Any = model
        self.processor, self.images, self.batch_size, self.workers = processor, images, batch_size, workers
        self.own = _share(len(images), rank())
        self.kept: list[torch.Tensor] | None = [] if token_memory > 0 else None
        features = []
        for tokens, pooled in self._encode():
            features.append(pooled)
            if self.kept is not None:
                self.kept.append(tokens)
                if tokens[0].nbytes * len(self.own) > token_memory:
                    self.kept = None
        self.features = _gather_shares(torch.cat(features)[: len(self.own)], len(images))

    def _encode(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(tokens (batch, tokens, width), unit vectors (batch, projection_dim)) of this rank's share, in order."""
        # A rank without an image encodes one all the same, to know the width of what it gathers.
        rows = PixelRows(self.images, self.processor, self.own or range(1))
        # With a generator of its own the loader leaves torch's alone.
        for pixels in DataLoader(rows, self.batch_size, num_workers=self.workers, generator=torch.Generator()):
            yield encode_pixels(self.model, pixels)

    def tokens(self) -> Iterator[tuple[int, torch.Tensor]]:
        """(row, token states (1, tokens, width)) of each image of this rank's share."""
        batches = self.kept if self.kept is not None else (tokens for tokens, _ in self._encode())
        states = (tokens for batch in batches for tokens in batch.split(1))
        yield from zip(self.own, states, strict=False)  # one more than the share where that is empty: see `_encode`


class Texts:
    """features (texts, projection_dim) of all texts, and their token states, on every rank."""

    def __init__(
        self,
        model: nn.Module,
        processor: AlbefProcessor,
        texts: list[str],
        batch_size: int,
        max_length: int,
        token_memory: int,
    ) -> None:
        self.model: Any = model
        self.batch_size = batch_size
        self.device = next(model.parameters()).device
        encoding = processor.tokenize_captions(texts, max_length=max_length, padding="longest")
        self.input_ids, self.attention_mask = encoding["input_ids"], encoding["attention_mask"]
        self.lengths = self.attention_mask.sum(dim=1)
        own = torch.tensor(_share(len(texts), rank()) or range(1))
        own = own[self.lengths[own].argsort(stable=True)]  # texts of one length together: less padding

        kept: torch.Tensor | None = None
        for number, rows in enumerate(own.split(batch_size)):
            output = self._encode(rows)
            states, pooled = output.last_hidden_state, _full_precision(output.pooler_output)
            if number == 0:
                features = pooled.new_empty((len(own), pooled.shape[1]))
                if len(texts) * self.input_ids.shape[1] * states[0, 0].nbytes <= token_memory:
                    kept = states.new_zeros((len(own), self.input_ids.shape[1], states.shape[2]))
            places = (rows - own.min()).to(self.device)
            features[places] = pooled
            if kept is not None:
                kept[places, : states.shape[1]] = states
        share = len(_share(len(texts), rank()))
        self.features = _gather_shares(features[:share], len(texts))
        self.kept = None if kept is None else _gather_shares(kept[:share], len(texts))

    def _trimmed(self, rows: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """Rows of a (texts, tokens) table as far as the longest of these texts, on the device."""
        return table[rows, : int(self.lengths[rows].max())].to(self.device)

    def _encode(self, rows: torch.Tensor) -> Any:
        return self.model.get_text_features(
            self._trimmed(rows, self.input_ids), self._trimmed(rows, self.attention_mask)
        )

    def states(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Token states (rows, tokens, width) and attention mask (rows, tokens) of these texts."""
        attention_mask = self._trimmed(rows, self.attention_mask)
        if self.kept is None:
            return self._encode(rows).last_hidden_state, attention_mask
        return self.kept[rows.to(self.device), : attention_mask.shape[1]], attention_mask


# ---------------------------------------------------------------------------------------------------------------------
# The two stages
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class _Side:
    """One direction. ranks (queries,); candidates and scores (queries, kept), best first. All on the CPU."""

    ranks: torch.Tensor
    candidates: torch.Tensor
    scores: torch.Tensor


def _contrast(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    query_groups: torch.Tensor,
    candidate_groups: torch.Tensor,
    k: int,
) -> _Side:
    """Rank all candidates by similarity: this rank's queries, a block of rows at a time, then everybody's.

    Args:
        queries: unit vectors (queries, projection_dim).
        candidates: unit vectors (candidates, projection_dim).
        k: how many candidates the next stage needs.
    """
    device = queries.device
    kept = min(max(k + 1, *CUTOFFS), len(candidates))  # one more than re-ranked, to see whether it ties with them
    own = torch.tensor(_share(len(queries), rank()), dtype=torch.int64)
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
    return _Side(*(_gather_shares(table, count).cpu() for table in (ranks, best, scores)))


def match_image(model: Any, tokens: torch.Tensor, texts: Texts, wanted: torch.Tensor) -> torch.Tensor:
    """Matching logits (class 1), float32 on the CPU, of one image with some texts.

    Args:
        tokens: (1, tokens, width); they are projected once for all these texts.
        wanted: (n,) rows of `texts`.
    """
    by_length = texts.lengths[wanted].argsort(stable=True)
    keys_values = model.project_image_tokens(tokens)
    logits = []
    for rows in wanted[by_length].split(PAIRS_AT_ONCE):
        states, attention_mask = texts.states(rows)
        shared = [
            (key.expand(len(rows), -1, -1, -1), value.expand(len(rows), -1, -1, -1)) for key, value in keys_values
        ]
        logits.append(model.matching_logits(states, attention_mask, shared)[:, 1])
    scores = torch.empty(len(wanted))
    scores[by_length] = torch.cat(logits).float().cpu()
    return scores


def _match(
    model: nn.Module, images: _Images, texts: Texts, image_shortlist: torch.Tensor, text_shortlist: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Matching logits (class 1) of the shortlisted pairs, of the same shapes as the shortlists.

    Args:
        image_shortlist: (images, k) texts for each image.
        text_shortlist: (texts, k) images for each text.
    """
    device = texts.device
    own = images.own
    image_scores = torch.zeros(image_shortlist.shape, dtype=torch.float32)
    text_scores = torch.zeros(text_shortlist.shape, dtype=torch.float32)
    # Where each image stands in the texts' shortlists: places[starts[i] : starts[i + 1]] of the flattened table.
    flat = text_shortlist.flatten()
    places = flat.argsort(stable=True)
    starts = torch.searchsorted(flat[places], torch.arange(len(image_shortlist) + 1))
    for image, tokens in images.tokens():
        asking = places[starts[image] : starts[image + 1]]
        asking_texts = asking // text_shortlist.shape[1]
        wanted = torch.cat([image_shortlist[image], asking_texts]).unique()
        score_of = torch.full((int(wanted[-1]) + 1,), float("nan"))
        score_of[wanted] = match_image(model, tokens, texts, wanted)
        image_scores[image] = score_of[image_shortlist[image]]
        text_scores.view(-1)[asking] = score_of[asking_texts]
    if world_size() == 1:
        return image_scores, text_scores
    # A rank has the rows of its images, and of each text's row the places of its images: all others are zero.
    text_scores = text_scores.to(device)
    dist.all_reduce(text_scores)
    own_scores = image_scores[own.start : own.stop].to(device)
    return _gather_shares(own_scores, len(image_shortlist)).cpu(), text_scores.cpu()


def _rerank(side: _Side, matching: torch.Tensor, query_groups: torch.Tensor, candidate_groups: torch.Tensor) -> _Side:
    """The first k candidates in the order of matching (queries, k); the others stay behind them, in their order."""
    k = matching.shape[1]
    shortlist = side.candidates[:, :k]
    relevant = candidate_groups[shortlist] == query_groups[:, None]
    admitted = torch.ones_like(relevant)
    if side.scores.shape[1] > k:
        admitted = side.scores[:, :k] > side.scores[:, k : k + 1]
    scores, order = matching.sort(dim=1, descending=True, stable=True)
    behind = torch.full_like(side.scores[:, k:], float("nan"))
    return _Side(
        ranks=reranked_ranks(matching, side.ranks, relevant, admitted),
        candidates=torch.cat([shortlist.gather(1, order), side.candidates[:, k:]], dim=1),
        scores=torch.cat([scores, behind], dim=1),
    )


def read_result(path: Path) -> RetrievalResult:
    """A result that `to_json` wrote."""
    return RetrievalResult.from_json(path.read_text(encoding="utf-8"))
