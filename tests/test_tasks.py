"""What every model of a downstream task promises, and what each of them does that the others do not."""

import inspect
import json
import math
import sys
from collections.abc import Iterator
from copy import deepcopy
from functools import cache

import pytest
import torch
from helpers import answers, tiny_batch, tiny_config, tiny_model, to_double
from safetensors import safe_open
from transformers import AutoModelForVisualQuestionAnswering, PreTrainedModel, dynamic_module_utils
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

TASKS = (
    AlbefForImageTextRetrieval,
    AlbefForQuestionAnswering,
    AlbefForVisualEntailment,
    AlbefForVisualReasoning,
    AlbefForTextAssignment,
)
TAUGHT = TASKS[:-1]


def task_batch(kind: type, seed: int = 0) -> dict:
    """A training batch of four texts."""
    whole = tiny_batch(seed=seed)
    batch = {key: whole[key] for key in ("pixel_values", "input_ids", "attention_mask")}
    if kind is AlbefForImageTextRetrieval:
        batch |= {"image_ids": torch.tensor([7, 8, 7, 9]), "negative_draws": whole["negative_draws"]}
    elif kind is AlbefForQuestionAnswering:
        batch |= answers(seed=seed)
    elif kind is AlbefForTextAssignment:
        batch["assignment_draws"] = torch.rand(4, 3, generator=torch.Generator().manual_seed(seed))
    elif kind is AlbefForVisualReasoning:
        batch["pixel_values"] = torch.stack([batch["pixel_values"], batch["pixel_values"].roll(1, 0)], dim=1)
        batch["labels"] = torch.tensor([0, 1, 1, 0])
    else:
        batch["labels"] = torch.tensor([0, 1, 2, 1])
    return batch


def new(kind: type, **changes) -> PreTrainedModel:
    torch.manual_seed(0)
    return kind(tiny_config(**changes))


@cache
def _double(kind: type) -> PreTrainedModel:
    return new(kind).eval().double()


def double(kind: type) -> PreTrainedModel:
    return deepcopy(_double(kind))


def result(output) -> torch.Tensor:
    """The main output of a model."""
    for name in ("logits", "answer_logits", "itm_logits"):
        if output.get(name) is not None:
            return output[name]
    raise AssertionError("no logits")


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
        assert not hasattr(model, "step_arguments")
        return
    with torch.no_grad():
        for parameter in model.momentum_copy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    hard, half, soft = (model(**task_batch(kind), alpha=alpha).loss.item() for alpha in (0.0, 0.5, 1.0))
    assert half == pytest.approx((hard + soft) / 2, rel=1e-5) and abs(hard - soft) > 1e-5
    assert model(**task_batch(kind)).loss.item() == pytest.approx(hard + 0.4 * (soft - hard), rel=1e-5)
    assert [model.step_arguments(step, 10, 100)["alpha"] for step in (0, 5, 99)] == pytest.approx([0.0, 0.2, 0.4])


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


# -- retrieval --------------------------------------------------------------------------------------------------------


def test_retrieval_is_pretraining_without_words_that_shares_targets_among_texts_of_an_image(pretraining, tmp_path):
    source, _ = pretraining
    source.save_pretrained(tmp_path, save_momentum=True)
    retrieval = AlbefForImageTextRetrieval.from_pretrained(tmp_path).eval()
    shared = AlbefForPreTraining.from_pretrained(tmp_path, same_image="positive").eval()
    batch = task_batch(AlbefForImageTextRetrieval)
    for model in (retrieval, shared):
        model.enqueue(model(**batch, return_loss=True))  # the queue now holds the batch's images once more
    ours, theirs = retrieval(**batch), shared(**batch, return_loss=True)
    assert torch.equal(ours.loss_itc, theirs.loss_itc) and torch.equal(ours.loss_itm, theirs.loss_itm)
    assert ours.loss_itc != source.eval()(**batch, return_loss=True).loss_itc
    for row, other in ((0, 2), (2, 0)):  # two texts of image 7
        assert ours.negative_image_index[row] != other and ours.negative_text_index[row] != other


def test_the_published_code_lets_the_temperature_run_away():
    batch = task_batch(AlbefForImageTextRetrieval)
    for published, expected in ((False, 0.001), (True, 0.0005)):
        model = new(AlbefForImageTextRetrieval, published=published)
        with torch.no_grad():
            model.albef.temperature.fill_(0.0005)
        assert model(**batch).temperature.item() == pytest.approx(expected)
        model.update_momentum()
        assert model.albef.temperature.item() == pytest.approx(expected)


# -- question answering -----------------------------------------------------------------------------------------------


def questions() -> dict:
    batch = to_double(task_batch(AlbefForQuestionAnswering))
    return {key: batch[key] for key in ("input_ids", "pixel_values", "attention_mask")}


def peaked() -> AlbefForQuestionAnswering:
    """A model with opinions: at random initialisation all words are almost equally likely."""
    model = double(AlbefForQuestionAnswering)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def test_a_batch_of_questions_equals_one_at_a_time():
    model, batch = double(AlbefForQuestionAnswering), to_double(task_batch(AlbefForQuestionAnswering))
    whole, total, first = model(**batch), 0.0, 0
    for row, count in enumerate(batch["answers_per_question"].tolist()):
        own = {key: batch[key][row : row + 1] for key in ("input_ids", "pixel_values", "attention_mask")}
        own |= {key: value[first : first + count] for key, value in batch.items() if key.startswith("answer_")}
        one = model(**own, answers_per_question=torch.tensor([count]))
        torch.testing.assert_close(one.answer_logits, whole.answer_logits[first : first + count], atol=1e-12, rtol=0)
        total, first = total + one.loss.item(), first + count
    assert total / 4 == pytest.approx(whole.loss.item(), abs=1e-12)


def test_the_loss_is_the_weighted_log_probability_of_the_answers():
    model, batch = peaked(), to_double(task_batch(AlbefForQuestionAnswering))
    output = model(**batch, alpha=0.0)
    ids, mask = batch["answer_input_ids"], batch["answer_attention_mask"]
    expected, tokens = 0.0, []
    for answer in range(5):
        logits = output.answer_logits[answer].log_softmax(1)
        losses = [-logits[i, ids[answer, i + 1]].item() for i in range(4) if mask[answer, i + 1]]
        expected += batch["answer_weights"][answer].item() * sum(losses)
        tokens += losses
    assert output.loss.item() == pytest.approx(expected / 4, abs=1e-9)
    assert output.loss_per_token.item() == pytest.approx(sum(tokens) / len(tokens), abs=1e-9)
    assert model(**batch).loss_per_token.item() == pytest.approx(sum(tokens) / len(tokens), abs=1e-9)


def test_a_question_is_read_once_for_all_its_answers():
    model = double(AlbefForQuestionAnswering)
    rows = []
    for layer in (model.albef.text_model.fusion_layers[0], model.decoder.encoder.layer[0]):
        layer.crossattention.self.key.register_forward_hook(lambda _, states, __: rows.append(states[0].shape[0]))
    model(**to_double(task_batch(AlbefForQuestionAnswering)))
    assert rows == [4, 4]  # five answers
    candidates = to_double(answers(9))["answer_input_ids"]
    model.rank_answers(**questions(), candidate_input_ids=candidates, k=7)
    assert rows == [4, 4] * 2
    model.generate(**questions(), bos_token_id=2)
    assert rows == [4, 4] * 3


def test_the_decoder_is_causal_and_reads_the_image():
    model, batch = peaked(), to_double(task_batch(AlbefForQuestionAnswering))
    before = model(**batch).answer_logits
    changed = deepcopy(batch)
    changed["answer_input_ids"][0, 2] = 5 + (changed["answer_input_ids"][0, 2] - 4) % 55
    after = model(**changed).answer_logits
    torch.testing.assert_close(after[0, :2], before[0, :2], atol=1e-12, rtol=0)
    assert (after[0, 2:] - before[0, 2:]).abs().min(1).values.max() > 1e-6
    changed = {**batch, "pixel_values": batch["pixel_values"].roll(1, 0)}
    assert (model(**changed).answer_logits - before).abs().amax((1, 2)).min() > 1e-6


def next_tokens(model, row: int, prefixes: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of what follows each prefix, by the training path."""
    own = {key: value[row : row + 1] for key, value in questions().items()}
    count = len(prefixes)
    answers_given = {
        "answer_input_ids": torch.nn.functional.pad(prefixes, (0, 1)),
        "answer_weights": torch.ones(count),
        "answers_per_question": torch.tensor([count]),
    }
    return model(**own, **answers_given, alpha=0.0).answer_logits[:, -1].log_softmax(1)


@pytest.mark.parametrize("published", [False, True])
def test_ranking_equals_scoring_each_answer(published):
    model = peaked()
    model.config.published = published
    lists = answers(6, seed=4)
    ids, mask = lists["answer_input_ids"], lists["answer_attention_mask"]
    ranking = model.rank_answers(
        **questions(), candidate_input_ids=ids, candidate_attention_mask=mask, k=5, batch_size=10
    )
    for row in range(4):
        tokens = [next_tokens(model, row, ids[:, :i]).gather(1, ids[:, i : i + 1]).squeeze(1) for i in range(1, 5)]
        probability = (torch.stack(tokens, dim=1) * mask[:, 1:]).sum(1).tolist()
        kept = tokens[0].topk(5).indices.tolist()
        score = {answer: probability[answer] + published * tokens[0][answer].item() for answer in kept}
        best = sorted(kept, key=score.get, reverse=True)
        assert ranking.answer_ids[row].tolist() == best
        expected = torch.tensor([probability[answer] for answer in best], dtype=torch.float64)
        torch.testing.assert_close(ranking.log_probabilities[row], expected, atol=1e-10, rtol=0)
        soft = torch.tensor([score[answer] for answer in best], dtype=torch.float64).softmax(0)
        torch.testing.assert_close(ranking.probabilities[row], soft, atol=1e-10, rtol=0)


def test_free_answers_are_the_most_probable_tokens():
    model = peaked()
    model.config.text_config.eos_token_id = model.config.text_config.bos_token_id = None
    with pytest.raises(ValueError, match="bos_token_id is None, which is none of the 60 tokens"):
        model.generate(**questions())
    written = model.generate(**questions(), bos_token_id=2, eos_token_id=3, max_new_tokens=4)
    for row, tokens in enumerate(written):
        prefix = tokens[:1]
        while len(prefix) < len(tokens):
            following = next_tokens(model, row, prefix[None])[0].argmax()[None]
            prefix = torch.cat([prefix, torch.zeros_like(following) if 3 in prefix else following])
        assert torch.equal(tokens, prefix)


def test_beam_search_over_all_words_finds_the_most_probable_answer():
    model = peaked()
    found = model.generate(
        **questions(), bos_token_id=2, eos_token_id=None, num_beams=60, max_new_tokens=2, length_penalty=0.0
    )
    for row in range(4):
        words = torch.stack([torch.full((60,), 2), torch.arange(60)], dim=1)
        both = next_tokens(model, row, words[:1, :1]).T + next_tokens(model, row, words)
        assert found[row].tolist() == [2, *divmod(int(both.argmax()), 60)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": torch.zeros(3, 3, 32, 32)}, "3 images and 4 texts"),
        ({"answer_weights": None}, "answer_weights are missing: one for each of the 5 answers"),
        ({"answer_weights": torch.ones(4)}, "5 answers need as many answer_weights"),
        ({"answers_per_question": None}, "5 answers to 4 questions: answers_per_question must say"),
        ({"answers_per_question": torch.ones(3)}, r"answers_per_question is \(3,\), but there are 4 questions"),
        ({"answers_per_question": torch.tensor([1, 1, 1, 1])}, "add up to 4, but there are 5 answers"),
        ({"answer_input_ids": torch.ones(5, 1)}, "an answer needs two tokens or more"),
        ({"input_ids": None}, "input_ids are missing"),
    ],
)
def test_wrong_questions_and_answers_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        new(AlbefForQuestionAnswering)(**{**task_batch(AlbefForQuestionAnswering), **change})


def test_wrong_candidates_are_named():
    model = double(AlbefForQuestionAnswering)
    for candidates, k, message in (
        (torch.zeros(0, 3, dtype=torch.int64), 2, "need two tokens or more"),
        (torch.tensor([[2, 5], [3, 5]]), 2, "must all begin with the same token"),
        (torch.tensor([[2, 5], [2, 6]]), 0, "k must be 1 or more, not 0"),
    ):
        with pytest.raises(ValueError, match=message):
            model.rank_answers(**questions(), candidate_input_ids=candidates, k=k)
    with pytest.raises(ValueError, match="use_cache is not supported"):
        model.generate(**questions(), bos_token_id=2, use_cache=True)


# -- classes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AlbefForVisualEntailment, AlbefForVisualReasoning])
def test_a_batch_of_texts_equals_one_at_a_time(kind):
    model, batch = double(kind), to_double(task_batch(kind))
    rows = [model(**{key: value[row : row + 1] for key, value in batch.items()}).logits for row in range(4)]
    torch.testing.assert_close(torch.cat(rows), model(**batch).logits, atol=1e-12, rtol=0)


def test_classes_have_names_and_absent_labels_do_not_count():
    model = double(AlbefForVisualEntailment)
    assert model.config.id2label == {0: "contradiction", 1: "neutral", 2: "entailment"}
    assert new(AlbefForVisualReasoning).config.num_labels == 2
    batch = to_double(task_batch(AlbefForVisualEntailment))
    batch["labels"][1:] = -100
    one = {key: value[:1] for key, value in batch.items()}
    torch.testing.assert_close(model(**batch).loss, model(**one).loss)
    assert model(**{**batch, "labels": None}).loss is None


def test_pairs_of_layers_share_keys_and_values_and_nothing_else(tmp_path):
    model = new(AlbefForVisualReasoning)
    for text_model in (model.albef.text_model, model.momentum_copy.text_model):
        first, second = text_model.fusion_layers[:2]
        attention, other = first.crossattention.self, second.crossattention.self
        assert attention.key.weight is other.key.weight and attention.value.bias is other.value.bias
        assert attention.query.weight is not other.query.weight
    model(**task_batch(AlbefForVisualReasoning)).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5).step()
    model.update_momentum()
    model.save_pretrained(tmp_path, save_momentum=True)
    loaded = AlbefForVisualReasoning.from_pretrained(tmp_path)
    for text_model in (loaded.albef.text_model, loaded.momentum_copy.text_model):
        first, second = text_model.fusion_layers[:2]
        assert first.crossattention.self.key.weight is second.crossattention.self.key.weight
        assert not torch.equal(first.crossattention.self.query.weight, second.crossattention.self.query.weight)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[key]), key


def test_two_images_are_told_apart_and_projected_once_for_a_pair_of_layers():
    model, batch = double(AlbefForVisualReasoning), to_double(task_batch(AlbefForVisualReasoning))
    with torch.no_grad():
        for parameter in model.albef.parameters():  # the layers of a pair start equal, and then order means little
            parameter.add_(0.1 * torch.randn_like(parameter))
    rows = []
    for layer in model.albef.text_model.fusion_layers:
        layer.crossattention.self.key.register_forward_hook(lambda _, states, __: rows.append(states[0].shape[0]))
    logits = model(**batch).logits
    assert rows == [8, 8]  # two pairs of layers, two images of four texts
    swapped = model(**{**batch, "pixel_values": batch["pixel_values"].flip(1)}).logits
    assert (swapped - logits).abs().min() > 1e-6
    text_model = model.albef.text_model
    tokens = model.albef.vision_model(batch["pixel_values"].flatten(0, 1)).tokens.unflatten(0, (4, 2))
    fused = text_model(batch["input_ids"], batch["attention_mask"], encoder_hidden_states=tokens).pooler_output
    torch.testing.assert_close(model.classifier(fused), logits, atol=1e-12, rtol=0)


def test_several_texts_in_a_row_share_an_image():
    text_model, batch = double(AlbefForVisualEntailment).albef.text_model, tiny_batch()
    states = text_model.encode_text(batch["input_ids"], batch["attention_mask"])
    tokens = torch.randn(2, 5, 24, dtype=torch.float64)
    shared = text_model.fuse(states, batch["attention_mask"], text_model.project_image_tokens(tokens))
    repeated = text_model.project_image_tokens(tokens.repeat_interleave(2, dim=0))
    torch.testing.assert_close(text_model.fuse(states, batch["attention_mask"], repeated), shared, atol=1e-12, rtol=0)


def test_text_assignment_draws_what_it_says():
    model, batch = double(AlbefForTextAssignment), to_double(task_batch(AlbefForTextAssignment))
    image_ids = torch.tensor([5, 5, 6, 8])
    generator, own, seen = torch.Generator().manual_seed(0), torch.arange(4), []
    for _ in range(100):
        batch["assignment_draws"] = torch.rand(4, 3, generator=generator)
        image = model.albef.vision_model(batch["pixel_values"])
        labels, first, second = model._draw(image, image_ids, batch["assignment_draws"])
        assert (first != second).all()
        assert torch.equal(labels == 0, first == own) and torch.equal(labels == 1, second == own)
        for index, label in ((first, 0), (second, 1)):
            other = labels != label
            assert (image_ids[index] != image_ids)[other].all()
        seen.append(labels)
    share = torch.cat(seen).bincount(minlength=3) / 400
    torch.testing.assert_close(share, torch.full((3,), 1 / 3), atol=0.07, rtol=0)
    drawn = model(**batch, image_ids=image_ids)
    given = {name: drawn[name] for name in ("labels", "first_image_index", "second_image_index")}
    torch.testing.assert_close(model(**{**batch, **given}).loss, drawn.loss)
    # Three images of one id have one other image, and so no two to stand before.
    for draw, labels in ((0.1, [-100, -100, -100, 2]), (0.5, [1, 1, 1, 1]), (0.9, [0, 0, 0, 0])):
        batch["assignment_draws"][:, 0] = draw
        output = model(**batch, image_ids=torch.tensor([5, 5, 5, 8]))
        assert output.labels.tolist() == labels and output.loss.isfinite()


def test_text_assignment_stands_two_images_before_a_text():
    model, batch = double(AlbefForTextAssignment), to_double(task_batch(AlbefForTextAssignment))
    output = model(**batch)
    for row in range(4):
        pictures = batch["pixel_values"][torch.stack([output.first_image_index[row], output.second_image_index[row]])]
        alone = model(
            input_ids=batch["input_ids"][[row, row]],
            attention_mask=batch["attention_mask"][[row, row]],
            pixel_values=pictures,
            labels=torch.tensor([0, 0]),
            first_image_index=torch.tensor([0, 0]),
            second_image_index=torch.tensor([1, 1]),
        )
        torch.testing.assert_close(alone.logits[0], output.logits[row], atol=1e-12, rtol=0)


ZERO, TEXTS = torch.zeros(4, dtype=torch.int64), "each image needs a text and each text an image"
BAD = [
    (AlbefForImageTextRetrieval, {"input_ids": None}, TEXTS),
    (AlbefForImageTextRetrieval, {"image_ids": ZERO}, "no pair of this batch has a negative"),
    (AlbefForImageTextRetrieval, {"pixel_values": torch.zeros(3, 3, 32, 32)}, "3 images and 4 texts"),
    (AlbefForVisualEntailment, {"pixel_values": None}, TEXTS),
    (AlbefForVisualEntailment, {"labels": ZERO + 3}, r"label 3 of row 0 is none of 0 \(contradiction\), 1"),
    (AlbefForVisualEntailment, {"labels": ZERO[:2]}, "4 texts need as many labels"),
    (AlbefForVisualReasoning, {"pixel_values": torch.zeros(4, 3, 32, 32)}, "each text needs two images"),
    (AlbefForVisualReasoning, {"pixel_values": torch.zeros(4, 1, 3, 32, 32)}, "each text needs two images"),
    (AlbefForVisualReasoning, {"labels": ZERO - 1}, "label -1 of row 0"),
    (AlbefForTextAssignment, {"labels": ZERO}, "come together or not at all"),
    (
        AlbefForTextAssignment,
        {"labels": ZERO, "first_image_index": ZERO, "second_image_index": ZERO + 4},
        "second_image_index must hold 4 rows of the batch",
    ),
]


@pytest.mark.parametrize(("kind", "change", "message"), BAD)
def test_bad_input_is_named(kind, change, message):
    with pytest.raises(ValueError, match=message):
        new(kind)(**{**task_batch(kind), **change})


def test_too_few_pairs_to_draw_from_are_named():
    for kind, message in ((AlbefForImageTextRetrieval, "at least 2 pairs"), (AlbefForTextAssignment, "at least 3")):
        with pytest.raises(ValueError, match=message):
            new(kind)(**{key: value[:1] for key, value in task_batch(kind).items()})


def test_a_configuration_for_two_images_does_not_fit_a_task_of_one():
    config = new(AlbefForVisualReasoning).config
    with pytest.raises(ValueError, match="reads it with 2"):
        AlbefForVisualEntailment(config)
    with pytest.raises(ValueError, match="this model reads each text with 2 images"):
        AlbefForPreTraining(config)(**tiny_batch())
    with pytest.raises(ValueError, match="cannot be shared out between images_per_text = 3"):
        tiny_config(text_config={"images_per_text": 3})
    with pytest.raises(ValueError, match="no projections and no temperature"):
        double(AlbefForVisualEntailment).albef.get_image_features(torch.zeros(1, 3, 32, 32))


def test_chance_of_a_class():
    assert new(AlbefForVisualReasoning).chance_losses(8) == {"loss": pytest.approx(math.log(2))}
