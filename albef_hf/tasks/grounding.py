"""Visual grounding, trained without boxes: what does an expression refer to in a picture? (RefCOCO+; paper section
6.4)"""

from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
import torch
from PIL import ImageDraw
from tqdm.auto import tqdm

from ..data.images import BadImage, decode_image, picture_size
from ..evaluation.boxes import check_box, intersection_over_union
from ..evaluation.explain import overlay
from ..evaluation.grounding import AlbefGrounder, GroundingSample, find_boxes, score_boxes
from ..evaluation.mode import failing_together
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
    """Trained like retrieval, on expressions. In evaluation a heat map of the model's attention chooses a box.

    Columns: `expression`; `box`, what it refers to, for evaluation only; `proposals`, a list of boxes to choose from;
    `image_id`, see `PairTask`. A box is x, y, width, height in pixels.
    """

    name = "grounding"
    model_class = AlbefForImageTextRetrieval
    needed = {"image": "image", "expression": "text"}
    text_columns = ("expression",)
    optional = {"image_id": "image_id", "box": "bbox", "proposals": "proposals"}
    crop = None  # a crop could cut off what the expression refers to
    description = (
        "Finds the box that an expression refers to in a picture. It was trained without boxes: heat maps of its "
        "attention choose one."
    )
    usage = (
        "from albef_hf.evaluation.grounding import AlbefGrounder",
        "",
        'print(AlbefGrounder(model, processor)(picture, "the red car").box)  # x, y, width, height',
    )
    examples_shown = 8
    examples_caption = (
        f"{Task.examples_caption} Left: the correct box in green, the chosen one in orange if it is another. Right: "
        "the heat map."
    )

    def check_rows(self, rows: datasets.Dataset, name: str, chooses: bool) -> None:
        """Check that the rows have boxes, and that these lie in their pictures, by the sizes in the headers.

        Raises:
            ValueError: they have none, one is no box, lies outside, or its picture cannot be opened; names the row.
        """
        if "box" not in rows.column_names:
            raise ValueError(f"{name} has no boxes to compare with: name their column by columns: {{box: ...}}")
        super().check_rows(rows, name, chooses)
        for number, row in enumerate(tqdm(rows, desc=f"boxes of {name}", disable=None, leave=False)):
            try:
                size = picture_size(row["image"])
                check_box(row["box"], *size, "box")
                for place, proposal in enumerate(row.get("proposals") or ()):
                    check_box(proposal, *size, f"proposals[{place}]")
            except ValueError as problem:
                raise ValueError(f"{name}, row {number}: {problem}") from problem

    def check_row(self, row: Mapping[str, Any]) -> None:
        """See `Task.check_row`."""
        super().check_row(row)
        _check_numbers(row["box"], "box")
        proposals = row.get("proposals")
        if not isinstance(proposals, list | None):
            raise BadImage(f"proposals: {proposals!r} is no list of boxes")
        for number, proposal in enumerate(proposals or ()):
            _check_numbers(proposal, f"proposals[{number}]")

    def prepare(self, row: Mapping[str, Any], generator: np.random.Generator, training: bool) -> dict[str, Any]:
        """The expression and its picture. Boxes are not used."""
        return self.pair(row, self.text(row, "expression"), generator, training)

    def measure(self, model: AlbefForImageTextRetrieval, rows: datasets.Dataset, name: str) -> TaskResult:
        """Accuracy of the box with most heat. Baselines are the central box, a random proposal and the best one."""
        samples = grounding_samples(rows)
        numbers = rows_of_rank(len(samples), self.settings.accelerator)
        grounder = AlbefGrounder(model, self.processor)
        shard = [samples[number] for number in numbers]
        with failing_together():
            found = find_boxes(grounder, shard, self.settings.evaluation_batch_size, name)
        groundings = gather_rows(numbers, found)
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
        """A row with both boxes in its picture, and with its heat map."""
        grounding, picture = result.extras[row], decode_image(data["image"])
        heat = overlay(picture, torch.from_numpy(grounding.heat_map))
        boxed = picture.copy()
        draw = ImageDraw.Draw(boxed)
        width = max(2, round(max(boxed.size) / 90))
        for (x, y, wide, high), color in ((grounding.box, CHOSEN_BOX), (data["box"], RIGHT_BOX)):
            draw.rectangle((x, y, x + wide, y + high), outline=color, width=width)
        line = ("the box overlaps by half or more", bool(result.correct[row]))
        return Example([boxed, heat], data["expression"], [line])


def _check_numbers(box: Any, column: str) -> None:
    """Raises:
    BadImage: it is not four numbers, or has no area.
    """
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(edge, int | float) for edge in box):
        raise BadImage(f"{column}: {box!r} is no box; four numbers are needed: x, y, width, height")
    if not (box[2] > 0 and box[3] > 0 and np.isfinite(box).all()):
        raise BadImage(f"{column}: the box {box} (x, y, width, height) has no area")


def grounding_samples(rows: datasets.Dataset) -> list[GroundingSample]:
    """Rows of the task as samples for `find_boxes` and `score_boxes`, pictures undecoded."""
    return [
        GroundingSample(row["image"], row["expression"], row.get("box"), row.get("proposals") or ()) for row in rows
    ]
