"""Retrieval evaluations by name: figures compare only where the resolution, k and the weights' past are the same."""

import copy
import difflib
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..data.retrieval import RetrievalData
from ..processing_albef import AlbefProcessor
from .retrieval import RetrievalResult, evaluate_retrieval


@dataclass(frozen=True)
class RetrievalProtocol:
    """How a published retrieval figure is measured.

    Args:
        name: what to ask for.
        weights: what the evaluated weights were trained on.
        image_size: height and width of a picture in pixels.
        k: candidates of each query that are re-ranked.
        source: where this is laid down.
        score: see `evaluate_retrieval`.
        max_length: tokens of a text.
    """

    name: str
    weights: str
    image_size: int
    k: int
    source: str
    score: str = "matching"
    max_length: int = 30

    def processor(self, processor: AlbefProcessor) -> AlbefProcessor:
        """A copy that makes pictures of this protocol's size; models interpolate their position table."""
        resized = copy.copy(processor)
        resized.image_processor = copy.deepcopy(processor.image_processor)
        resized.image_processor.size = {"height": self.image_size, "width": self.image_size}
        return resized

    def evaluate(
        self, model: nn.Module, processor: AlbefProcessor, data: RetrievalData, **options: Any
    ) -> RetrievalResult:
        """`evaluate_retrieval` as this protocol says. `options`: its others, such as `batch_size` or `bootstrap`.

        Raises:
            ValueError: the gallery is smaller than the protocol's k, or an option contradicts the protocol.
        """
        fixed = {"k": self.k, "score": self.score, "max_length": self.max_length}
        changed = sorted(set(options) & set(fixed))
        if changed:
            raise ValueError(f"protocol {self.name!r} lays down {', '.join(changed)}: use evaluate_retrieval instead")
        return evaluate_retrieval(model, self.processor(processor), data, **fixed, **options)  # type: ignore[arg-type]


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        RetrievalProtocol(
            "coco-zero-shot",
            "pre-training alone",
            256,
            256,
            "k: released Retrieval_coco.yaml; resolution: that of pre-training, as the authors advise for raw weights",
        ),
        RetrievalProtocol(
            "flickr30k-zero-shot",
            "pre-training alone",
            256,
            128,
            "k: released Retrieval_flickr.yaml; resolution: as for coco-zero-shot",
        ),
        RetrievalProtocol(
            "flickr30k-zero-shot-coco-tuned",
            "pre-training, then retrieval on COCO: what the paper's table 3 calls zero-shot",
            384,
            128,
            "paper section 6.2, released Retrieval_flickr.yaml",
        ),
        RetrievalProtocol(
            "coco-fine-tuned",
            "pre-training, then retrieval on COCO",
            384,
            256,
            "paper section 6.2, released Retrieval_coco.yaml",
        ),
        RetrievalProtocol(
            "flickr30k-fine-tuned",
            "pre-training, then retrieval on Flickr30K",
            384,
            128,
            "paper section 6.2, released Retrieval_flickr.yaml",
        ),
    )
}


def retrieval_protocol(name: str) -> RetrievalProtocol:
    """A protocol by name.

    Raises:
        ValueError: there is none of this name; names the nearest.
    """
    if name not in PROTOCOLS:
        nearest = difflib.get_close_matches(name, PROTOCOLS, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are: {', '.join(PROTOCOLS)}"
        raise ValueError(f"unknown retrieval protocol {name!r}; {hint}")
    return PROTOCOLS[name]
