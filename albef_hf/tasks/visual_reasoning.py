"""Visual reasoning: is a sentence true of two pictures? (NLVR2; paper section 5)"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.images import BadImage
from ..modeling_albef_classification import AlbefForVisualReasoning
from .classification import PRINT_CLASSES, ClassifyingTask
from .result import TaskResult
from .task import write_json_lines


class VisualReasoning(ClassifyingTask):
    """Columns: `images`, a list of two, or two columns `{"images": ["left", "right"]}`, which become `image_0` and
    `image_1`; `sentence`; `label`; `identifier`. See `ClassifyingTask`."""

    name = "visual_reasoning"
    model_class = AlbefForVisualReasoning
    needed = {"images": "images", "sentence": "sentence", "label": "label"}
    optional = {"identifier": "identifier"}
    text_columns = ("sentence",)
    image_columns = ("image_0", "image_1", "images")
    description = "Says whether a sentence is true of two pictures."
    usage = (
        'inputs = processor(images=[picture, picture], text="both are red")',
        'inputs["pixel_values"] = inputs["pixel_values"][None]  # (1, 2, channels, height, width)',
        *PRINT_CLASSES,
    )

    @classmethod
    def source_columns(cls, dataset: str, given: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
        """Like `Task.source_columns`, but `images` may be given as two columns."""
        needed, optional = super().source_columns(dataset, given)
        pair = given.get("images")
        if pair is not None and not isinstance(pair, str):
            if len(pair) != 2:
                raise ValueError(f"images: give two columns, or one that holds two, not {list(pair)}")
            del needed["images"]
            needed |= {"image_0": pair[0], "image_1": pair[1]}
        return needed, optional

    def images(self, row: Mapping[str, Any]) -> Sequence[Any]:
        """The two pictures of a row, undecoded.

        Raises:
            BadImage: there are not exactly two.
        """
        images = row["images"] if "images" in row else [row["image_0"], row["image_1"]]
        if images is None or len(images) != 2:
            raise BadImage(f"images: two are needed, there are {0 if images is None else len(images)}")
        return images

    def prepare(self, row: Mapping[str, Any], generator: np.random.Generator, training: bool) -> dict[str, Any]:
        """Both pictures (2, channels, height, width), the sentence and the number of its class."""
        pixels = [
            self.pixels(image, generator, training, f"images[{number}]")
            for number, image in enumerate(self.images(row))
        ]
        return {"pixel_values": torch.stack(pixels), "text": self.text(row, "sentence"), "label": self.label(row)}

    def write_predictions(self, result: TaskResult, folder: Path) -> None:
        """NAME.csv, lines "identifier,True" without a header, as the NLVR2 scorer reads them; NAME.details.jsonl with
        probabilities."""
        with (folder / f"{result.name}.csv").open("w", newline="", encoding="utf-8") as handle:
            csv.writer(handle, lineterminator="\n").writerows(
                (row["identifier"], row["prediction"]) for row in result.predictions
            )
        write_json_lines(folder / f"{result.name}.details.jsonl", result.predictions)
