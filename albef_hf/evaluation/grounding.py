"""Visual grounding from heat maps: an expression and an image to a box, and how often it is the right one.

As published (paper section 6.4, released `Grounding.py`): the Grad-CAM map of the whole expression, enlarged to the
image by bicubic interpolation, scores the proposals of a detector by sum over area ** 0.5; the best one is right if
its intersection over union with the annotated box is 0.5 at least. No box is seen in training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..data.images import decode_image
from .boxes import (
    Box,
    center_box,
    check_box,
    grounding_accuracy,
    hottest_region,
    intersection_over_union,
    random_box_accuracy,
    score_proposals,
)
from .explain import heat_maps, to_image_size


@dataclass
class Grounding:
    """The box that was found for an expression.

    Args:
        box: (4,) x, y, width, height in pixels.
        score: its heat.
        heat_map: (rows, columns) of patches.
        image_size: width and height of the image in pixels.
    """

    box: np.ndarray
    score: float
    heat_map: np.ndarray
    image_size: tuple[int, int]


@dataclass
class GroundingSample:
    """An expression about an image, what it means, and what it may be. Boxes are x, y, width, height in pixels.

    Args:
        image: anything `decode_image` takes.
        expression: the text.
        box: of the object; None where it is not known.
        proposals: (proposals, 4); none: the heat map alone has to do.
    """

    image: Any
    expression: str
    box: Box | None = None
    proposals: Sequence[Box] = ()


class AlbefGrounder:
    """Expression and image to box, by any model with `albef` and `itm_head`.

    Args:
        model, processor: they belong together.
        mode, layer: as in `albef_hf.evaluation.explain.heat_maps`.
        exponent: of the area that the heat of a proposal is divided by.
        threshold: share of the maximum that belongs to the object where there are no proposals.

    Example:

        >>> AlbefGrounder(model, processor)(picture, "the red car").box
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        mode: str = "itm",
        layer: int | None = None,
        exponent: float = 0.5,
        threshold: float = 0.5,
    ) -> None:
        self.model, self.processor, self.mode, self.layer = model, processor, mode, layer
        self.exponent, self.threshold = exponent, threshold

    def __call__(self, image: Image.Image, expression: str, proposals: Sequence[Box] = ()) -> Grounding:
        """The box of one expression."""
        return self.ground([GroundingSample(image, expression, proposals=proposals)])[0]

    def ground(self, samples: Sequence[GroundingSample]) -> list[Grounding]:
        """The boxes of a batch.

        Raises:
            ValueError: a proposal outside its image.
        """
        pictures = [decode_image(sample.image) for sample in samples]
        inputs = self.processor(images=pictures, text=[sample.expression for sample in samples], return_tensors="pt")
        weight = next(self.model.parameters())
        maps = heat_maps(
            self.model,
            inputs["pixel_values"].to(weight.device, weight.dtype),
            inputs["input_ids"].to(weight.device),
            inputs["attention_mask"].to(weight.device),
            self.mode,
            self.layer,
        ).sentence.float()
        return [
            self._choose(heat.cpu(), picture, sample)
            for heat, picture, sample in zip(maps, pictures, samples, strict=True)
        ]

    def _choose(self, heat: torch.Tensor, picture: Image.Image, sample: GroundingSample) -> Grounding:
        width, height = picture.size
        full = to_image_size(heat, height, width).numpy()
        proposals = np.asarray(sample.proposals, dtype=np.float64).reshape(-1, 4)
        for row, proposal in enumerate(proposals):
            check_box(proposal, width, height, f"proposal {row} of {sample.expression!r}")
        if not len(proposals):
            proposals = hottest_region(heat, height, width, self.threshold)[None]
        scores = score_proposals(full, proposals, self.exponent)
        best = int(scores.argmax())
        return Grounding(proposals[best], float(scores[best]), heat.numpy(), (width, height))


def find_boxes(
    grounder: AlbefGrounder, samples: Sequence[GroundingSample], batch_size: int = 32, name: str = "grounding"
) -> list[Grounding]:
    """The box of every sample, in order, a batch at a time. `name` stands beside the progress bar.

    Raises:
        ValueError: a proposal outside its image.
    """
    groundings: list[Grounding] = []
    for start in tqdm(range(0, len(samples), batch_size), desc=name, disable=None, leave=False):
        groundings += grounder.ground(samples[start : start + batch_size])
    return groundings


def score_boxes(
    groundings: Sequence[Grounding], samples: Sequence[GroundingSample], threshold: float = 0.5
) -> dict[str, float]:
    """Accuracy of boxes that have been found, beside what no model reaches: a proposal at random, and the one in the
    middle.

    Args:
        groundings: the boxes found, one a sample.
        threshold: the intersection over union that makes a box right.

    Returns: `accuracy`, `centre_box_accuracy`, and where every sample has proposals `random_box_accuracy` and
        `best_proposal_accuracy`, the highest accuracy these proposals allow.

    Raises:
        ValueError: no samples, a sample without its box, or a box outside its image.
    """
    check_references(samples)
    centers = []
    for row, (grounding, sample) in enumerate(zip(groundings, samples, strict=True)):
        width, height = grounding.image_size
        assert sample.box is not None
        check_box(sample.box, width, height, f"sample {row} ({sample.expression!r})")
        centers.append(center_box(width, height, np.asarray(sample.proposals, dtype=np.float64)))
    references = np.array([sample.box for sample in samples], dtype=np.float64)
    metrics = {
        "accuracy": grounding_accuracy(np.array([each.box for each in groundings]), references, threshold),
        "centre_box_accuracy": grounding_accuracy(np.array(centers), references, threshold),
    }
    if all(len(sample.proposals) for sample in samples):
        proposals = [np.asarray(sample.proposals, dtype=np.float64) for sample in samples]
        metrics["random_box_accuracy"] = random_box_accuracy(proposals, references, threshold)
        best = [
            each[int(intersection_over_union(each, reference).argmax())]
            for each, reference in zip(proposals, references, strict=True)
        ]
        metrics["best_proposal_accuracy"] = grounding_accuracy(np.array(best), references, threshold)
    return metrics


def check_references(samples: Sequence[GroundingSample]) -> None:
    """Raises:
    ValueError: no samples, or one without its box (names its row).
    """
    if not len(samples):
        raise ValueError("grounding needs samples, got none")
    for row, sample in enumerate(samples):
        if sample.box is None:
            raise ValueError(f"sample {row} ({sample.expression!r}) has no box to compare with")


def evaluate_grounding(
    grounder: AlbefGrounder, samples: Sequence[GroundingSample], batch_size: int = 32, threshold: float = 0.5
) -> dict[str, float]:
    """Find the box of every sample (`find_boxes`) and score them (`score_boxes`, which says what is returned).

    Raises:
        ValueError: no samples, a sample without its box, or a box or proposal outside its image.
    """
    check_references(samples)  # before the long part
    return score_boxes(find_boxes(grounder, samples, batch_size), samples, threshold)
