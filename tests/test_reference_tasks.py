"""Agreement of the downstream tasks with numbers recorded from the published implementation (float64, dropout 0)."""

from copy import deepcopy
from functools import cache

import pytest
import torch
from helpers import assert_exact, load_reference, reference_model, to_double
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.vit import modeling_vit

import albef_hf.modeling_albef_alignment as alignment
from albef_hf.convert.albef import convert_state, saved_state, sniff_task
from albef_hf.modeling_albef_attention import eager_attention_forward

FILES = ("retrieval", "vqa", "visual_entailment", "nlvr2", "text_assignment")
VALUES = ("loss", "loss_itc", "loss_itm", "logits")


@pytest.fixture(autouse=True)
def exact_eager_vision(monkeypatch):
    """transformers' ViT takes its eager softmax in float32 whatever the inputs (4e-8 here); ours keeps float64."""
    monkeypatch.setattr(modeling_vit, "eager_attention_forward", eager_attention_forward)


@pytest.fixture
def targets_in_single_precision(monkeypatch):
    """The publication divides a target among equal images in float32 whatever the inputs: a third is 1e-8 off."""

    def contrast(logits, positives, teacher_logits, alpha, left_out):
        target = positives.float() / positives.float().sum(1, keepdim=True)
        target = alpha * teacher_logits.softmax(1) + (1 - alpha) * target
        return -(logits.log_softmax(1) * target).sum(1).mean()

    monkeypatch.setattr(alignment, "contrastive_loss", contrast)


@cache
def loaded(name: str):
    """The model before its step, with the momentum moved (the publication does so at the start of forward)."""
    state, inputs, outputs, sizes = load_reference(name)
    model = reference_model(state, sizes)
    if hasattr(model, "update_momentum"):
        model.update_momentum()
    inputs = to_double(inputs)
    if name == "nlvr2":
        inputs["pixel_values"] = torch.stack([inputs.pop("pixel_values_0"), inputs.pop("pixel_values_1")], dim=1)
    candidates = {key: inputs.pop(key) for key in list(inputs) if key.startswith("candidate_")}
    if "alpha" in sizes:
        inputs["alpha"] = float(sizes["alpha"])
    return model, sniff_task(state), inputs, candidates, outputs


def recorded(name: str, attention: str = "sdpa"):
    model, *rest = loaded(name)
    model = deepcopy(model)
    model.set_attn_implementation(attention)
    return model, *rest


def part(outputs: dict, prefix: str) -> dict:
    return {key.removeprefix(prefix): value for key, value in outputs.items() if key.startswith(prefix)}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", FILES)
def test_one_step(name, attention, targets_in_single_precision):
    model, task, inputs, _, outputs = recorded(name, attention)
    output = model(**inputs)
    compared = [value for value in VALUES if value in outputs]
    assert compared
    for value in compared:
        assert_exact(output[value], outputs[value], value)

    output.loss.backward()
    trainable = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert set(gradients) == trainable
    gradients = revert_weight_conversion(model, gradients)
    expected, _ = convert_state(part(outputs, "grad/"), task)
    assert set(expected) == set(gradients)
    for key, tensor in expected.items():
        assert_exact(gradients[key], tensor, key)

    if name == "retrieval":
        model.enqueue(output)
        after, _ = convert_state(part(outputs, "after/"), task)
        assert len(after) == 6  # features, ids and cursor of both queues
        values = saved_state(model)
        for key, tensor in after.items():
            assert_exact(values[key], tensor, key)


def test_shared_targets_in_double_precision_differ_by_the_rounding_of_a_third():
    model, _, inputs, _, outputs = recorded("retrieval")
    assert (model(**inputs).loss_itc - outputs["loss_itc"]).abs() < 1e-6


def test_ranking_of_answers():
    model, _, inputs, candidates, outputs = recorded("vqa")
    model.eval()
    question = {key: inputs[key] for key in ("input_ids", "attention_mask", "pixel_values")}
    corrected = model.rank_answers(**question, **candidates, k=4)
    model.config.published_defects = True
    published = model.rank_answers(**question, **candidates, k=4, batch_size=1)
    assert torch.equal(published.answer_ids, outputs["ranked_answer_ids"])
    assert_exact(published.probabilities, outputs["ranked_answer_probabilities"], "probabilities")
    # The publication counts the first token twice; the log-probabilities are those of the answers all the same.
    assert (corrected.probabilities - published.probabilities).abs().max() > 0.01
    order = published.answer_ids.argsort(1), corrected.answer_ids.argsort(1)
    torch.testing.assert_close(
        published.log_probabilities.gather(1, order[0]), corrected.log_probabilities.gather(1, order[1])
    )
