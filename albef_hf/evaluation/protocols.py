"""Published ways to measure retrieval, by name.

Figures can be compared only where the image size, k and the data that the weights were trained on are the same.
"""

import copy
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..data.hints import nearest_hint
from ..data.retrieval import RetrievalData
from ..processing_albef import AlbefProcessor
from .retrieval import RetrievalResult, evaluate_retrieval


@dataclass(frozen=True)
class RetrievalProtocol:
    """How a published retrieval figure is measured.

    Args:
        name: of the protocol.
        weights: what the evaluated weights were trained on.
        image_size: height and width of a picture in pixels.
        k: how many candidates of each query are re-ranked.
        source: where the publication says so.
        score: see `evaluate_retrieval`.
        max_length: longer texts are cut to this many tokens.
    """

    name: str
    weights: str
    image_size: int
    k: int
    source: str
    score: str = "matching"
    max_length: int = 30

    def processor(self, processor: AlbefProcessor) -> AlbefProcessor:
        """A copy of the processor that resizes pictures to the protocol's size; models interpolate their positions."""
        resized = copy.copy(processor)
        resized.image_processor = copy.deepcopy(processor.image_processor)
        resized.image_processor.size = {"height": self.image_size, "width": self.image_size}
        return resized

    def evaluate(
        self, model: nn.Module, processor: AlbefProcessor, data: RetrievalData, **options: Any
    ) -> RetrievalResult:
        """Run `evaluate_retrieval` by this protocol. options: other arguments of it, such as `batch_size`.

        Raises:
            ValueError: the gallery is smaller than k, or an option is fixed by the protocol; and as
                `evaluate_retrieval`.
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
            image_size=256,
            k=256,
            source="k: released Retrieval_coco.yaml; resolution: that of pre-training, as the authors advise",
        ),
        RetrievalProtocol(
            "flickr30k-zero-shot",
            "pre-training alone",
            image_size=256,
            k=128,
            source="k: released Retrieval_flickr.yaml; resolution: as for coco-zero-shot",
        ),
        RetrievalProtocol(
            "flickr30k-zero-shot-coco-tuned",
            "pre-training, then retrieval on COCO: what the paper's table 3 calls zero-shot",
            image_size=384,
            k=128,
            source="paper section 6.2, released Retrieval_flickr.yaml",
        ),
        RetrievalProtocol(
            "coco-fine-tuned",
            "pre-training, then retrieval on COCO",
            image_size=384,
            k=256,
            source="paper section 6.2, released Retrieval_coco.yaml",
        ),
        RetrievalProtocol(
            "flickr30k-fine-tuned",
            "pre-training, then retrieval on Flickr30K",
            image_size=384,
            k=128,
            source="paper section 6.2, released Retrieval_flickr.yaml",
        ),
    )
}


def retrieval_protocol(name: str) -> RetrievalProtocol:
    """A protocol by name.

    Raises:
        ValueError: an unknown name; names the nearest.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"unknown retrieval protocol {name!r}; {nearest_hint(name, PROTOCOLS)}")
    return PROTOCOLS[name]
