"""Agreement with numbers recorded from the published implementation (float64, dropout 0)."""

import pytest
import torch
from helpers import assert_exact, load_reference, reference_model, to_double
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.vit import modeling_vit

from albef_hf.convert.albef import convert_state, saved_state
from albef_hf.modeling_albef_attention import eager_attention_forward

SETTINGS = [("sdpa", False), ("eager", False), ("sdpa", True), ("eager", True)]


def compare_state(model, expected: dict[str, torch.Tensor], values: dict[str, torch.Tensor]) -> int:
    converted, _ = convert_state(expected, "pretraining")
    for name, tensor in converted.items():
        assert_exact(values[name], tensor, name)
    return len(converted)


def setting(model, checkpointing: bool):
    if checkpointing:
        model.gradient_checkpointing_enable()
    return model


@pytest.fixture(autouse=True)
def exact_eager_vision(monkeypatch):
    """transformers' ViT takes its eager softmax in float32 whatever the inputs (4e-8 here); ours keeps float64."""
    monkeypatch.setattr(modeling_vit, "eager_attention_forward", eager_attention_forward)


@pytest.mark.parametrize(("attention", "checkpointing"), SETTINGS)
@pytest.mark.parametrize("name", ["pretrain_alpha0.0", "pretrain_alpha0.4"])
def test_one_step(name, attention, checkpointing):
    state, inputs, outputs, sizes = load_reference(name)
    model = setting(reference_model(state, sizes, attention), checkpointing)
    model.update_momentum()  # the publication moves the copies at the start of forward
    inputs = to_double(inputs)

    image = model.get_image_features(inputs["pixel_values"])
    text = model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
    assert_exact(image.last_hidden_state, outputs["image_embeds"], "image_embeds")
    assert_exact(image.pooler_output, outputs["image_feat"], "image_feat")
    assert_exact(text.last_hidden_state, outputs["text_embeds"], "text_embeds")
    assert_exact(text.pooler_output, outputs["text_feat"], "text_feat")
    keys_values = model.project_image_tokens(image.last_hidden_state)
    fused = model.albef.text_model.fuse(text.last_hidden_state, inputs["attention_mask"], keys_values)
    assert_exact(fused, outputs["fusion_embeds"], "fusion_embeds")

    output = model(**inputs, alpha=float(sizes["alpha"]))
    for loss in ("loss_itc", "loss_itm", "loss_mlm"):
        assert_exact(output[loss], outputs[loss], loss)
    assert_exact(output.itm_logits[: len(inputs["input_ids"])], outputs["itm_logits_positive"], "itm_logits")

    output.loss.backward()
    model.enqueue(output)
    expected_gradients = {k.removeprefix("grad/"): v for k, v in outputs.items() if k.startswith("grad/")}
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert sorted(gradients) == sorted(trainable)
    # Gradients of the image encoder are not recorded; `test_eight_steps` sees their effect.
    recorded = [name for name in trainable if not name.startswith("albef.vision_model.")]
    assert compare_state(model, expected_gradients, revert_weight_conversion(model, gradients)) == len(recorded)

    after = {k.removeprefix("after/"): v for k, v in outputs.items() if k.startswith("after/")}
    compare_state(model, after, saved_state(model))


@pytest.mark.parametrize(("attention", "checkpointing"), SETTINGS)
def test_eight_steps(attention, checkpointing):
    state, inputs, outputs, sizes = load_reference("trajectory")
    model = setting(reference_model(state, sizes, attention), checkpointing)
    decayed = [p for p in model.parameters() if p.requires_grad and not is_free(p, model)]
    free = [p for p in model.parameters() if p.requires_grad and is_free(p, model)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.02}, {"params": free, "weight_decay": 0.0}], lr=1e-3
    )
    inputs = to_double(inputs)
    model.update_momentum()
    for step in range(8):
        batch = {k.removeprefix(f"{step}/"): v for k, v in inputs.items() if k.startswith(f"{step}/")}
        output = model(**batch, alpha=0.4 * min(1, step / 4))
        losses = torch.stack([output.loss_itc, output.loss_mlm, output.loss_itm])
        assert_exact(losses, outputs["losses_itc_mlm_itm"][step], f"losses of step {step}")
        output.loss.backward()
        model.enqueue(output)
        optimizer.step()
        optimizer.zero_grad()
        if step < 7:
            model.update_momentum()
    after = {k.removeprefix("after/"): v for k, v in outputs.items() if k.startswith("after/")}
    assert compare_state(model, after, saved_state(model)) > 600


def is_free(parameter: torch.nn.Parameter, model) -> bool:
    """No weight decay: vectors (biases and norms are vectors too). The 0-d temperature is decayed, as published."""
    return parameter.dim() == 1
