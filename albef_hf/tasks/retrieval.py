"""Image-text retrieval: find the texts of a picture, and the pictures of a text (paper section 5)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets

from ..data.images import decode_image
from ..data.retrieval import gallery
from ..evaluation.explain import explain
from ..evaluation.recall import CUTOFFS
from ..evaluation.retrieval import RERANKED, check_candidates, evaluate_retrieval
from ..modeling_albef_retrieval import AlbefForImageTextRetrieval
from ..reporting.html import Example, example_section
from .pairs import CaptionTask
from .result import TaskResult
from .task import drawn_rows

HEAT_MAPS = 8  # in the report


class Retrieval(CaptionTask):
    """Rank all texts for each picture and all pictures for each text; matching re-ranks the first `rerank`."""

    name = "retrieval"
    model_class = AlbefForImageTextRetrieval
    metric = "final_mean_recall"
    uses_protocol = True
    description = (
        "Finds the texts of a picture and the pictures of a text: cosine similarity ranks all of them, and matching, "
        "which reads a text with a picture, re-ranks the best."
    )
    pipeline_tag = "zero-shot-image-classification"
    usage = (
        'inputs = processor(images=picture, text=["a red square", "a green tree"])',
        "with torch.no_grad():",
        "    print(model(**inputs).logits_per_image.softmax(-1))",
    )

    def check_rows(self, rows: datasets.Dataset, name: str, chooses: bool) -> None:
        """Check that there are enough candidates to re-rank.

        Raises:
            ValueError: there are fewer than `rerank`.
        """
        data = gallery(rows, "image_id", name)
        check_candidates(self.settings.rerank, len(data.image_groups), len(data.texts))

    def measure(self, model: AlbefForImageTextRetrieval, rows: datasets.Dataset, name: str) -> TaskResult:
        """Recalls in both directions, after re-ranking `rerank` candidates or by a protocol."""
        data = gallery(rows, "image_id", name)
        settings = self.settings
        options: dict[str, Any] = {
            "batch_size": settings.evaluation_batch_size,
            "accelerator": settings.accelerator,
            "workers": settings.data.workers,
        }
        if settings.protocol is not None:
            result = settings.protocol.evaluate(model, self.processor, data, **options)
        else:
            options |= {"k": settings.rerank, "max_length": self.max_tokens}
            result = evaluate_retrieval(model, self.processor, data, **options)
        metrics = dict(result.metrics)
        metrics["final_mean_recall"] = result.metrics[f"{result.final_prefix}mean_recall"]
        return TaskResult(
            name,
            len(data.image_groups),
            metrics,
            {"random order": result.chance["mean_recall"]},
            retrieval=result,
            retrieval_data=data,
        )

    @classmethod
    def metric_names(cls) -> list[str]:
        """Recalls with and without re-ranking, their means, and the mean of the final order."""
        directions = ("image_to_text", "text_to_image")
        names = [*(f"{direction}_r{cutoff}" for direction in directions for cutoff in CUTOFFS), "mean_recall"]
        return [cls.metric, *names, *(RERANKED + name for name in names)]

    def write_predictions(self, result: TaskResult, folder: Path) -> None:
        """NAME.json with the first candidates of each query, their scores, and the rank of each right answer."""
        assert result.retrieval is not None
        (folder / f"{result.name}.json").write_text(result.retrieval.to_json(), encoding="utf-8")

    def sections(
        self, results: Mapping[str, TaskResult], rows: Mapping[str, datasets.Dataset], model: Any
    ) -> list[str]:
        """Heat maps of the first test: where the model looks when it matches a text with its picture. `write_report`
        makes the table and the gallery."""
        data = next((result.retrieval_data for result in results.values()), None)
        if data is None:
            return []
        pairs: list[tuple[int, str]] = []
        for text in drawn_rows(len(data.texts), 4 * HEAT_MAPS):
            if data.text_groups[text] in data.image_groups and len(pairs) < HEAT_MAPS:
                pairs.append((data.image_groups.index(data.text_groups[text]), data.texts[text]))
        pictures = [decode_image(data.images[image]["image"]) for image, _ in pairs]
        explanations = explain(model, self.processor, pictures, [text for _, text in pairs])
        examples = [
            Example([each.image, each.picture()], text, [(f"matching logit {each.score:.2f}", None)])
            for each, (_, text) in zip(explanations, pairs, strict=True)
        ]
        caption = (
            "Texts with their own picture, drawn at random with a fixed seed. Right: where the model looks when "
            "it decides that they match; each map has its own scale."
        )
        return [example_section("Heat maps", caption, examples)]
