"""Finding boxes and scoring them are separate steps."""

import numpy as np
import pytest
import torch
from helpers import tiny_model
from PIL import Image

from albef_hf.evaluation.boxes import score_proposals
from albef_hf.evaluation.grounding import (
    AlbefGrounder,
    Grounding,
    GroundingSample,
    evaluate_grounding,
    find_boxes,
    score_boxes,
)

IMAGE = Image.new("RGB", (40, 20), "white")


def found(box) -> Grounding:
    return Grounding(np.array(box, dtype=np.float64), 1.0, np.zeros((2, 2)), IMAGE.size)


def test_boxes_are_scored_beside_the_middle_and_the_proposals():
    middle, left = [10, 5, 20, 10], [0, 0, 10, 20]
    samples = [GroundingSample(IMAGE, "one", middle), GroundingSample(IMAGE, "two", left)]
    groundings = [found(left), found(left)]
    assert score_boxes(groundings, samples) == {"accuracy": 0.5, "centre_box_accuracy": 0.5}
    for sample in samples:
        sample.proposals = [left, middle, [30, 0, 10, 20]]
    assert score_boxes(groundings, samples) == {
        "accuracy": 0.5,
        "centre_box_accuracy": 0.5,
        "random_box_accuracy": pytest.approx(1 / 3),
        "best_proposal_accuracy": 1.0,
    }
    with pytest.raises(ValueError, match="sample 1 .'three'.: box .* is not inside the image of 40 x 20 pixels"):
        score_boxes(groundings, [samples[0], GroundingSample(IMAGE, "three", [0, 0, 20, 40])])
    with pytest.raises(ValueError, match="needs samples"):
        score_boxes([], [])


def test_finding_and_scoring_make_the_evaluation(processor):
    model = tiny_model(text_config={"vocab_size": len(processor.tokenizer), "max_position_embeddings": 32})
    grounder = AlbefGrounder(model.eval(), processor)
    samples = [GroundingSample(IMAGE, "the red one", [0, 0, 20, 20]), GroundingSample(IMAGE, "two", [20, 0, 20, 20])]
    groundings = find_boxes(grounder, samples, batch_size=1)
    assert [each.image_size for each in groundings] == [(40, 20)] * 2
    assert evaluate_grounding(grounder, samples, batch_size=1) == score_boxes(groundings, samples)


def test_a_sample_without_its_box_is_named_before_any_box_is_looked_for():
    with pytest.raises(ValueError, match="sample 1 .'two'. has no box to compare with"):
        evaluate_grounding(None, [GroundingSample(IMAGE, "one", [0, 0, 5, 5]), GroundingSample(IMAGE, "two")])


def test_the_exponent_weighs_the_area_of_a_proposal(processor):
    """Heat 4 in 4 pixels, 10 in 16, 12 in 64: each exponent has another best box."""
    heat = torch.zeros(8, 8)
    heat[:2, :2], heat[2:4, :4], heat[4:, :] = 1.0, 6 / 8, 2 / 32
    boxes = [[0, 0, 2, 2], [0, 0, 4, 4], [0, 0, 8, 8]]
    sample = GroundingSample(Image.new("RGB", (8, 8)), "one", proposals=boxes)
    model = tiny_model(text_config={"vocab_size": len(processor.tokenizer)}).eval()
    for exponent, best in ((0.0, 2), (None, 1), (0.5, 1), (1.0, 0)):
        grounder = AlbefGrounder(model, processor, **({} if exponent is None else {"exponent": exponent}))
        assert grounder._choose(heat, sample.image, sample).box.tolist() == boxes[best]
    assert score_proposals(heat.numpy(), np.array(boxes)).tolist() == pytest.approx([2.0, 2.5, 1.5])
