"""The text and fusion encoder by itself."""

import torch
from helpers import tiny_batch
from model_cases import double, new

from albef_hf import AlbefForVisualEntailment, AlbefTextModel


def test_attention_maps_need_eager_and_are_returned_there():
    model = new(AlbefTextModel).eval()
    model.set_attn_implementation("eager")
    batch = tiny_batch()
    output = model(
        batch["input_ids"],
        batch["attention_mask"],
        encoder_hidden_states=torch.zeros(4, 5, 24),
        output_attentions=True,
    )
    assert [weights.shape for weights in output.attentions] == [(4, 2, 9, 9)] * 4
    assert [weights.shape for weights in output.cross_attentions] == [(4, 2, 9, 5)] * 2


def test_text_then_fusion_equals_all_layers_at_once():
    model = double(AlbefTextModel)
    batch = tiny_batch()
    tokens = torch.randn(4, 5, 24, dtype=torch.float64)
    states = model.encode_text(batch["input_ids"], batch["attention_mask"])
    fused = model.fuse(states, batch["attention_mask"], model.project_image_tokens(tokens))
    whole = model(batch["input_ids"], batch["attention_mask"], encoder_hidden_states=tokens).last_hidden_state
    assert torch.equal(fused, whole)


def test_first_position_alone_equals_the_full_pass():
    model = double(AlbefTextModel)
    batch = tiny_batch()
    keys_values = model.project_image_tokens(torch.randn(4, 5, 24, dtype=torch.float64))
    full = model.encode_text(batch["input_ids"], batch["attention_mask"])
    first = model.encode_text(batch["input_ids"], batch["attention_mask"], queries=1)
    torch.testing.assert_close(first, full[:, :1], atol=1e-12, rtol=0)
    fused = model.fuse(full, batch["attention_mask"], keys_values)
    first = model.fuse(full, batch["attention_mask"], keys_values, queries=1)
    torch.testing.assert_close(first, fused[:, :1], atol=1e-12, rtol=0)


def test_fusion_is_not_causal():
    model = double(AlbefTextModel)
    batch = tiny_batch()
    changed = batch["input_ids"].clone()
    changed[0, 5] = 7 if changed[0, 5] != 7 else 8
    one = model.encode_text(batch["input_ids"], batch["attention_mask"])[0, 0]
    other = model.encode_text(changed, batch["attention_mask"])[0, 0]
    assert (one - other).abs().max() > 1e-9


def test_several_texts_in_a_row_share_an_image():
    text_model, batch = double(AlbefForVisualEntailment).albef.text_model, tiny_batch()
    states = text_model.encode_text(batch["input_ids"], batch["attention_mask"])
    tokens = torch.randn(2, 5, 24, dtype=torch.float64)
    shared = text_model.fuse(states, batch["attention_mask"], text_model.project_image_tokens(tokens))
    repeated = text_model.project_image_tokens(tokens.repeat_interleave(2, dim=0))
    torch.testing.assert_close(text_model.fuse(states, batch["attention_mask"], repeated), shared, atol=1e-12, rtol=0)
