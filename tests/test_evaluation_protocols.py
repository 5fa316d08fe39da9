"""Retrieval protocols, median ranks and intervals, and recorded values of the published evaluation."""

import datasets
import numpy as np
import pytest
import torch
from helpers import load_reference, reference_model
from PIL import Image
from retrieval_helpers import ToyModel, make_data

from albef_hf.data.retrieval import RetrievalData
from albef_hf.evaluation import evaluate_retrieval
from albef_hf.evaluation.bootstrap import bootstrap_intervals, median_rank
from albef_hf.evaluation.protocols import PROTOCOLS, retrieval_protocol
from albef_hf.evaluation.recall import recall_metrics


class RecordedProcessor:
    """Recorded pixels and ids: a picture is one gray pixel whose value is its number, a text is its number."""

    def __init__(self, inputs: dict) -> None:
        self.inputs = inputs

    def __call__(self, images, return_tensors):
        return {"pixel_values": self.inputs["pixel_values"][[image.getpixel((0, 0))[0] for image in images]]}

    def tokenize_captions(self, texts, max_length, padding):
        rows = [int(text) for text in texts]
        return {name: self.inputs[name][rows] for name in ("input_ids", "attention_mask")}


def matrix(order: np.ndarray, scores: np.ndarray, columns: int, missing: float) -> torch.Tensor:
    """The first candidates of each query and their scores -> (queries, columns)."""
    values = torch.full((len(order), columns), missing, dtype=torch.float64)
    found = torch.from_numpy(scores).double().nan_to_num(missing)
    return values.scatter(1, torch.from_numpy(order), found)


def test_contrast_and_reranking_agree_with_the_recorded_values():
    state, inputs, outputs, sizes = load_reference("retrieval_two_stage")
    model = reference_model(state, sizes).eval()
    images, texts = outputs["similarity"].shape
    data = RetrievalData(
        images=datasets.Dataset.from_dict(
            {"image": [Image.new("RGB", (1, 1), (row, 0, 0)) for row in range(images)], "group": list(range(images))},
            features=datasets.Features({"image": datasets.Image(), "group": datasets.Value("int64")}),
        ),
        texts=[str(row) for row in range(texts)],
        image_groups=list(range(images)),
        text_groups=[row % images for row in range(texts)],
    )
    processor = RecordedProcessor({**inputs, "pixel_values": inputs["pixel_values"].double()})
    first = evaluate_retrieval(model, processor, data)
    k, missing = int(sizes["k_test"]), float(sizes["not_reranked"])
    second = evaluate_retrieval(model, processor, data, k=k)
    for result, way, columns, expected in (
        (first, "image_to_text", texts, outputs["similarity"]),
        (first, "text_to_image", images, outputs["similarity"].T),
        (second, "image_to_text", texts, outputs["score_i2t"]),
        (second, "text_to_image", images, outputs["score_t2i"]),
    ):
        found = matrix(getattr(result, way), getattr(result, f"{way}_scores"), columns, missing)
        assert (found - expected).abs().max() <= 1e-9, way
    assert (outputs["score_i2t"] == missing).sum() == images * (texts - k)  # the matrices say what is compared


# -- protocols --------------------------------------------------------------------------------------------------------


def test_protocols_state_resolution_and_k():
    assert {name: (each.image_size, each.k) for name, each in PROTOCOLS.items()} == {
        "coco-zero-shot": (256, 256),
        "flickr30k-zero-shot": (256, 128),
        "flickr30k-zero-shot-coco-tuned": (384, 128),
        "coco-fine-tuned": (384, 256),
        "flickr30k-fine-tuned": (384, 128),
    }
    with pytest.raises(ValueError, match="'coco-finetuned'; did you mean 'coco-fine-tuned'"):
        retrieval_protocol("coco-finetuned")


class SizedProcessor:
    """Resizes pictures to the size of its image processor; the model gets the central 32 x 32 pixels."""

    def __init__(self) -> None:
        self.image_processor = type("Sized", (), {"size": {"height": 32, "width": 32}})()
        self.max_lengths: list[int] = []
        self.sizes: list[int] = []

    def __call__(self, images, return_tensors):
        size = self.image_processor.size["height"]
        self.sizes.append(size)
        pixels = [torch.from_numpy(np.array(image.resize((size, size)))).permute(2, 0, 1) / 255 for image in images]
        return {"pixel_values": torch.stack(pixels)}

    def tokenize_captions(self, texts, max_length, padding):
        self.max_lengths.append(max_length)
        ids = torch.tensor([[2, 5 + len(text)] for text in texts])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_a_protocol_sets_resolution_k_and_length(monkeypatch):
    processor, protocol = SizedProcessor(), retrieval_protocol("flickr30k-fine-tuned")
    data = make_data(images=130, texts=130)
    result = protocol.evaluate(ToyModel(), processor, data, bootstrap=3)
    assert result.k == 128 and result.score == "matching" and result.intervals
    assert processor.max_lengths == [30] and set(processor.sizes) == {384}
    assert processor.image_processor.size == {"height": 32, "width": 32}  # the caller's is as it was
    with pytest.raises(ValueError, match="lays down k: use evaluate_retrieval"):
        protocol.evaluate(ToyModel(), processor, data, k=16)
    with pytest.raises(ValueError, match="k = 128 .* has 9"):
        protocol.evaluate(ToyModel(), processor, make_data())


# -- median ranks and intervals ---------------------------------------------------------------------------------------


def test_median_rank_is_the_first_place_that_half_of_the_queries_reach():
    assert median_rank(torch.tensor([0])) == 1
    assert median_rank(torch.tensor([5, 0, 9])) == 6
    assert median_rank(torch.tensor([0, 0, 7, 9])) == 1
    assert median_rank(torch.tensor([-1, -1, -1, 3])) == 4  # unanswerable queries are left out


def ranks_and_groups(groups: int = 40, captions: int = 5):
    generator = torch.Generator().manual_seed(0)
    of_group = torch.randint(0, 14, (groups,), generator=generator)
    text_groups = torch.arange(groups).repeat_interleave(captions)
    return of_group, of_group[text_groups], torch.arange(groups), text_groups


def test_intervals_hold_the_figures_and_captions_of_an_image_go_together():
    ranks = ranks_and_groups()
    intervals = bootstrap_intervals(*ranks, samples=400)
    metrics = recall_metrics(ranks[0], ranks[1])
    assert set(intervals) == {*metrics, "image_to_text_median_rank", "text_to_image_median_rank"}
    for name, value in metrics.items():
        low, high = intervals[name]
        assert low <= value <= high and low < high, name
    # Every caption ranks as its image does, so 5 captions say no more than one: both intervals are equally wide.
    assert intervals["image_to_text_r5"] == pytest.approx(intervals["text_to_image_r5"])
    # As wide as the normal approximation of 40 independent images has it, within a third.
    p = metrics["image_to_text_r5"]
    width = intervals["image_to_text_r5"][1] - intervals["image_to_text_r5"][0]
    assert width == pytest.approx(2 * 1.96 * (p * (1 - p) / 40) ** 0.5, rel=1 / 3)
    low, high = intervals["image_to_text_median_rank"]
    assert 1 <= low <= median_rank(ranks[0]) <= high <= 14
    assert bootstrap_intervals(*ranks, samples=400) == intervals
    assert bootstrap_intervals(*ranks, samples=400, seed=1) != intervals
    assert bootstrap_intervals(*ranks, samples=400, level=0.5)["mean_recall"][1] < intervals["mean_recall"][1]


def test_blocks_of_draws_and_unanswerable_queries_change_nothing(monkeypatch):
    image_ranks, text_ranks, image_groups, text_groups = ranks_and_groups()
    whole = bootstrap_intervals(image_ranks, text_ranks, image_groups, text_groups, samples=50)
    monkeypatch.setattr("albef_hf.evaluation.bootstrap.WEIGHTS_AT_ONCE", 1000)
    nothing = torch.tensor([-1, -1])
    more = bootstrap_intervals(
        torch.cat([image_ranks, nothing]),
        torch.cat([text_ranks, nothing]),
        torch.cat([image_groups + 7, torch.tensor([0, 1])]),
        torch.cat([text_groups + 7, torch.tensor([2, 3])]),
        samples=50,
    )
    assert more == whole


def test_wrong_samples_and_levels_are_named():
    with pytest.raises(ValueError, match="samples >= 1 and 0 < level < 1, not 0 and 0.95"):
        bootstrap_intervals(*ranks_and_groups(), samples=0)
    with pytest.raises(ValueError, match="not 10 and 95"):
        bootstrap_intervals(*ranks_and_groups(), samples=10, level=95)
