"""What only one of the models of downstream tasks does."""

import math
from copy import deepcopy

import pytest
import torch
from helpers import answers, tiny_config, tiny_model, to_double
from model_cases import double, each_question, new, task_batch
from transformers import GenerationConfig

from albef_hf import (
    AlbefForImageTextRetrieval,
    AlbefForPreTraining,
    AlbefForQuestionAnswering,
    AlbefForTextAssignment,
    AlbefForVisualEntailment,
    AlbefForVisualReasoning,
)

# -- retrieval --------------------------------------------------------------------------------------------------------


def test_retrieval_is_pretraining_without_words_that_shares_targets_among_texts_of_an_image(tmp_path):
    source = tiny_model()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
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
        model = new(AlbefForImageTextRetrieval, published_defects=published)
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
    """A model with clear preferences: right after initialization all words are almost equally likely."""
    model = double(AlbefForQuestionAnswering)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def test_the_loss_of_a_batch_is_the_mean_over_its_questions():
    model, batch = double(AlbefForQuestionAnswering), to_double(task_batch(AlbefForQuestionAnswering))
    whole = model(**batch)
    losses = [model(**question).loss.item() for question, _ in each_question(batch, whole)]
    assert sum(losses) / 4 == pytest.approx(whole.loss.item(), abs=1e-12)


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
    model.config.published_defects = published
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


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=["greedy", "beams"])
def test_a_cache_saves_work_and_changes_no_token(options, attention):
    model, lengths = peaked(), []
    model.set_attn_implementation(attention)
    model.decoder.encoder.layer[0].intermediate.register_forward_pre_hook(
        lambda _, states: lengths.append(states[0].shape[1])
    )
    options = {**questions(), "bos_token_id": 2, "eos_token_id": 3, "max_new_tokens": 6, **options}
    plain = model.generate(**options, use_cache=False)
    assert lengths == [1, 2, 3, 4, 5, 6]
    assert torch.equal(model.generate(**options), plain) and lengths[6:] == [1] * 6
    assert len({tuple(row) for row in plain.tolist()}) > 1


def test_generation_follows_its_configuration_and_its_arguments(tmp_path):
    model = peaked()
    ask = {**questions(), "bos_token_id": 2, "eos_token_id": None}
    assert model.generate(**ask).shape[1] == 11
    assert model.generate(**ask, max_length=5).shape[1] == 5
    given = GenerationConfig(max_new_tokens=3, bos_token_id=2, eos_token_id=7)
    written = model.generate(**questions(), generation_config=given)
    assert torch.equal(written, model.generate(**ask | {"eos_token_id": 7}, max_new_tokens=3))
    assert model.generate(**ask, generation_config=given, max_new_tokens=2).shape[1] == 3
    assert model.generate(**ask, generation_config=GenerationConfig(max_length=6)).shape[1] == 6
    assert given.max_new_tokens == 3 and given.pad_token_id is None
    model.generation_config.max_new_tokens, model.generation_config.bos_token_id = 4, 5
    model.save_pretrained(tmp_path)
    loaded = AlbefForQuestionAnswering.from_pretrained(tmp_path).double().eval()
    for one in (model, loaded):
        answers_written = one.generate(**questions())
        assert answers_written.shape[1] == 5 and set(answers_written[:, 0].tolist()) == {5}
    assert model.generation_config.eos_token_id is None
    (tmp_path / "generation_config.json").unlink()
    for fresh in (AlbefForQuestionAnswering.from_pretrained(tmp_path), new(AlbefForQuestionAnswering)):
        assert fresh.generation_config.temperature is None  # and not that of the contrastive loss


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


# -- classes ----------------------------------------------------------------------------------------------------------


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


def test_text_assignment_draws_what_it_says():
    model, batch = double(AlbefForTextAssignment), to_double(task_batch(AlbefForTextAssignment))
    image_ids = torch.tensor([5, 5, 6, 8])
    generator, own, seen = torch.Generator().manual_seed(0), torch.arange(4), []
    for _ in range(100):
        batch["assignment_draws"] = torch.rand(4, 3, generator=generator)
        with torch.no_grad():
            output = model(**batch, image_ids=image_ids)
        labels, first, second = output.labels, output.first_image_index, output.second_image_index
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
    # Each of three images with one id has only one other image, but two are needed.
    for draw, labels in ((0.1, [-100, -100, -100, 2]), (0.5, [1, 1, 1, 1]), (0.9, [0, 0, 0, 0])):
        batch["assignment_draws"][:, 0] = draw
        output = model(**batch, image_ids=torch.tensor([5, 5, 5, 8]))
        assert output.labels.tolist() == labels and output.loss.isfinite()


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
    (AlbefForTextAssignment, {"labels": ZERO}, "give all of labels, .* or none"),
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


def test_numbers_of_images_that_do_not_fit_are_named():
    text_model, width = double(AlbefForVisualReasoning).albef.text_model, 24
    keys_values = text_model.project_image_tokens(torch.zeros(1, 5, width).double())
    with pytest.raises(ValueError, match="this model reads each text with 2 images"):
        text_model.fuse(torch.zeros(1, 3, text_model.config.hidden_size).double(), None, keys_values)
    with pytest.raises(ValueError, match="cannot be divided among images_per_text = 3"):
        tiny_config(text_config={"images_per_text": 3})
    with pytest.raises(ValueError, match="no projections and no temperature"):
        double(AlbefForVisualEntailment).albef.get_image_features(torch.zeros(1, 3, 32, 32))


def test_chance_of_a_class():
    assert new(AlbefForVisualReasoning).chance_losses(8) == {"loss": pytest.approx(math.log(2))}


@pytest.mark.parametrize(
    "kind", [AlbefForPreTraining, AlbefForImageTextRetrieval, AlbefForQuestionAnswering, AlbefForVisualEntailment]
)
def test_a_model_of_two_images_is_refused_by_tasks_of_one(kind):
    config = tiny_config(text_config={"images_per_text": 2, "num_hidden_layers": 6})
    with pytest.raises(ValueError, match="reads a text with 1 image, but the configuration is for .* it with 2"):
        kind(config)
