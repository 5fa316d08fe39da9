"""What every model class promises."""

import inspect
import json
import re
import sys
from collections.abc import Iterator

import pytest
import torch
from accelerate.utils import send_to_device
from helpers import to_double
from model_cases import CASES, TAUGHT, TRAINED, copies_equal_online, double, new, padded
from transformers import dynamic_module_utils
from transformers.dynamic_module_utils import get_class_from_dynamic_module

import albef_hf
from albef_hf import AlbefForImageTextRetrieval, AlbefForPreTraining, AlbefForVisualEntailment, AlbefModel
from albef_hf.modeling_albef_decoder import AlbefAnswerDecoder
from albef_hf.modeling_albef_loading import AlbefPreTrainedModel
from albef_hf.modeling_albef_text import AlbefTextLayer
from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.checkpoints import latest_checkpoint
from albef_hf.training.loop import train
from albef_hf.training.processes import build_accelerator

every_class = pytest.mark.parametrize("case", CASES, ids=str)
every_trained_class = pytest.mark.parametrize("case", TRAINED, ids=str)
every_taught_class = pytest.mark.parametrize("case", TAUGHT, ids=str)


def test_every_public_class_is_here():
    public = [getattr(albef_hf, name) for name in albef_hf.__all__]
    models = {kind for kind in public if isinstance(kind, type) and issubclass(kind, AlbefPreTrainedModel)}
    assert models == {case.model_class for case in CASES} - {AlbefAnswerDecoder}


# -- saving and loading -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A new model of a class and its saved folder, made when first needed. Tests must not change them."""
    made = {}

    def of(case):
        if case.model_class not in made:
            model, folder = new(case.model_class).eval(), tmp_path_factory.mktemp("saved") / str(case)
            model.save_pretrained(folder)
            made[case.model_class] = model, folder
        return made[case.model_class]

    return of


@every_class
def test_save_and_load_give_equal_outputs(case, saved):
    model, folder = saved(case)
    # transformers builds on the meta device and fills in
    loaded, report = case.model_class.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert loaded.loading_report == "every weight was in the checkpoint"
    assert not any(tensor.is_meta for tensor in loaded.state_dict().values())
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {name for name, parameter in loaded.named_parameters() if not parameter.requires_grad} == frozen
    loaded.eval()
    if case.taught:  # a new model's copies equal its weights, as do those of the loaded model
        assert copies_equal_online(loaded)
    if hasattr(model, "image_queue"):  # fresh queues are random
        loaded.image_queue, loaded.text_queue = model.image_queue, model.text_queue
    found, expected = loaded(**case.feed()).to_tuple(), model(**case.feed()).to_tuple()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@every_class
def test_builds_on_the_meta_device(case):
    config = double(case.model_class).config
    with torch.device("meta"):
        empty = case.model_class(config)
    assert all(parameter.is_meta for parameter in empty.parameters())


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


@every_class
def test_a_folder_loads_from_its_own_code(case, saved, modules_of_folders):
    model, folder = saved(case)
    file = inspect.getmodule(case.model_class).__name__.rpartition(".")[2]
    theirs = get_class_from_dynamic_module(f"{file}.{case}", str(folder))
    assert theirs is not case.model_class and theirs.__module__.startswith("transformers_modules")
    loaded = theirs.from_pretrained(folder).eval()
    if hasattr(model, "image_queue"):  # fresh queues are random
        loaded.image_queue, loaded.text_queue = model.image_queue, model.text_queue
    one, other = model(**case.feed()).to_tuple(), loaded(**case.feed()).to_tuple()
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)


# -- one step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@every_class
def test_two_runs_are_equal_and_change_nothing(case, training):
    model = new(case.model_class).train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    one, other = model(**case.feed()), model(**case.feed())
    case.objective(other).backward()
    for a, b in zip(one.to_tuple(), other.to_tuple(), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@every_class
def test_a_batch_equals_its_rows(case):
    model, batch = double(case.model_class), to_double(case.feed())
    output = model(**batch)
    field, seen = case.alone_output or case.output, set()
    for part, rows in case.alone(batch, output):
        torch.testing.assert_close(model(**part)[field], output[field][rows], atol=1e-12, rtol=0)
        seen |= set(rows)
    assert seen == set(range(len(output[field])))


@every_class
def test_padding_changes_nothing(case):
    model = double(case.model_class)
    long, short = padded(case.model_class, to_double(case.feed()))
    one, other = model(**long), model(**short)
    main = case.main(other)
    torch.testing.assert_close(case.main(one)[:, : main.shape[1]], main, atol=1e-12, rtol=0)
    if case.trains:
        torch.testing.assert_close(other.loss, one.loss, atol=1e-12, rtol=0)


@every_class
def test_sdpa_equals_eager(case):
    model, batch = double(case.model_class), to_double(case.feed())
    fused = model(**batch)
    model.set_attn_implementation("eager")
    eager = model(**batch)
    # 1e-6: transformers' ViT takes its eager softmax in float32.
    torch.testing.assert_close(case.main(eager), case.main(fused), atol=1e-6, rtol=0)
    torch.testing.assert_close(case.objective(eager), case.objective(fused), atol=1e-6, rtol=0)


@every_class
def test_return_dict_false_gives_a_tuple(case):
    model = new(case.model_class).eval()
    output = model(**case.feed(), return_dict=False)
    assert isinstance(output, tuple) and (output[0].dim() == 0) == case.trains
    for one, other in zip(output, model(**case.feed()).to_tuple(), strict=True):
        assert torch.equal(one, other)


@every_class
def test_every_trainable_parameter_receives_a_gradient_and_moves(case):
    model = new(case.model_class)
    reached = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not (case.unreached and re.search(case.unreached, name))
    }
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    for seed in range(3):  # three batches: every word and position is met by the optimizer's first moments
        case.objective(model(**case.feed(seed))).backward()
        assert all(parameter.grad is not None for parameter in reached.values())
        optimizer.step()
    still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert still == before.keys() - reached.keys()


@pytest.mark.parametrize("reentrant", [False, True], ids=["usual", "reentrant"])
@every_class
def test_gradient_checkpointing_computes_layers_again_and_changes_nothing(case, reentrant):
    gradients, calls = [], []
    for checkpointing in (False, True):
        model = double(case.model_class).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        count = []
        for layer in model.modules():
            if isinstance(layer, AlbefTextLayer):
                layer.attention.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        case.objective(model(**to_double(case.feed()))).backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
        calls.append(len(count))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
    assert calls[1] > calls[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@every_class
def test_half_precision_keeps_losses_in_full_precision(case, dtype):
    model = new(case.model_class)
    with torch.autocast("cpu", dtype=dtype):
        output = model(**case.feed())
    reference = model(**case.feed())
    for name, tensor in output.items():
        if tensor.is_floating_point():
            assert tensor.dtype == torch.float32, name
    for name in (name for name in output if name.startswith("loss")):
        torch.testing.assert_close(output[name], reference[name], atol=0.05, rtol=0.02)
    case.objective(output).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


VOCABULARY = re.compile(r"(word_embeddings\.weight|predictions\.bias)$")


@pytest.mark.parametrize(
    ("change", "words"), [((70,), 70), ((50,), 50), ((None, 32), 64)], ids=["longer", "shorter", "rounded"]
)
@every_class
def test_resizing_the_vocabulary_reaches_every_part(case, change, words, tmp_path):
    model = new(case.model_class)
    if case.taught:  # copies that have moved
        torch._foreach_mul_(list(model.momentum_copy.parameters()), 1.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    given = model.resize_token_embeddings(*change)
    assert given is model.get_input_embeddings() and given.num_embeddings == words
    assert model.config.get_text_config().vocab_size == words
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == frozen
    for name, tensor in model.state_dict().items():
        if not VOCABULARY.search(name):
            assert torch.equal(tensor, before[name])
            continue
        assert len(tensor) == words and torch.equal(tensor[:60], before[name][:words])
        if name.startswith("momentum_copy."):
            part, _, rest = name.removeprefix("momentum_copy.").partition(".")
            assert torch.equal(tensor[60:], model.online_modules()[part].state_dict()[rest][60:])
    batch = case.feed() | {"input_ids": case.feed()["input_ids"].clamp(max=49)}
    batch = {
        key: value.clamp(max=49) if key.endswith(("input_ids", "mlm_labels")) else value
        for key, value in batch.items()
    }
    batch["input_ids"][0, 1] = words - 1
    assert case.objective(model(**batch)).isfinite()
    if case.taught:
        model.update_momentum()
    model.save_pretrained(tmp_path)
    loaded = case.model_class.from_pretrained(tmp_path)
    assert torch.equal(loaded.get_input_embeddings().weight, given.weight)


@every_class
def test_a_vocabulary_that_is_not_resized_stays(case):
    model = new(case.model_class)
    embeddings = model.get_input_embeddings()
    assert model.resize_token_embeddings() is embeddings and embeddings.num_embeddings == 60


@every_class
def test_the_main_input_comes_first(case):
    _, first, *_ = inspect.signature(case.model_class.forward).parameters
    assert case.model_class.main_input_name == first


@every_class
def test_attention_that_does_not_know_our_masks_is_refused(case):
    with pytest.raises(ValueError, match="does not support .*flex"):
        new(case.model_class).set_attn_implementation("flex_attention")


@every_class
def test_hidden_states_and_attention_are_of_every_layer(case):
    """Where losses encode several batches, it says so."""
    model = double(case.model_class)
    model.set_attn_implementation("eager")
    batch = to_double(case.feed())
    ask = {"output_hidden_states": True, "output_attentions": True}
    if case.model_class in (AlbefForPreTraining, AlbefForImageTextRetrieval):
        with pytest.raises(ValueError, match="output_hidden_states is for scores only"):
            model(**batch, **ask)
    if case.model_class in (AlbefModel, AlbefForPreTraining, AlbefForImageTextRetrieval):
        pixels, texts = batch["pixel_values"], {name: batch[name] for name in ("input_ids", "attention_mask")}
        output = model(
            pixel_values=pixels, **texts, **ask, **({} if case.model_class is AlbefModel else {"return_loss": False})
        )
        for found, expected, layers, encoder in (
            (output.text_model_output, model.get_text_features(**texts, **ask), 2, texts),
            (output.vision_model_output, model.get_image_features(pixels, **ask), 2, {"pixel_values": pixels}),
        ):
            assert len(found.hidden_states) == layers + 1 and len(found.attentions) == layers
            for one, other in zip(found.hidden_states, expected.hidden_states, strict=True):
                assert torch.equal(one, other)
            assert (found.attentions[0].sum(-1) - 1).abs().max() < 1e-6
            as_tuple = (model.get_text_features if "input_ids" in encoder else model.get_image_features)(
                **encoder, **ask, return_dict=False
            )
            assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[1], expected.pooler_output)
        assert torch.equal(output.text_model_output.hidden_states[-1], output.text_model_output.last_hidden_state)
        assert not any(isinstance(value, dict) for value in output.to_tuple())
        return
    if case.model_class is AlbefAnswerDecoder:
        return
    output, plain = model(**batch, **ask), model(**batch)
    torch.testing.assert_close(case.main(output), case.main(plain), atol=1e-12, rtol=0)
    layers = model.config.get_text_config().num_hidden_layers
    assert len(output.hidden_states) == layers + 1 and len(output.attentions) == layers
    assert len(output.cross_attentions) == layers - 2
    for states in output.hidden_states:
        assert states.shape == (4, 9, 16)
    assert "hidden_states" not in plain and "attentions" not in plain
    model.config.output_hidden_states = True
    assert len(model(**batch).hidden_states) == layers + 1
    assert not any(module._forward_hooks for name, module in model.named_modules() if "momentum" in name)


def test_attention_maps_that_are_not_there_cost_a_warning(caplog):
    model = new(AlbefForVisualEntailment).eval()
    case = next(case for case in CASES if case.model_class is AlbefForVisualEntailment)
    asked_outputs_logger = "albef_hf.modeling_albef_attention"
    with caplog.at_level("WARNING", logger=asked_outputs_logger):
        output = model(**case.feed(), output_attentions=True)
    assert output.attentions is None and 'attn_implementation="eager"' in caplog.text


def test_backbones_without_attention_say_so():
    model = new(
        AlbefModel,
        vision_config={
            "model_type": "resnet",
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "embedding_size": 8,
            "layer_type": "basic",
        },
        vision_pooling="mean",
    )
    model.set_attn_implementation("eager")
    pixels = torch.randn(2, 3, 32, 32)
    assert len(model.get_image_features(pixels, output_hidden_states=True).hidden_states) == 3
    with pytest.raises(ValueError, match="a 'resnet' backbone does not know output_attentions"):
        model.get_image_features(pixels, output_attentions=True)
    assert model.get_image_features(pixels).hidden_states is None


# -- training ---------------------------------------------------------------------------------------------------------


@every_taught_class
def test_alpha_weighs_the_teacher(case):
    model = new(case.model_class).eval()
    with torch.no_grad():
        for parameter in model.momentum_copy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    hard, half, soft = (model(**case.feed(), alpha=alpha).loss.item() for alpha in (0.0, 0.5, 1.0))
    assert half == pytest.approx((hard + soft) / 2, rel=1e-5) and abs(hard - soft) > 1e-5
    assert model(**case.feed()).loss.item() == pytest.approx(hard + 0.4 * (soft - hard), rel=1e-5)
    ramp = [model.schedules(10, 100)["alpha"][step] for step in (0, 5, 10, 99)]
    assert ramp == pytest.approx([0.0, 0.2, 0.4, 0.4])


@pytest.mark.parametrize("case", [case for case in TRAINED if not case.taught], ids=str)
def test_without_a_teacher_there_is_no_alpha(case):
    model = new(case.model_class).eval()
    assert model.schedules(10, 100) == {}
    assert torch.equal(model(**case.feed(), alpha=0.0).loss, model(**case.feed(), alpha=1.0).loss)


@every_trained_class
def test_losses_start_near_chance(case):
    model = new(case.model_class).eval()
    output = model(**case.feed(), alpha=0.0)
    for name, value in model.chance_losses(4).items():
        if name != "loss_itc":  # three rows share a target or have two
            assert output[name].item() == pytest.approx(value, rel=0.15), name


class Batches:
    """Training data that repeats the batches of a case."""

    batch_size, rows, steps_per_epoch = 4, 16, 4

    def __init__(self, case) -> None:
        self.case = case

    def batches(self, start: int = 0) -> Iterator[dict]:
        while True:
            yield {**self.case.feed(start), "rejected": []}
            start += 1

    def to_device(self, batch: dict, device: torch.device) -> dict:
        return send_to_device(batch, device)


@every_trained_class
def test_the_loop_trains_saves_and_resumes(case, tmp_path):
    models = []
    for name, steps in (("straight", (4,)), ("resumed", (2, 4))):
        (tmp_path / name).mkdir()
        for stop in steps:
            arguments = TrainingArguments(
                output_dir=str(tmp_path / name), batch_size=4, max_steps=stop, log_every=1, save_every=2, resume=True
            )
            model = train(new(case.model_class), Batches(case), arguments, build_accelerator(arguments))
        models.append(model.state_dict())
    assert latest_checkpoint(tmp_path / "straight" / "checkpoints").name == "step-00000004"
    for key, tensor in models[0].items():
        assert torch.equal(tensor, models[1][key]), key
    rows = [json.loads(line) for line in (tmp_path / "straight" / "log.jsonl").read_text().splitlines()]
    assert [any("accuracy" in name for name in row) for row in rows if row["kind"] == "train"] == [True] * 4
