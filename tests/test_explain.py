"""Heat maps: recorded values, a model left as it was, pictures, and boxes from them."""

import numpy as np
import pytest
import torch
from helpers import load_reference, reference_model, tiny_model, to_double
from PIL import Image
from transformers.models.vit import modeling_vit

from albef_hf.evaluation.boxes import (
    center_box,
    check_box,
    grounding_accuracy,
    hottest_region,
    intersection_over_union,
    random_box_accuracy,
    score_proposals,
)
from albef_hf.evaluation.explain import explain, heat_maps, overlay, to_image_size
from albef_hf.evaluation.grounding import AlbefGrounder, GroundingSample, evaluate_grounding
from albef_hf.modeling_albef_attention import eager_attention_forward

IMAGE = Image.new("RGB", (40, 20), "white")


@pytest.fixture(scope="module")
def recorded():
    state, inputs, outputs, sizes = load_reference("grounding_gradcam")
    return (
        {attention: reference_model(state, sizes, attention).eval() for attention in ("sdpa", "eager")},
        inputs,
        outputs,
    )


def assert_exact(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-9 and expected.abs().max() > 1e-6


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("mode", ["itm", "itc"])
def test_maps_agree_with_the_recorded_values(recorded, mode, attention, monkeypatch):
    monkeypatch.setattr(modeling_vit, "eager_attention_forward", eager_attention_forward)  # its softmax is float32
    models, inputs, outputs = recorded
    inputs = to_double(inputs)
    found = heat_maps(models[attention], **inputs, mode=mode)
    if mode == "itm":
        assert_exact(found.per_token, outputs["gradcam_itm_per_token"])
        assert_exact(found.scores, outputs["itm_logits"][:, 1])
    assert_exact(found.sentence, outputs[f"gradcam_{mode}"])


def pairs(model, size=2, height=32, width=32):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 60, (size, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, 5:] = 0
    return torch.randn(size, 3, height, width, generator=generator), ids, mask


@pytest.mark.parametrize("mode", ["itm", "itc"])
def test_the_model_is_left_as_it_was_and_any_context_will_do(mode):
    model = tiny_model().train()
    frozen = model.itm_head.weight.requires_grad_(False)
    inputs = pairs(model)
    modes = {name: module.training for name, module in model.named_modules()}
    configs = {id(module): module.config for module in model.modules() if hasattr(module, "config")}
    implementations = {
        id(module): module.config._attn_implementation for module in model.modules() if hasattr(module, "config")
    }
    first = heat_maps(model, *inputs, mode=mode)
    with torch.inference_mode():
        second = heat_maps(model, *(tensor.clone() for tensor in inputs), mode=mode)
    assert torch.equal(first.sentence, second.sentence) and first.sentence.abs().max() > 0
    assert {name: module.training for name, module in model.named_modules()} == modes
    for module in model.modules():
        if hasattr(module, "config"):
            assert module.config is configs[id(module)]
            assert module.config._attn_implementation == implementations[id(module)]
        assert "recorded_weights" not in module.__dict__
    assert not frozen.requires_grad and model.itm_head.bias.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_shapes_follow_the_image_and_padding_is_cold():
    model = tiny_model()
    found = heat_maps(model, *pairs(model, height=32, width=64))
    assert found.per_token.shape == (2, 7, 2, 4) and found.sentence.shape == (2, 2, 4)
    assert (found.per_token[1, 5:] == 0).all() and (found.per_token[1, :5] != 0).any()
    assert not torch.equal(found.sentence, heat_maps(model, *pairs(model, height=32, width=64), layer=2).sentence)


@pytest.mark.parametrize(("layers", "fusion_layer", "expected"), [(12, 6, 8), (4, 2, 3), (6, 3, 4), (3, 2, 2)])
def test_the_layer_a_third_into_the_fusion_encoder_explains(layers, fusion_layer, expected):
    model = tiny_model(text_config={"num_hidden_layers": layers, "fusion_layer": fusion_layer})
    shown = []  # the layers whose attention weights are kept; all others do not return them
    for index in range(fusion_layer, layers):
        model.albef.text_model.encoder.layer[index].crossattention.self.register_forward_hook(
            lambda _, __, output, index=index: shown.append(index) if output[1] is not None else None
        )
    found = heat_maps(model, *pairs(model))
    assert shown == [expected]
    for index in range(fusion_layer, layers):
        other = heat_maps(model, *pairs(model), layer=index)
        assert shown[-1] == index
        assert torch.equal(other.per_token, found.per_token) == (index == expected)


def test_what_cannot_be_explained_is_named():
    model = tiny_model()
    pixels, ids, mask = pairs(model)
    with pytest.raises(ValueError, match="one of itm, itc, not 'mlm'"):
        heat_maps(model, pixels, ids, mask, mode="mlm")
    with pytest.raises(ValueError, match="a fusion layer, 2 to 3, not 1"):
        heat_maps(model, pixels, ids, mask, layer=1)
    with pytest.raises(ValueError, match="2 images and 1 texts"):
        heat_maps(model, pixels, ids[:1])
    model.albef.vision_model.pooling = "mean"
    with pytest.raises(ValueError, match="'itc' needs .* not a 'vit' backbone pooled by 'mean'"):
        heat_maps(model, pixels, ids, mask, mode="itc")


class Words:
    """Words as numbers; pictures resized to 32 x 32."""

    class tokenizer:
        @staticmethod
        def convert_ids_to_tokens(ids):
            return [f"w{i}" for i in ids]

    def __call__(self, images, text, return_tensors):
        rows = [[2, *(5 + len(word) for word in words.split())] for words in text]
        longest = max(map(len, rows))
        pixels = [np.asarray(image.convert("RGB").resize((32, 32)), dtype=np.float32) / 255 for image in images]
        return {
            "pixel_values": torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2),
            "input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
        }


def test_explanations_have_words_maps_and_pictures():
    first, second = explain(tiny_model(), Words(), [IMAGE, IMAGE], ["one longer two", "one"])
    assert first.words == ["w2", "w8", "w11", "w8"] and first.maps.shape == (4, 2, 2)
    assert second.words == ["w2", "w8"] and second.maps.shape == (2, 2, 2)
    assert first.picture().size == first.picture(1).size == IMAGE.size
    (sentence_only,) = explain(tiny_model(), Words(), IMAGE, "one", mode="itc")
    assert sentence_only.words == [] and sentence_only.maps.shape == (0, 2, 2)


def test_the_picture_is_red_where_the_map_is_hot():
    heat = torch.zeros(2, 4)
    heat[0, 3] = 1
    picture = np.asarray(overlay(IMAGE, heat, opacity=1.0), dtype=int)
    assert picture.shape == (20, 40, 3)
    hot, cold = picture[2, 37], picture[17, 3]
    assert hot[0] > 100 and hot[2] < 50 and cold[2] > 100 and cold[0] < 50
    assert (np.asarray(overlay(IMAGE, heat, opacity=0.0)) == 255).all()


# -- boxes ------------------------------------------------------------------------------------------------------------


def test_overlap_of_boxes():
    square = np.array([0.0, 0, 10, 10])
    others = np.array([[0, 0, 10, 10], [5, 0, 10, 10], [10, 0, 5, 5], [20, 20, 1, 1], [0, 0, 0, 5], [2, 2, 5, 5]])
    assert intersection_over_union(square, others) == pytest.approx([1, 50 / 150, 0, 0, 0, 0.25])


def test_accuracy_counts_half_an_overlap_as_right():
    references = np.array([[0, 0, 10, 10]] * 3)
    predicted = np.array([[0, 0, 10, 5], [0, 0, 10, 4.9], [0, 0, 10, 10]])
    assert grounding_accuracy(predicted, references) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match=r"\(1, 4\) do not fit references of shape \(3, 4\)"):
        grounding_accuracy(predicted[:1], references)


def test_proposals_are_scored_by_heat_over_the_root_of_the_area():
    generator = np.random.default_rng(0)
    heat = generator.random((30, 50))
    boxes = np.array([[3.7, 2.2, 10.6, 5.5], [0, 0, 50, 30], [45, 25, 5, 5]])
    expected = []
    for x, y, w, h in boxes:
        inside = heat[int(y) : int(y + h), int(x) : int(x + w)].sum()
        expected.append(inside / (w * h) ** 0.5)
    assert score_proposals(heat, boxes) == pytest.approx(expected)
    assert score_proposals(heat, boxes, exponent=0)[1] == pytest.approx(heat.sum())


def test_the_hottest_region_is_connected():
    heat = torch.tensor([[0.9, 0.8, 0.0, 0.0], [0.0, 0.7, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    # Three warm patches hold more than the single hottest one; they span two rows and two columns.
    assert hottest_region(heat, 30, 40).tolist() == [0, 0, 20, 20]
    assert hottest_region(heat, 30, 40, threshold=0.95).tolist() == [30, 10, 10, 10]


def test_baselines_need_no_model():
    boxes = np.array([[0, 0, 4, 4], [8, 3, 4, 4], [16, 0, 4, 4], [8, 4, 4, 4]])
    assert center_box(20, 10, boxes).tolist() == [8, 3, 4, 4]
    assert center_box(20, 10).tolist() == [5, 2.5, 10, 5]
    # Of four proposals two overlap enough with the second; none with the other reference.
    references = np.array([[8, 3, 4, 4], [0, 8, 2, 2]])
    assert random_box_accuracy([boxes, boxes], references) == pytest.approx((2 / 4 + 0) / 2)


@pytest.mark.parametrize("box", [[-2, 0, 5, 5], [0, 0, 0, 5], [38, 0, 5, 5], [0, 0, 5], [0, 0, float("nan"), 5]])
def test_a_box_outside_its_image_is_named(box):
    with pytest.raises(ValueError, match="row 3: .*box"):
        check_box(box, 40, 20, "row 3")
    check_box([0, 0, 40.4, 20], 40, 20, "row 3")


def test_the_map_is_enlarged_by_bicubic_interpolation():
    heat = torch.rand(2, 3, 3)
    expected = torch.nn.functional.interpolate(heat[:, None], (9, 12), mode="bicubic")[:, 0]
    assert torch.allclose(to_image_size(heat, 9, 12), expected)


def test_grounding_chooses_the_proposal_its_map_points_to(monkeypatch):
    heat = torch.zeros(1, 4, 4)
    heat[0, 0, 3] = 1  # upper right
    monkeypatch.setattr(
        "albef_hf.evaluation.grounding.heat_maps",
        lambda model, pixels, *rest: type("M", (), {"sentence": heat.expand(len(pixels), -1, -1)})(),
    )
    grounder = AlbefGrounder(tiny_model(), Words())
    boxes = [[0, 0, 10, 5], [30, 0, 10, 5], [0, 0, 40, 20]]
    assert grounder(IMAGE, "there", boxes).box.tolist() == [30, 0, 10, 5]
    assert grounder(IMAGE, "there").box.tolist() == [30, 0, 10, 5]
    samples = [GroundingSample(IMAGE, "there", box=boxes[1], proposals=boxes)] * 2 + [
        GroundingSample(IMAGE, "elsewhere", box=boxes[0], proposals=boxes)
    ]
    metrics = evaluate_grounding(grounder, samples, batch_size=2)
    assert metrics["accuracy"] == pytest.approx(2 / 3) and metrics["random_box_accuracy"] == pytest.approx(1 / 3)
    assert metrics["best_proposal_accuracy"] == 1 and metrics["centre_box_accuracy"] == 0
    with pytest.raises(ValueError, match="sample 1 .'x'. has no box"):
        evaluate_grounding(grounder, [samples[0], GroundingSample(IMAGE, "x")])
    with pytest.raises(ValueError, match="proposal 1 of 'x': box .* 40 x 20"):
        grounder(IMAGE, "x", [[0, 0, 5, 5], [39, 0, 5, 5]])


def test_a_real_map_grounds():
    metrics = evaluate_grounding(
        AlbefGrounder(tiny_model(), Words()),
        [GroundingSample(IMAGE, "one two", box=[0, 0, 10, 5], proposals=[[0, 0, 10, 5], [20, 0, 10, 5]])],
    )
    assert metrics["accuracy"] in (0.0, 1.0) and metrics["random_box_accuracy"] == 0.5


def test_the_region_of_a_map_without_heat_is_the_whole_image():
    assert hottest_region(torch.zeros(2, 3), 40, 60).tolist() == [0, 0, 60, 40]
