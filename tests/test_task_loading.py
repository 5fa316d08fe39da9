"""The models of downstream tasks: which weights each starts from, and how it loads."""

import pytest
import torch
from helpers import tiny_model
from model_cases import TASKS, copies_equal_online, new
from safetensors import safe_open
from transformers import AutoModelForVisualQuestionAnswering

from albef_hf import (
    AlbefConfig,
    AlbefForImageTextClassification,
    AlbefForImageTextRetrieval,
    AlbefForPreTraining,
    AlbefForQuestionAnswering,
    AlbefForTextAssignment,
    AlbefForVisualEntailment,
    AlbefForVisualReasoning,
    AlbefModel,
)
from albef_hf.remote_code import AUTO_MAP

TAUGHT = TASKS[:-1]  # text assignment has no teacher


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory) -> tuple[AlbefForPreTraining, str]:
    """A pre-training model whose momentum copies differ from its weights, and its folder without them."""
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    folder = str(tmp_path_factory.mktemp("pretraining"))
    model.save_pretrained(folder)
    return model, folder


def layers_equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


NEW = {
    AlbefForImageTextRetrieval: "in the checkpoint but not used: cls.predictions",
    AlbefForQuestionAnswering: "copied from the embeddings and fusion layers where of equal shape: "
    "decoder.embeddings, decoder.encoder; in the checkpoint but not used: albef.temperature, albef.text_projection, "
    "albef.vision_projection, itm_head",
    AlbefForVisualEntailment: "in the checkpoint but not used: albef.temperature, albef.text_projection, "
    "albef.vision_projection, cls.predictions, itm_head; new, random: classifier.dense, classifier.output",
    AlbefForImageTextClassification: "in the checkpoint but not used: albef.temperature, albef.text_projection, "
    "albef.vision_projection, cls.predictions, itm_head; new, random: classifier.dense, classifier.output",
    AlbefForVisualReasoning: "copied from the layer before, which reads the first image: albef.text_model; in the "
    "checkpoint but not used: albef.temperature, albef.text_projection, albef.vision_projection, cls.predictions, "
    "itm_head; new, random: classifier.dense, classifier.output",
    AlbefForTextAssignment: "copied from the layer before, which reads the first image: albef.text_model; in the "
    "checkpoint but not used: cls.predictions, itm_head; new, random: assignment_head",
}


@pytest.mark.parametrize("kind", TASKS)
def test_a_task_starts_from_a_pretraining_folder(kind, pretraining, tmp_path):
    source, folder = pretraining
    model = kind.from_pretrained(folder)
    assert model.loading_report == NEW[kind]
    assert layers_equal(model.albef.vision_model, source.albef.vision_model)
    ours, theirs = model.albef.text_model, source.albef.text_model
    assert layers_equal(ours.embeddings, theirs.embeddings) and layers_equal(ours.text_layers, theirs.text_layers)
    images = ours.config.images_per_text
    assert len(ours.fusion_layers) == images * 2
    for index, layer in enumerate(ours.fusion_layers):
        assert layers_equal(layer, theirs.fusion_layers[index // images])
    if kind is AlbefForQuestionAnswering:
        assert layers_equal(model.decoder.embeddings, theirs.embeddings)
        assert layers_equal(model.decoder.cls, source.cls)
        # Image tokens are wider than the text here: keys and values of cross-attention cannot be copied.
        for own, other in zip(model.decoder.encoder.layer, theirs.fusion_layers, strict=True):
            assert layers_equal(own.attention, other.attention) and layers_equal(own.output, other.output)
            assert layers_equal(own.intermediate, other.intermediate)
            copied, given = own.crossattention.state_dict(), other.crossattention.state_dict()
            kept = [name for name in copied if not name.startswith(("self.key", "self.value"))]
            assert len(kept) == 6 and all(torch.equal(copied[name], given[name]) for name in kept)
    if kind is AlbefForImageTextRetrieval:
        assert layers_equal(model.itm_head, source.itm_head)
    if kind in TAUGHT:
        assert copies_equal_online(model)
        assert not any(parameter.requires_grad for parameter in model.momentum_copy.parameters())
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as handle:  # under its own names, not under the source's
        names = set(handle.keys())
    assert not any(name.startswith(("cls.", "momentum_copy.", "image_queue.")) for name in names)
    again = kind.from_pretrained(tmp_path)
    assert again.loading_report == "every weight was in the checkpoint"
    for key, tensor in model.state_dict().items():
        assert "queue" in key or torch.equal(tensor, again.state_dict()[key]), key


def test_no_layer_is_moved_twice_when_layers_are_repeated(tmp_path):
    source = tiny_model(text_config={"num_hidden_layers": 6})
    source.save_pretrained(tmp_path)
    layers = AlbefForTextAssignment.from_pretrained(tmp_path).albef.text_model.fusion_layers
    assert len(layers) == 8
    for index, layer in enumerate(layers):
        assert layers_equal(layer, source.albef.text_model.fusion_layers[index // 2])


def test_a_decoder_as_wide_as_the_image_is_a_full_copy(tmp_path):
    changes = {"text_config": {"hidden_size": 24, "num_attention_heads": 3}}
    source = tiny_model(**changes)
    with torch.no_grad():  # biases start at 0 and norms at 1, in a decoder that nothing is copied into too
        for parameter in source.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    source.save_pretrained(tmp_path)
    model = AlbefForQuestionAnswering.from_pretrained(tmp_path)
    assert layers_equal(model.decoder.encoder.layer, source.albef.text_model.fusion_layers)
    assert copies_equal_online(model)


@pytest.mark.parametrize("kind", TAUGHT)
def test_a_folder_with_momentum_copies_gives_the_teacher_what_it_has(kind, pretraining, tmp_path):
    source, _ = pretraining
    source.save_pretrained(tmp_path, save_momentum=True)
    model = kind.from_pretrained(tmp_path)
    assert layers_equal(model.momentum_copy.vision_model, source.momentum_copy.vision_model)
    first, images = model.config.text_config.fusion_layer, model.config.text_config.images_per_text
    for index, layer in enumerate(model.momentum_copy.text_model.encoder.layer[first:]):
        if index % images == 0:
            assert layers_equal(layer, source.momentum_copy.text_model.encoder.layer[first + index // images])
    for name in model.online_modules().keys() & {"classifier", "decoder"}:  # absent there
        copied, online = model.momentum_copy.get_submodule(name), model.online_modules()[name]
        if name == "decoder":
            assert layers_equal(copied.cls, source.momentum_copy.cls)
            copied, online = copied.encoder, online.encoder
        assert layers_equal(copied, online)


def test_text_assignment_leads_to_visual_reasoning(tmp_path):
    source = new(AlbefForTextAssignment)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    source.save_pretrained(tmp_path)
    model = AlbefForVisualReasoning.from_pretrained(tmp_path)
    assert layers_equal(model.albef.text_model, source.albef.text_model) and copies_equal_online(model)


def test_the_towers_of_a_task_load_by_themselves(tmp_path):
    model = new(AlbefForVisualReasoning)
    model.save_pretrained(tmp_path)
    towers = AlbefModel.from_pretrained(tmp_path)
    assert layers_equal(towers.text_model, model.albef.text_model)
    assert towers.loading_report == (
        "in the checkpoint but not used: classifier.dense, classifier.output; "
        "new, random: temperature, text_projection, vision_projection"
    )


def test_the_auto_class_of_questions_is_registered(tmp_path):
    assert AUTO_MAP["AutoModelForVisualQuestionAnswering"].endswith(".AlbefForQuestionAnswering")
    new(AlbefForQuestionAnswering).save_pretrained(tmp_path)
    assert isinstance(AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path), AlbefForQuestionAnswering)


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        (AlbefForImageTextRetrieval, 209_560_835),
        (AlbefForQuestionAnswering, 290_336_058),
        (AlbefForVisualReasoning, 259_381_250),
        (AlbefForVisualEntailment, 209_758_467),
    ],
)
def test_base_configuration_has_the_published_sizes(kind, count):
    vision = {"model_type": "vit", "image_size": 384, "layer_norm_eps": 1e-6}
    with torch.device("meta"):
        model = kind(AlbefConfig(vision_config=vision))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count


@pytest.mark.parametrize("model_class", [AlbefForVisualReasoning, AlbefForTextAssignment])
def test_each_of_six_fusion_layers_becomes_its_own_pair(model_class, tmp_path):
    """At the published depth a layer that is renamed twice, or to another's place, is one of twelve."""
    source = new(AlbefForPreTraining, text_config={"num_hidden_layers": 12, "fusion_layer": 6})
    with torch.no_grad():
        for index, layer in enumerate(source.albef.text_model.encoder.layer):
            for parameter in layer.parameters():
                parameter.fill_(index + 1)
    source.reset_momentum()
    source.save_pretrained(tmp_path, save_momentum=True)
    model = model_class.from_pretrained(tmp_path)
    text_models = [model.albef.text_model]
    if model_class is AlbefForVisualReasoning:
        text_models.append(model.momentum_copy.text_model)
    expected = [1, 2, 3, 4, 5, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12]
    for text_model in text_models:
        found = [
            {value for p in layer.parameters() for value in p.unique().tolist()} for layer in text_model.encoder.layer
        ]
        assert found == [{value} for value in expected]
        for index in range(6, 18, 2):
            one, other = (text_model.encoder.layer[i].crossattention.self for i in (index, index + 1))
            assert (one.key.weight is other.key.weight) and one.query.weight is not other.query.weight
