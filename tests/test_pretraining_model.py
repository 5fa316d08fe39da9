"""What only the pre-training model does, and that it agrees with the published names and sizes."""

import math

import pytest
import torch
from helpers import published_state, tiny_batch, tiny_config, tiny_model, to_double
from model_cases import SCORES, copies_equal_online
from safetensors import safe_open
from transformers.core_model_loading import revert_weight_conversion

from albef_hf import AlbefConfig, AlbefForPreTraining, AlbefModel
from albef_hf.convert.albef import convert_state
from albef_hf.losses import unit_vectors

# -- momentum copies through saving and loading -----------------------------------------------------------------------


def moved_model():
    model = tiny_model()
    output = model(**tiny_batch())
    output.loss.backward()
    model.enqueue(output)
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5).step()
    model.update_momentum()
    return model


def test_a_new_model_starts_with_equal_copies():
    assert copies_equal_online(tiny_model())


def test_copies_and_queues_stay_out_of_a_published_folder(tmp_path):
    model = moved_model()
    assert not copies_equal_online(model)
    model.save_pretrained(tmp_path)
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
    scores = {key: tiny_batch()[key] for key in SCORES}
    assert torch.equal(towers.eval()(**scores).logits_per_image, model(**scores).logits_per_image)


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
    ours = revert_weight_conversion(base, base.state_dict())
    expected = {name: tuple(tensor.shape) for name, tensor in converted.items()}
    # What we have beyond the publication: ids in the queues (same-image and same-caption options), and a counter.
    beyond = {"image_queue.ids", "text_queue.ids", "momentum_copy.updates"}
    assert {name: tuple(t.shape) for name, t in ours.items() if name not in beyond} == expected
    assert report.explained
    assert len(report.dropped) == 2 and len(report.tied) == 2 * 2  # position ids; decoder and its bias


# -- the step ---------------------------------------------------------------------------------------------------------


def test_matching_scores_equal_one_pair_at_a_time():
    """Sharing the keys and values of an image among its texts gives the same as each pair by itself."""
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


def test_unknown_ids_match_no_other_pair():
    batch = tiny_batch()
    batch["image_ids"] = torch.full((4,), -100)
    output = tiny_model(same_image="mask").eval()(**batch)
    assert torch.equal(output.loss_itc, tiny_model().eval()(**batch).loss_itc)


def test_masked_and_positive_ids_together():
    """One id shares the target, the other is left out: by hand, for both policies at once."""
    batch = tiny_batch()
    batch["image_ids"], batch["caption_ids"] = torch.tensor([1, 2, 1, 2]), torch.tensor([5, 6, 5, 5])
    for same_image, same_caption in (("positive", "mask"), ("mask", "positive")):
        model = tiny_model(same_image=same_image, same_caption=same_caption, queue_size=0, alpha=0.0).eval()
        output = model(**batch)
        image, text = (model.momentum_copy.get_submodule(name) for name in ("vision_projection", "text_projection"))
        ids = {"image": batch["image_ids"], "caption": batch["caption_ids"]}
        policy = {"image": same_image, "caption": same_caption}
        equal = {name: ids[name][:, None] == ids[name] for name in ids}
        own = torch.eye(4, dtype=torch.bool)
        shared = own | next(equal[name] for name in ids if policy[name] == "positive")
        left_out = next(equal[name] for name in ids if policy[name] == "mask") & ~shared
        albef = model.albef
        with torch.no_grad():
            texts = albef.text_model.encode_text(batch["input_ids"], batch["attention_mask"])[:, 0]
            pictures = albef.vision_model(batch["pixel_values"]).pooled
            online = [unit_vectors(albef.vision_projection(pictures)), unit_vectors(albef.text_projection(texts))]
            keys = [unit_vectors(image(pictures)), unit_vectors(text(texts))]  # copies equal the weights at first
            expected = 0
            for query, key in ((online[0], keys[1]), (online[1], keys[0])):
                logits = (query @ key.T / albef.temperature).masked_fill(left_out, float("-inf"))
                log_probability = logits.log_softmax(1).masked_fill(~shared, 0)
                expected = expected - (log_probability.sum(1) / shared.sum(1)).mean() / 2
        torch.testing.assert_close(output.loss_itc, expected)
        assert left_out.any() and shared.sum() > 4


def test_clear_errors():
    model = tiny_model(same_image="mask")
    one = {key: value[:1] for key, value in tiny_batch().items() if key != "mlm_positions"}
    for gather_negatives in (False, True):  # on one process there is nothing to gather
        with pytest.raises(ValueError, match="at least 2 pairs"):
            tiny_model(same_image="mask", gather_negatives=gather_negatives)(**one)
    with pytest.raises(ValueError, match="no pair of this batch has a negative"):
        model(**{**tiny_batch(), "image_ids": torch.zeros(4, dtype=torch.int64)})
    with pytest.raises(ValueError, match="3 images and 4 texts"):
        model(**{**tiny_batch(), "pixel_values": torch.zeros(3, 3, 32, 32)})
    with pytest.raises(ValueError, match="20 tokens is longer than the 16 positions"):
        model(input_ids=torch.ones(2, 20, dtype=torch.int64), pixel_values=torch.zeros(2, 3, 32, 32))
