"""Text assignment: which of two pictures does a text belong to, if any? It is trained between pre-training and visual
reasoning (paper section 5, "NLVR")."""

import datasets
import torch

from ..modeling_albef_assignment import AlbefForTextAssignment
from .batches import evaluation_batches
from .classification import classification_result, confusion_section
from .pairs import CaptionTask
from .result import TaskResult

SMALLEST = 3  # rows of a batch: two other pictures are drawn from it for each text


class TextAssignment(CaptionTask):
    """Each text is read with two pictures of its batch, which the model draws."""

    name = "text_assignment"
    model_class = AlbefForTextAssignment
    description = (
        "Says which of two pictures a text belongs to, if any. A starting point for fine-tuning on visual reasoning."
    )
    usage = (
        "# AlbefForVisualReasoning.from_pretrained(name) starts fine-tuning from it",
        "print(model.loading_report)",
    )

    def check_rows(self, rows: datasets.Dataset, name: str, chooses: bool) -> None:
        """Check the captions, and that a batch has enough rows to draw other pictures from.

        Raises:
            ValueError: a row has no caption, or no batch has three rows.
        """
        super().check_rows(rows, name, chooses)
        self._check_count(rows, name)

    def _check_count(self, rows: datasets.Dataset, name: str) -> None:
        size = self.settings.evaluation_batch_size
        if min(len(rows), size) < SMALLEST:
            raise ValueError(
                f"{name}: text assignment needs at least three rows in a batch, but there are {len(rows)} rows in "
                f"batches of {size} (evaluation_batch_size)"
            )

    def _batches(self, count: int) -> list[list[int]]:
        """All rows in batches of `evaluation_batch_size`; too few in the last one go to the one before."""
        size = self.settings.evaluation_batch_size
        batches = [list(range(first, min(first + size, count))) for first in range(0, count, size)]
        if len(batches[-1]) < SMALLEST:
            last = batches.pop()
            batches[-1] += last
        return batches

    def measure(self, model: AlbefForTextAssignment, rows: datasets.Dataset, name: str) -> TaskResult:
        """Accuracy. The drawn pictures depend on the batches, so every rank measures all rows.

        Raises:
            ValueError: no batch has three rows.
        """
        self._check_count(rows, name)
        device = next(model.parameters()).device
        generator = torch.Generator().manual_seed(0)
        predicted: list[int] = []
        references: list[int] = []
        with torch.inference_mode():
            for batch in evaluation_batches(self, rows, name, self._batches(len(rows))):
                batch["assignment_draws"] = torch.rand(len(batch["input_ids"]), 3, generator=generator)
                output = model(**{key: value.to(device) for key, value in batch.items()})
                counts = output.labels >= 0
                predicted += output.logits.argmax(1)[counts].tolist()
                references += output.labels[counts].tolist()
        if not references:
            raise ValueError(f"{name}: no batch has three rows with different pictures")
        return classification_result(name, predicted, references, model.classes, [])

    def tables(self, result: TaskResult) -> list[str]:
        """The confusion matrix."""
        return [confusion_section(result)]
