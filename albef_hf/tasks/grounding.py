"""Visual grounding without boxes to learn from: what does an expression mean in a picture? (RefCOCO+; paper section
6.4)"""

from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import torch
from PIL import ImageDraw

from ..data.images import decode_image
from ..evaluation.boxes import intersection_over_union
from ..evaluation.explain import overlay
from ..evaluation.grounding import AlbefGrounder, GroundingSample, find_boxes, score_boxes
from ..modeling_albef_retrieval import AlbefForImageTextRetrieval
from ..reporting.html import Example
from .batches import gather_rows, rows_of_rank
from .pairs import PairTask
from .result import TaskResult
from .task import Task

RIGHT_BOX, CHOSEN_BOX = "#00664a", "#d55e00"
BASELINES = {
    "centre_box_accuracy": "the box in the middle",
    "random_box_accuracy": "a box at random",
    "best_proposal_accuracy": "the best proposal, the most there is to reach",
}


class Grounding(PairTask):
    """Trained as retrieval on expressions; a heat map of its attention then chooses a box.

    Columns: `expression`; `box`, what it means, for evaluation only; `proposals`, a list of boxes to choose from;
    `image_id`, see `PairTask`. A box is x, y, width, height in pixels.
    """

    name = "grounding"
    model_class = AlbefForImageTextRetrieval
    needed = {"image": "image", "expression": "text"}
    optional = {"image_id": "image_id", "box": "bbox", "proposals": "proposals"}
    crop = None  # it could cut off what is meant
    description = (
        "Points out what an expression means in a picture. It has never seen a box: heat maps of its attention choose "
        "one."
    )
    usage = (
        "from albef_hf.evaluation.grounding import AlbefGrounder",
        "",
        'print(AlbefGrounder(model, processor)(picture, "the red car").box)  # x, y, width, height',
    )
    examples_shown = 8
    examples_caption = (
        f"{Task.examples_caption} Left: the right box in green, the chosen one in orange, unless they are the same. "
        "Right: where it looks."
    )

    def check_rows(self, rows: datasets.Dataset, name: str, chooses: bool) -> None:
        """Raises:
        ValueError: boxes are missing.
        """
        if "box" not in rows.column_names:
            raise ValueError(f"{name} has no boxes to compare with: say which column with columns: {{box: ...}}")

    def prepare(self, row: Mapping[str, Any], generator: np.random.Generator, training: bool) -> dict[str, Any]:
        """The expression and its picture; boxes are not looked at."""
        return self.pair(row, self.text(row, "expression"), generator, training)

    def measure(self, model: AlbefForImageTextRetrieval, rows: datasets.Dataset, name: str) -> TaskResult:
        """How often the box with most heat is the right one; beside it the middle one, a random one, and the best
        there is."""
        samples = grounding_samples(rows)
        numbers = rows_of_rank(len(samples), self.settings.accelerator)
        grounder = AlbefGrounder(model, self.processor)
        own = [samples[number] for number in numbers]
        groundings = gather_rows(numbers, find_boxes(grounder, own, self.settings.evaluation_batch_size, name))
        metrics = score_boxes(groundings, samples)
        overlaps = [
            float(intersection_over_union(each.box, np.asarray(sample.box)))
            for each, sample in zip(groundings, samples, strict=True)
        ]
        predictions = [
            {"row": row, "expression": sample.expression, "box": [round(float(edge), 2) for edge in each.box]}
            for row, (sample, each) in enumerate(zip(samples, groundings, strict=True))
        ]
        return TaskResult(
            name,
            len(samples),
            {"accuracy": metrics.pop("accuracy")},
            {BASELINES[key]: value for key, value in metrics.items()},
            predictions,
            correct=[float(overlap >= 0.5) for overlap in overlaps],
            extras=groundings,
        )

    def example(self, result: TaskResult, row: int, data: Mapping[str, Any]) -> Example:
        """The picture with both boxes, and its heat map."""
        grounding, picture = result.extras[row], decode_image(data["image"])
        heat = overlay(picture, torch.from_numpy(grounding.heat_map))
        boxed = picture.copy()
        draw = ImageDraw.Draw(boxed)
        width = max(2, round(max(boxed.size) / 90))
        for (x, y, wide, high), color in ((grounding.box, CHOSEN_BOX), (data["box"], RIGHT_BOX)):
            draw.rectangle((x, y, x + wide, y + high), outline=color, width=width)
        line = ("the box overlaps by half or more", bool(result.correct[row]))
        return Example([boxed, heat], data["expression"], [line])


def grounding_samples(rows: datasets.Dataset) -> list[GroundingSample]:
    """Rows of the task as what `AlbefGrounder` takes, pictures undecoded."""
    return [
        GroundingSample(row["image"], row["expression"], row.get("box"), row.get("proposals") or ()) for row in rows
    ]
