"""What every model of a downstream task promises."""

import inspect
import json
import sys
from collections.abc import Iterator

import pytest
import torch
from helpers import tiny_model, to_double
from safetensors import safe_open
from task_models import TASKS, TAUGHT, double, new, result, task_batch
from transformers import AutoModelForVisualQuestionAnswering, dynamic_module_utils
from transformers.dynamic_module_utils import get_class_from_dynamic_module

import albef_hf
from albef_hf import (
    AlbefConfig,
    AlbefForImageTextRetrieval,
    AlbefForPreTraining,
    AlbefForQuestionAnswering,
    AlbefForTextAssignment,
    AlbefForVisualEntailment,
    AlbefForVisualReasoning,
    AlbefModel,
)
from albef_hf.remote_code import AUTO_MAP
from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.checkpoints import latest_checkpoint
from albef_hf.training.loop import build_accelerator, train


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


# -- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TASKS)
def test_save_and_load_give_equal_outputs(kind, tmp_path):
    model = new(kind).eval()
    model.save_pretrained(tmp_path)
    # transformers builds on the meta device and fills in
    loaded, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert loaded.loading_report == "every weight was in the checkpoint"
    assert not any(tensor.is_meta for tensor in loaded.state_dict().values())
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {name for name, parameter in loaded.named_parameters() if not parameter.requires_grad} == frozen
    loaded.eval()
    if kind in TAUGHT:  # teachers start equal on both sides
        assert copies_equal_online(loaded)
    if kind is AlbefForImageTextRetrieval:
        loaded.image_queue, loaded.text_queue = model.image_queue, model.text_queue
    for one, other in zip(model(**task_batch(kind)).to_tuple(), loaded(**task_batch(kind)).to_tuple(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", TASKS)
def test_two_runs_are_equal_and_change_nothing(kind):
    model = new(kind).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    one, other = model(**task_batch(kind)), model(**task_batch(kind))
    other.loss.backward()
    assert torch.equal(one.loss, other.loss) and torch.equal(result(one), result(other))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", TASKS)
def test_padding_changes_nothing(kind):
    model, batch = double(kind), to_double(task_batch(kind))
    batch["attention_mask"][:, 6:] = 0
    short = {**batch, "input_ids": batch["input_ids"][:, :6], "attention_mask": batch["attention_mask"][:, :6]}
    if kind is AlbefForQuestionAnswering:
        ids, mask = batch["answer_input_ids"], batch["answer_attention_mask"]
        batch["answer_input_ids"] = torch.nn.functional.pad(ids, (0, 2), value=9)
        batch["answer_attention_mask"] = torch.nn.functional.pad(mask, (0, 2))
    torch.testing.assert_close(model(**short).loss, model(**batch).loss, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", TASKS)
def test_sdpa_equals_eager(kind):
    model, batch = double(kind), to_double(task_batch(kind))
    fused = model(**batch)
    model.set_attn_implementation("eager")
    eager = model(**batch)
    # 1e-6: transformers' ViT takes its eager softmax in float32.
    torch.testing.assert_close(result(eager), result(fused), atol=1e-6, rtol=0)
    torch.testing.assert_close(eager.loss, fused.loss, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", TASKS)
def test_every_trainable_parameter_receives_a_gradient_and_moves(kind):
    model = new(kind)
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-3)
    for seed in range(3):  # three batches: every word and position is met by the optimizer's first moments
        model(**task_batch(kind, seed)).loss.backward()
        assert all(parameter.grad is not None for parameter in trainable.values())
        optimizer.step()
    still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert still == before.keys() - trainable.keys()


@pytest.mark.parametrize("kind", TASKS)
def test_gradient_checkpointing_changes_nothing(kind):
    gradients = []
    for checkpointing in (False, True):
        model = double(kind).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**to_double(task_batch(kind))).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_half_precision_keeps_losses_in_full_precision():
    for kind in TASKS:
        model = new(kind)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(**task_batch(kind))
        assert output.loss.dtype == torch.float32 and result(output).dtype == torch.float32
        torch.testing.assert_close(output.loss, model(**task_batch(kind)).loss, atol=0.1, rtol=0.03)


@pytest.mark.parametrize("kind", TASKS)
def test_alpha_weighs_the_teacher(kind):
    model = new(kind).eval()
    if kind is AlbefForTextAssignment:
        assert model.schedules(10, 100) == {}
        return
    with torch.no_grad():
        for parameter in model.momentum_copy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    hard, half, soft = (model(**task_batch(kind), alpha=alpha).loss.item() for alpha in (0.0, 0.5, 1.0))
    assert half == pytest.approx((hard + soft) / 2, rel=1e-5) and abs(hard - soft) > 1e-5
    assert model(**task_batch(kind)).loss.item() == pytest.approx(hard + 0.4 * (soft - hard), rel=1e-5)
    assert [model.schedules(10, 100)["alpha"][step] for step in (0, 5, 99)] == pytest.approx([0.0, 0.2, 0.4])


def test_losses_start_near_chance():
    for kind in TASKS:
        model = new(kind).eval()
        output = model(**task_batch(kind), alpha=0.0)
        for name, value in model.chance_losses(4).items():
            if name != "loss_itc":  # three rows share a target or have two
                assert output[name].item() == pytest.approx(value, rel=0.15), (kind.__name__, name)


class _Batches:
    """Training data of one kind of batch."""

    batch_size, rows, steps_per_epoch = 4, 16, 4

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def batches(self, start: int = 0) -> Iterator[dict]:
        while True:
            yield {**task_batch(self.kind, start), "rejected": []}
            start += 1

    def to_device(self, batch: dict, device: torch.device) -> dict:
        return batch


@pytest.mark.parametrize("kind", TASKS)
def test_the_loop_trains_saves_and_resumes(kind, tmp_path):
    models = []
    for name, steps in (("straight", (4,)), ("resumed", (2, 4))):
        (tmp_path / name).mkdir()
        for stop in steps:
            arguments = TrainingArguments(
                output_dir=str(tmp_path / name), batch_size=4, max_steps=stop, log_every=1, save_every=2, resume=True
            )
            model = train(new(kind), _Batches(kind), arguments, build_accelerator(arguments))
        models.append(model.state_dict())
    assert latest_checkpoint(tmp_path / "straight" / "checkpoints").name == "step-00000004"
    for key, tensor in models[0].items():
        assert torch.equal(tensor, models[1][key]), key
    rows = [json.loads(line) for line in (tmp_path / "straight" / "log.jsonl").read_text().splitlines()]
    assert [any("accuracy" in name for name in row) for row in rows if row["kind"] == "train"] == [True] * 4


# -- starting from pre-training ---------------------------------------------------------------------------------------


def copies_equal_online(model) -> bool:
    return all(
        torch.equal(tensor, model.momentum_copy.get_submodule(name).state_dict()[key])
        for name, module in model.online_modules().items()
        for key, tensor in module.state_dict().items()
    )


def layers_equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


NEW = {
    AlbefForImageTextRetrieval: "in the checkpoint but not used: cls.predictions",
    AlbefForQuestionAnswering: "copied from the embeddings and fusion layers where of equal shape: "
    "decoder.embeddings, decoder.encoder; in the checkpoint but not used: albef.temperature, albef.text_projection, "
    "albef.vision_projection, itm_head",
    AlbefForVisualEntailment: "in the checkpoint but not used: albef.temperature, albef.text_projection, "
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


@pytest.fixture(scope="module")
def modules_of_folders(tmp_path_factory):
    """Where transformers copies the code of a folder to."""
    place = str(tmp_path_factory.mktemp("modules"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", place)
        patch.syspath_prepend(place)
        yield
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


@pytest.mark.parametrize("kind", TASKS)
def test_a_folder_loads_from_its_own_code(kind, tmp_path, modules_of_folders):
    model = new(kind).eval()
    folder = tmp_path / kind.__name__
    model.save_pretrained(folder)
    file = inspect.getmodule(kind).__name__.rpartition(".")[2]
    theirs = get_class_from_dynamic_module(f"{file}.{kind.__name__}", str(folder))
    assert theirs is not kind and theirs.__module__.startswith("transformers_modules")
    batch = task_batch(kind)
    scores = {key: batch[key] for key in ("input_ids", "pixel_values", "attention_mask")}
    if kind is AlbefForTextAssignment:
        scores |= {"assignment_draws": batch["assignment_draws"]}
    one, other = model(**scores).to_tuple(), theirs.from_pretrained(folder).eval()(**scores).to_tuple()
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


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


def test_all_tasks_are_importable_from_the_package():
    assert {kind.__name__ for kind in TASKS} <= set(albef_hf.__all__)
