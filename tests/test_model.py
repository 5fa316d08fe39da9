"""What every model class promises, and the parity list of the publication."""

import math

import pytest
import torch
from helpers import published_state, tiny_batch, tiny_config, tiny_model, to_double
from torch import nn

from albef_hf import AlbefConfig, AlbefForPreTraining, AlbefModel, AlbefTextConfig, AlbefTextModel
from albef_hf.convert.albef import convert_state
from albef_hf.vision_backbone import VisionBackbone

SCORES = ("input_ids", "attention_mask", "pixel_values")


def text_model():
    torch.manual_seed(0)
    return AlbefTextModel(AlbefTextConfig(**{**tiny_config().text_config.to_diff_dict(), "encoder_hidden_size": 24}))


CLASSES = {
    "AlbefModel": lambda: AlbefModel(tiny_config()),
    "AlbefForPreTraining": lambda: AlbefForPreTraining(tiny_config()),
    "AlbefTextModel": text_model,
}


def run(model, batch=None):
    """The main output of a model, without losses."""
    batch = batch or tiny_batch()
    if isinstance(model, AlbefTextModel):
        tokens = torch.linspace(-1, 1, 5 * 24).reshape(1, 5, 24).expand(len(batch["input_ids"]), -1, -1)
        tokens = tokens.to(model.dtype)
        return model(batch["input_ids"], batch["attention_mask"], encoder_hidden_states=tokens).last_hidden_state
    return model(**{key: batch[key] for key in SCORES}).logits_per_image


@pytest.fixture(params=list(CLASSES))
def model(request):
    torch.manual_seed(0)
    return CLASSES[request.param]().eval()


def test_save_and_load_give_equal_outputs(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    assert torch.equal(run(loaded.eval()), run(model))


def test_two_runs_are_equal(model):
    assert torch.equal(run(model), run(model))


def test_a_batch_equals_its_rows(model):
    model = model.double()
    batch = to_double(tiny_batch())
    whole = run(model, batch) if not isinstance(model, AlbefTextModel) else None
    if whole is None:
        rows = [model(batch["input_ids"][i : i + 1], batch["attention_mask"][i : i + 1]) for i in range(4)]
        whole = model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        joined = torch.cat([row.last_hidden_state for row in rows])
    else:
        rows = [run(model, {**batch, "pixel_values": batch["pixel_values"][i : i + 1]}) for i in range(4)]
        joined = torch.cat(rows)
    torch.testing.assert_close(joined, whole, atol=1e-12, rtol=0)


def test_padding_changes_nothing(model):
    model = model.double()
    batch = to_double(tiny_batch())
    batch["attention_mask"][:, 6:] = 0
    short = {**batch, "input_ids": batch["input_ids"][:, :6], "attention_mask": batch["attention_mask"][:, :6]}
    long_output, short_output = run(model, batch), run(model, short)
    if isinstance(model, AlbefTextModel):
        long_output = long_output[:, :6]
    torch.testing.assert_close(long_output, short_output, atol=1e-12, rtol=0)


def test_sdpa_equals_eager(model):
    model = model.double()
    batch = to_double(tiny_batch())
    fused = run(model, batch)
    model.set_attn_implementation("eager")
    # 1e-6: transformers' ViT takes its eager softmax in float32.
    torch.testing.assert_close(run(model, batch), fused, atol=1e-6, rtol=0)


def test_builds_on_the_meta_device_and_loads_from_there(model, tmp_path):
    with torch.device("meta"):
        empty = type(model)(model.config)
    assert all(parameter.is_meta for parameter in empty.parameters())
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)  # transformers builds on meta and fills in
    assert not any(tensor.is_meta for tensor in loaded.state_dict().values())


def test_attention_maps_need_eager_and_are_returned_there():
    model = text_model().eval()
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


def test_every_trainable_parameter_receives_a_gradient_and_moves():
    model = tiny_model()
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    before = {name: parameter.detach().clone() for name, parameter in trainable.items()}
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-3)
    for seed in range(3):  # three batches: every word and position is met by the optimizer's first moments
        output = model(**tiny_batch(seed=seed))
        output.loss.backward()
        assert all(parameter.grad is not None for parameter in trainable.values())
        optimizer.step()
    still = [name for name, parameter in trainable.items() if torch.equal(parameter, before[name])]
    assert not still
    assert not any(parameter.requires_grad for parameter in model.momentum_copy.parameters())


def test_forward_changes_nothing():
    model = tiny_model().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(**tiny_batch()).loss.backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# -- momentum copies through saving and loading -----------------------------------------------------------------------


def moved_model():
    model = tiny_model()
    output = model(**tiny_batch())
    output.loss.backward()
    model.enqueue(output)
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5).step()
    model.update_momentum()
    return model


def copies_equal_online(model) -> bool:
    return all(
        torch.equal(tensor, model.momentum_copy.get_submodule(name).state_dict()[key])
        for name, module in model.online_modules().items()
        for key, tensor in module.state_dict().items()
    )


def test_a_new_model_starts_with_equal_copies():
    assert copies_equal_online(tiny_model())


def test_copies_and_queues_stay_out_of_a_published_folder(tmp_path):
    model = moved_model()
    assert not copies_equal_online(model)
    model.save_pretrained(tmp_path)
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", "pt") as handle:
        assert not [k for k in handle.keys() if "momentum" in k or "queue" in k]  # noqa: SIM118
    loaded = AlbefForPreTraining.from_pretrained(tmp_path)
    assert copies_equal_online(loaded)
    assert not any(parameter.requires_grad for parameter in loaded.momentum_copy.parameters())
    torch.testing.assert_close(loaded.image_queue.features.norm(dim=1), torch.ones(6))
    assert (loaded.image_queue.ids == -100).all()


def test_copies_and_queues_are_kept_on_request(tmp_path):
    model = moved_model()
    model.save_pretrained(tmp_path, save_momentum=True)
    loaded = AlbefForPreTraining.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert not any(parameter.requires_grad for parameter in loaded.momentum_copy.parameters())


def test_a_checkpoint_of_the_towers_starts_copies_equal_to_them(tmp_path):
    towers = AlbefModel(tiny_config())
    towers.save_pretrained(tmp_path)
    loaded = AlbefForPreTraining.from_pretrained(tmp_path)
    assert torch.equal(loaded.albef.text_projection.weight, towers.text_projection.weight)
    assert copies_equal_online(loaded)


def test_the_towers_load_from_a_pretraining_folder(tmp_path):
    model = tiny_model().eval()
    model.save_pretrained(tmp_path)
    towers, report = AlbefModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert torch.equal(run(towers.eval()), run(model))


# -- the parity list --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base():
    with torch.device("meta"):
        return AlbefForPreTraining(AlbefConfig())


def test_base_configuration_has_the_published_sizes(base):
    trainable = sum(p.numel() for p in base.parameters() if p.requires_grad)
    assert trainable == 209_937_725
    assert sum(p.numel() for p in base.parameters()) == 419_873_911
    assert sum(p.numel() for p in base.albef.vision_model.parameters()) == 85_844_736
    text = sum(p.numel() for p in base.albef.text_model.parameters()) + sum(p.numel() for p in base.cls.parameters())
    assert text == 123_697_722
    assert base.image_queue.features.numel() + base.text_queue.features.numel() == 33_554_432


def test_published_names_and_shapes_are_ours(base):
    state = published_state("pretraining")
    assert len(state) == 844
    converted, report = convert_state(state)
    from transformers.core_model_loading import revert_weight_conversion

    ours = revert_weight_conversion(base, base.state_dict())
    expected = {name: tuple(tensor.shape) for name, tensor in converted.items()}
    # Ours beyond the published ones: ids beside the queues (same-image and same-caption options), a count.
    beyond = {"image_queue.ids", "text_queue.ids", "momentum_copy.updates"}
    assert {name: tuple(t.shape) for name, t in ours.items() if name not in beyond} == expected
    assert report.explained
    assert len(report.dropped) == 2 and len(report.tied) == 2 * 2  # position ids; decoder and its bias


def test_text_then_fusion_equals_all_layers_at_once():
    model = text_model().eval().double()
    batch = tiny_batch()
    tokens = torch.randn(4, 5, 24, dtype=torch.float64)
    states = model.encode_text(batch["input_ids"], batch["attention_mask"])
    fused = model.fuse(states, batch["attention_mask"], model.project_image_tokens(tokens))
    whole = model(batch["input_ids"], batch["attention_mask"], encoder_hidden_states=tokens).last_hidden_state
    assert torch.equal(fused, whole)


def test_first_position_alone_equals_the_full_pass():
    model = text_model().eval().double()
    batch = tiny_batch()
    keys_values = model.project_image_tokens(torch.randn(4, 5, 24, dtype=torch.float64))
    full = model.encode_text(batch["input_ids"], batch["attention_mask"])
    first = model.encode_text(batch["input_ids"], batch["attention_mask"], queries=1)
    torch.testing.assert_close(first, full[:, :1], atol=1e-12, rtol=0)
    fused = model.fuse(full, batch["attention_mask"], keys_values)
    first = model.fuse(full, batch["attention_mask"], keys_values, queries=1)
    torch.testing.assert_close(first, fused[:, :1], atol=1e-12, rtol=0)


def test_fusion_is_not_causal():
    model = text_model().eval().double()
    batch = tiny_batch()
    changed = batch["input_ids"].clone()
    changed[0, 5] = 7 if changed[0, 5] != 7 else 8
    one = model.encode_text(batch["input_ids"], batch["attention_mask"])[0, 0]
    other = model.encode_text(changed, batch["attention_mask"])[0, 0]
    assert (one - other).abs().max() > 1e-9


def test_matching_scores_equal_one_pair_at_a_time():
    """Keys and values of an image projected once and shared give what each pair gives by itself."""
    model = tiny_model().eval().double()
    batch = to_double(tiny_batch())
    image = model.get_image_features(batch["pixel_values"])
    text = model.get_text_features(batch["input_ids"], batch["attention_mask"])
    keys_values = model.project_image_tokens(image.last_hidden_state)
    for i in range(4):
        for t in range(4):
            shared = [(key[i : i + 1], value[i : i + 1]) for key, value in keys_values]
            pair = model.matching_logits(text.last_hidden_state[t : t + 1], batch["attention_mask"][t : t + 1], shared)
            fused = model.albef.text_model(
                batch["input_ids"][t : t + 1],
                batch["attention_mask"][t : t + 1],
                encoder_hidden_states=image.last_hidden_state[i : i + 1],
            ).last_hidden_state
            torch.testing.assert_close(pair, model.itm_head(fused[:, 0]), atol=1e-12, rtol=0)


def test_negatives_are_what_the_output_says():
    model = tiny_model().eval().double()
    batch = to_double(tiny_batch())
    output = model(**batch)
    pairs = torch.arange(4)
    assert (output.negative_image_index != pairs).all() and (output.negative_text_index != pairs).all()
    image = model.get_image_features(batch["pixel_values"]).last_hidden_state
    text = model.get_text_features(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    mask = batch["attention_mask"]
    other_images = model.project_image_tokens(image[output.negative_image_index])
    other_texts = output.negative_text_index
    expected = torch.cat(
        [
            model.matching_logits(text, mask, model.project_image_tokens(image)),
            model.matching_logits(text, mask, other_images),
            model.matching_logits(text[other_texts], mask[other_texts], model.project_image_tokens(image)),
        ]
    )
    torch.testing.assert_close(output.itm_logits, expected, atol=1e-12, rtol=0)


def test_words_are_predicted_at_masked_positions_only():
    model = tiny_model().eval().double()
    batch = to_double(tiny_batch())
    given, found = model(**batch), model(**{**batch, "mlm_positions": None})
    assert given.mlm_logits.shape == (4, 60)
    assert torch.equal(given.loss, found.loss)


def test_a_batch_without_masked_words_trains_the_rest():
    batch = tiny_batch()
    batch["mlm_labels"].fill_(-100)
    batch["mlm_positions"] = torch.zeros(0, dtype=torch.int64)
    output = tiny_model()(**batch)
    output.loss.backward()
    assert output.loss_mlm.item() == 0 and output.loss.isfinite()


def test_alpha_changes_the_losses_and_zero_leaves_the_teacher_of_words_alone():
    model = moved_model().eval()
    model.momentum_copy.cls.predictions.bias.data.add_(torch.linspace(-1, 1, 60))
    plain, soft = model(**tiny_batch(), alpha=0.0), model(**tiny_batch(), alpha=0.4)
    assert plain.loss_itc != soft.loss_itc and plain.loss_mlm != soft.loss_mlm
    assert torch.equal(plain.loss_itm, soft.loss_itm)


def test_alpha_ramps_over_the_first_epoch():
    model = tiny_model()
    values = [model.schedules(steps_per_epoch=10, total_steps=100)["alpha"][step] for step in (0, 5, 10, 99)]
    assert values == pytest.approx([0.0, 0.2, 0.4, 0.4])


def test_losses_start_near_chance():
    model = tiny_model(queue_size=4096).eval()
    chance = model.chance_losses(4)
    output = model(**tiny_batch())
    assert chance["loss_mlm"] == pytest.approx(math.log(60)) and chance["loss_itm"] == pytest.approx(0.6365, abs=1e-4)
    assert chance["loss_itc"] == pytest.approx(math.log(4100))
    assert output.loss_mlm.item() == pytest.approx(chance["loss_mlm"], rel=0.1)


def test_temperature_is_brought_back_inside_its_bounds():
    model = tiny_model()
    with torch.no_grad():
        model.albef.temperature.fill_(7.0)
    assert model(**tiny_batch()).temperature.item() == pytest.approx(0.5)
    model.update_momentum()
    assert model.albef.temperature.item() == pytest.approx(0.5)


# -- false negatives --------------------------------------------------------------------------------------------------


def test_same_image_is_never_its_own_hard_negative():
    batch = tiny_batch()
    batch["image_ids"] = torch.tensor([7, 7, 7, 8])
    plain = tiny_model().eval()(**batch, return_loss=True)
    assert (plain.negative_text_index[:3] != 3).any()  # as published, the same image may be a negative
    for policy in ("mask", "positive"):
        output = tiny_model(same_image=policy).eval()(**batch)
        assert (output.negative_text_index[:3] == 3).all() and (output.negative_image_index[:3] == 3).all()


def test_same_caption_in_the_queue_is_masked_or_positive():
    batch = to_double(tiny_batch())
    batch["caption_ids"] = torch.tensor([1, 2, 3, 4])
    losses = {}
    for policy in ("negative", "mask", "positive"):
        model = tiny_model(same_caption=policy).eval().double()
        # The queue of six holds other pairs with the same captions, twice over.
        earlier = {**to_double(tiny_batch(seed=1)), "caption_ids": batch["caption_ids"]}
        model.enqueue(model(**earlier))
        model.enqueue(model(**earlier))
        output = model(**batch)
        losses[policy] = output.loss_itc.item()
        ids = torch.cat([output.key_ids, model.text_queue.ids])[:, 1]
        same = batch["caption_ids"][:, None] == ids
        own = torch.arange(4)[:, None] == torch.arange(len(ids))
        assert (same & ~own).any()
        expected = 0.0
        for query, teacher, keys, queue in (
            (output.image_embeds, output.image_keys, output.text_keys, model.text_queue),
            (output.text_embeds, output.text_keys, output.image_keys, model.image_queue),
        ):
            keys = torch.cat([keys, queue.features])
            scores, soft = query @ keys.T / output.temperature, teacher @ keys.T / output.temperature
            hard = (same if policy == "positive" else own).double()
            for row in range(4):
                kept = ~(same & ~own)[row] if policy == "mask" else torch.ones(len(ids), dtype=torch.bool)
                target = 0.4 * soft[row, kept].softmax(0) + 0.6 * hard[row, kept] / hard[row, kept].sum()
                expected -= (target * scores[row, kept].log_softmax(0)).sum() / 8
        assert losses[policy] == pytest.approx(expected.item(), abs=1e-12)
    assert len(set(losses.values())) == 3


def test_unknown_ids_are_nobodys_relatives():
    batch = tiny_batch()
    batch["image_ids"] = torch.full((4,), -100)
    output = tiny_model(same_image="mask").eval()(**batch)
    assert torch.equal(output.loss_itc, tiny_model().eval()(**batch).loss_itc)


def test_clear_errors():
    model = tiny_model(same_image="mask")
    one = {key: value[:1] for key, value in tiny_batch().items() if key != "mlm_positions"}
    with pytest.raises(ValueError, match="at least 2 pairs"):
        model(**one)
    with pytest.raises(ValueError, match="no pair of this batch has a negative"):
        model(**{**tiny_batch(), "image_ids": torch.zeros(4, dtype=torch.int64)})
    with pytest.raises(ValueError, match="3 images and 4 texts"):
        model(**{**tiny_batch(), "pixel_values": torch.zeros(3, 3, 32, 32)})
    with pytest.raises(ValueError, match="20 tokens is longer than the 16 positions"):
        model(input_ids=torch.ones(2, 20, dtype=torch.int64), pixel_values=torch.zeros(2, 3, 32, 32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"projection_dimm": 3}, "did you mean 'projection_dim'"),
        ({"same_image": "ignore"}, "same_image must be one of"),
        ({"vision_pooling": "max"}, "vision_pooling must be one of"),
        ({"momentum": 1.5}, "momentum must lie between"),
        ({"temperature": 0.9}, "temperature 0.9 must lie between"),
        ({"text_config": {"fusion_layer": 9}}, "fusion_layer must lie between"),
        ({"text_config": {"fusion_layr": 2}}, "did you mean 'fusion_layer'"),
        ({"vision_config": {"hidden_size": 24}}, "vision_config needs a model_type"),
    ],
)
def test_a_wrong_configuration_names_the_field(change, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**change)


def test_a_wrong_width_between_towers_is_named():
    with pytest.raises(ValueError, match="encoder_hidden_size is 99, but tokens .* are 24 wide"):
        AlbefModel(tiny_config(text_config={"encoder_hidden_size": 99}))


# -- backbones --------------------------------------------------------------------------------------------------------

SMALL = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
BACKBONES = {
    "vit": ({"model_type": "vit", "intermediate_size": 32, **SMALL}, "cls", 5),
    "deit": ({"model_type": "deit", "intermediate_size": 32, **SMALL}, "cls", 6),
    "dinov2": ({"model_type": "dinov2", **SMALL}, "mean", 5),
    "siglip": ({"model_type": "siglip_vision_model", "intermediate_size": 32, **SMALL}, "mean", 4),
    "resnet": (
        {
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "layer_type": "basic",
        },
        "pooler",
        16,
    ),
    "timm resnet": ({"model_type": "timm_wrapper", "architecture": "test_resnet"}, "mean", 1),
    "timm vit": ({"model_type": "timm_wrapper", "architecture": "test_vit2"}, "cls", None),
}


@pytest.mark.parametrize("name", list(BACKBONES))
def test_any_backbone_serves(name):
    vision_config, pooling, tokens = BACKBONES[name]
    model = tiny_model(vision_config=vision_config, vision_pooling=pooling)
    size = 64 if name == "timm vit" else 32
    batch = tiny_batch(image_size=size)
    seen = model.get_image_features(batch["pixel_values"]).last_hidden_state
    assert tokens is None or seen.shape[1] == tokens
    output = model(**batch)
    output.loss.backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


def test_another_image_size_interpolates_the_position_table():
    model = tiny_model().eval()
    batch = tiny_batch(image_size=48)
    assert model.get_image_features(batch["pixel_values"]).last_hidden_state.shape == (4, 10, 24)


def test_a_backbone_without_class_token_refuses_cls_pooling():
    with pytest.raises(ValueError, match="no class token"):
        VisionBackbone(tiny_config(vision_config=BACKBONES["resnet"][0]).vision_config, "cls")


def test_gradient_checkpointing_changes_nothing():
    batch = to_double(tiny_batch())
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model().double().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**batch).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_losses_in_full_precision(dtype):
    model = tiny_model().train()
    with torch.autocast("cpu", dtype=dtype):
        output = model(**tiny_batch())
    reference = tiny_model().train()(**tiny_batch())
    assert output.loss.dtype == torch.float32 and output.image_embeds.dtype == torch.float32
    for name in ("loss_itc", "loss_itm", "loss_mlm"):
        torch.testing.assert_close(output[name], reference[name], atol=0.05, rtol=0.02)
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_return_dict_false_gives_a_tuple():
    batch = tiny_batch()
    output = tiny_model().eval()(**batch, return_dict=False)
    assert isinstance(output, tuple) and output[0].dim() == 0


def test_the_linear_layers_of_the_projections_start_like_torch():
    projection = AlbefModel(tiny_config()).vision_projection
    bound = 24**-0.5
    assert projection.weight.abs().max() <= bound and projection.weight.std() > bound / 3
    assert isinstance(projection, nn.Linear) and (projection.bias != 0).all()
