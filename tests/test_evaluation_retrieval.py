"""Retrieval with a toy model and with a tiny ALBEF: contrast and re-ranking against scoring every pair by itself."""

import random

import datasets
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from helpers import tiny_model
from retrieval_helpers import WIDTH, ToyModel, make_data
from torch import nn

from albef_hf.data.retrieval import RetrievalData, gallery
from albef_hf.evaluation import RetrievalResult, evaluate_retrieval, retrieval, retrieval_ranking
from albef_hf.evaluation.retrieval_ranking import length_batches


class ToyProcessor:
    """Pictures as they are; a text is its letters."""

    def __call__(self, images, return_tensors):
        assert return_tensors == "pt"
        pixels = [torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255 for image in images]
        return {"pixel_values": torch.stack(pixels)}

    def tokenize_captions(self, texts, max_length, padding):
        assert padding == "longest"
        rows = [[2, *(5 + ord(letter) % 50 for letter in text)][:max_length] for text in texts]
        longest = max(len(row) for row in rows)
        return {
            "input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
        }


def score_every_pair(model, data: RetrievalData) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine similarities and matching logits, one image and one text at a time."""
    processor, weight = ToyProcessor(), next(model.parameters())
    similarity = torch.empty(len(data.image_groups), len(data.texts), dtype=weight.dtype)
    matching = torch.empty_like(similarity)
    with torch.no_grad():
        for row, picture in enumerate(data.images["image"]):
            pixel_values = processor(images=[picture], return_tensors="pt")["pixel_values"]
            image = model.get_image_features(pixel_values.to(weight.dtype))
            for column, words in enumerate(data.texts):
                encoding = processor.tokenize_captions([words], max_length=25, padding="longest")
                text = model.get_text_features(encoding["input_ids"], encoding["attention_mask"])
                similarity[row, column] = image.pooler_output[0] @ text.pooler_output[0]
                matching[row, column] = model.matching_logits(
                    text.last_hidden_state,
                    encoding["attention_mask"],
                    model.project_image_tokens(image.last_hidden_state),
                )[0, 1]
    return similarity, matching


def published_order(similarity: torch.Tensor, matching: torch.Tensor, k: int) -> torch.Tensor:
    """The released evaluation: matching scores for the k most similar candidates, -100 for all others."""
    scores = torch.full_like(similarity, -100.0)
    for row in range(len(similarity)):
        best = similarity[row].topk(k).indices
        scores[row, best] = matching[row, best]
    return scores


def published_recall(scores: torch.Tensor, query_groups: list, candidate_groups: list, cutoff: int) -> float:
    hits = 0
    for row, group in zip(scores.tolist(), query_groups, strict=True):
        order = sorted(range(len(row)), key=lambda candidate: -row[candidate])
        hits += any(candidate_groups[candidate] == group for candidate in order[:cutoff])
    return hits / len(query_groups)


@pytest.mark.parametrize("build", [ToyModel, tiny_model], ids=["toy", "albef"])
def test_contrast_and_reranking_equal_scoring_every_pair(build):
    model, data, k = build().double().eval(), make_data(images=12), 10
    if build is tiny_model:  # as initialized, its matching logits are nearly equal
        with torch.no_grad():
            for parameter in model.albef.text_model.parameters():
                parameter.mul_(8)
    similarity, matching = score_every_pair(model, data)
    result = evaluate_retrieval(model, ToyProcessor(), data, k=k, batch_size=4)

    sides = {
        "image_to_text": (similarity, matching, data.image_groups, data.text_groups),
        "text_to_image": (similarity.T, matching.T, data.text_groups, data.image_groups),
    }
    for name, (similar, match, queries, candidates) in sides.items():
        scores = published_order(similar, match, k)
        for cutoff in (1, 5, 10):
            assert result.metrics[f"{name}_r{cutoff}"] == pytest.approx(
                published_recall(similar, queries, candidates, cutoff)
            )
            assert result.metrics[f"reranked_{name}_r{cutoff}"] == pytest.approx(
                published_recall(scores, queries, candidates, cutoff)
            )
        expected = scores.topk(10, dim=1)
        found = torch.from_numpy(getattr(result, f"{name}_scores")).double()
        torch.testing.assert_close(found, expected.values, rtol=1e-6, atol=1e-6)
        assert getattr(result, name).tolist() == expected.indices.tolist()
        # Contrast and matching disagree; otherwise the comparisons above would prove little.
        assert (expected.indices != similar.topk(10, dim=1).indices).any()
    assert result.chance["reranked_mean_recall"] == result.chance["mean_recall"]


def same(first: RetrievalResult, second: RetrievalResult) -> None:
    assert first.metrics == pytest.approx(second.metrics)
    assert first.chance == pytest.approx(second.chance)
    for name in ("image_to_text", "text_to_image", "image_ranks", "text_ranks"):
        assert getattr(first, name).tolist() == getattr(second, name).tolist(), name
    for name in ("image_to_text_scores", "text_to_image_scores"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [3, 9])
def test_blocks_and_memory_change_nothing(k, monkeypatch):
    model, data = ToyModel(), make_data()
    whole = evaluate_retrieval(model, ToyProcessor(), data, k=k, batch_size=64)
    monkeypatch.setattr(retrieval_ranking, "SIMILARITIES_AT_ONCE", 30)
    monkeypatch.setattr(retrieval_ranking, "PAIRS_AT_ONCE", 2)
    same(whole, evaluate_retrieval(model, ToyProcessor(), data, k=k, batch_size=2, token_memory=1))


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_token_states_on_disk_are_not_encoded_again(dtype, tmp_path):
    data, kept, on_disk = make_data(), ToyModel(), ToyModel()
    whole = evaluate_retrieval(kept, ToyProcessor(), data, k=4, batch_size=64, token_dtype=dtype)
    folder = tmp_path / "states"
    stored = evaluate_retrieval(
        on_disk, ToyProcessor(), data, k=4, batch_size=4, token_dtype=dtype, token_memory=1, token_folder=folder
    )
    same(whole, stored)
    assert on_disk.calls == kept.calls and on_disk.calls.texts == 23
    assert list(folder.iterdir()) == []  # nothing is left
    if dtype is not None:  # half precision rounds, and no more than that
        exact = evaluate_retrieval(ToyModel(), ToyProcessor(), data, k=4, batch_size=4)
        np.testing.assert_allclose(whole.image_to_text_scores, exact.image_to_text_scores, atol=5e-3)
        assert not np.array_equal(whole.image_to_text_scores, exact.image_to_text_scores, equal_nan=True)


def test_a_folder_without_room_is_named(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(ValueError, match="token_folder .* has no room for [0-9,]+ bytes: .*No space"):
        evaluate_retrieval(ToyModel(), ToyProcessor(), make_data(), k=4, token_memory=1, token_folder=tmp_path)


def test_several_k_in_one_pass_equal_each_by_itself():
    model, data = ToyModel(), make_data()
    together = evaluate_retrieval(model, ToyProcessor(), data, k=[9, 2, 5], batch_size=4)
    pairs = model.calls.pairs
    assert list(together.sweep) == [2, 5, 9] and together.k == 9
    for k, metrics in together.sweep.items():
        alone = evaluate_retrieval(ToyModel(), ToyProcessor(), data, k=k, batch_size=4)
        assert metrics == {
            name.removeprefix("reranked_"): value
            for name, value in (alone.metrics | alone.median_ranks).items()
            if name.startswith("reranked_")
        }
        if k == 9:
            same(together, alone)
    assert len({metrics["text_to_image_r1"] for metrics in together.sweep.values()}) > 1
    before = model.calls.pairs
    evaluate_retrieval(model, ToyProcessor(), data, k=9, batch_size=4)
    assert pairs == model.calls.pairs - before  # the smaller k cost nothing


def test_the_sum_adds_cosine_to_the_matching_logit_and_contrast_needs_no_head():
    model, data = ToyModel().double().eval(), make_data()
    similarity, matching = score_every_pair(model, data)
    result = evaluate_retrieval(model, ToyProcessor(), data, k=3, score="sum", batch_size=4)
    expected = published_order(similarity, matching + similarity, 3).topk(3, dim=1)
    found = torch.from_numpy(result.image_to_text_scores[:, :3])
    torch.testing.assert_close(found, expected.values, rtol=1e-9, atol=1e-9)
    assert result.image_to_text[:, :3].tolist() == expected.indices.tolist()
    expected = published_order(similarity.T, matching.T + similarity.T, 3).topk(3, dim=1)
    found = torch.from_numpy(result.text_to_image_scores[:, :3])
    torch.testing.assert_close(found, expected.values, rtol=1e-9, atol=1e-9)
    assert result.text_to_image[:, :3].tolist() == expected.indices.tolist()
    model.matching_logits = None  # calling it would raise
    contrastive = evaluate_retrieval(model, ToyProcessor(), data, k=3, score="contrastive", batch_size=4)
    assert contrastive.k == 0 and not any(name.startswith("reranked_") for name in contrastive.metrics)


def test_texts_are_fused_with_others_of_their_length(monkeypatch):
    monkeypatch.setattr(retrieval_ranking, "BUCKET_PAIRS", 2)
    lengths = torch.tensor([3, 4, 4, 6, 7, 11, 20, 21])
    # A bucket starts at 7. From 11 on so few texts are in it that one of 20 still joins.
    assert [lengths[batch].tolist() for batch in length_batches(lengths)] == [[3, 4, 4, 6], [7, 11], [20, 21]]
    monkeypatch.setattr(retrieval_ranking, "PAIRS_AT_ONCE", 3)
    assert [lengths[batch].tolist() for batch in length_batches(lengths)][0] == [3, 4, 4]
    data = make_data()
    assert max(len(text) for text in data.texts) - min(len(text) for text in data.texts) >= 8
    widths = []
    model = ToyModel()
    fuse = model.matching_logits
    model.matching_logits = lambda states, *rest: widths.append(states.shape[1]) or fuse(states, *rest)
    evaluate_retrieval(model, ToyProcessor(), data, k=9, batch_size=4)
    assert min(widths) < max(widths) - 3


def test_nothing_is_computed_twice():
    model, data = ToyModel(), make_data()
    evaluate_retrieval(model, ToyProcessor(), data, k=4, batch_size=4)
    assert (model.calls.images, model.calls.texts, model.calls.projected) == (9, 23, 9)
    # Both directions together ask for 9 * 4 + 23 * 4 pairs, and some of them for the same.
    assert 23 * 4 <= model.calls.pairs < 9 * 4 + 23 * 4


def test_without_reranking_the_matching_head_is_not_needed():
    model = ToyModel()
    model.matching_logits = None  # calling it would raise
    result = evaluate_retrieval(model, ToyProcessor(), make_data(), batch_size=4)
    assert set(result.metrics) == set(result.chance)
    assert not any(name.startswith("reranked_") for name in result.metrics)
    assert result.image_to_text.shape == (9, 10) and result.text_to_image.shape == (23, 9)


def test_a_model_that_says_the_same_of_everything_finds_nothing():
    model = ToyModel()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.patch.bias.fill_(1)
        model.embedding.weight.fill_(1)
    result = evaluate_retrieval(model, ToyProcessor(), make_data(images=20, texts=40), k=5, batch_size=8)
    assert result.metrics["image_to_text_r10"] == result.metrics["reranked_image_to_text_r10"] == 0
    assert result.metrics["text_to_image_r10"] == result.metrics["reranked_text_to_image_r10"] == 0


def test_training_mode_and_random_numbers_are_left_alone():
    model = ToyModel().train()
    model.patch.eval()  # a frozen part
    modes = {name: module.training for name, module in model.named_modules()}
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = (random.random(), np.random.rand(), torch.rand(1).item())
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    first = evaluate_retrieval(model, ToyProcessor(), make_data(), k=3, batch_size=4)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    assert {name: module.training for name, module in model.named_modules()} == modes
    # Dropout was off, or the second time would differ.
    same(first, evaluate_retrieval(model, ToyProcessor(), make_data(), k=3, batch_size=4))


def test_training_mode_is_put_back_after_an_error():
    model, data = ToyModel().train(), make_data()
    model.head = nn.Linear(WIDTH + 1, 2)
    with pytest.raises(RuntimeError):
        evaluate_retrieval(model, ToyProcessor(), data, k=3)
    assert model.training and model.dropout.training


def test_wrong_arguments_are_named():
    data = make_data()
    with pytest.raises(ValueError, match="not -1"):
        evaluate_retrieval(ToyModel(), ToyProcessor(), data, k=-1)
    with pytest.raises(ValueError, match="not 0"):
        evaluate_retrieval(ToyModel(), ToyProcessor(), data, batch_size=0)
    with pytest.raises(ValueError, match="k = 10 .* gallery of images has 9, so use k <= 9"):
        evaluate_retrieval(ToyModel(), ToyProcessor(), data, k=[3, 10])
    with pytest.raises(ValueError, match="one of matching, sum, contrastive, not 'cosine'"):
        evaluate_retrieval(ToyModel(), ToyProcessor(), data, k=3, score="cosine")
    with pytest.raises(ValueError, match="draws, 0 or more, not -5"):
        evaluate_retrieval(ToyModel(), ToyProcessor(), data, bootstrap=-5)
    with pytest.raises(ValueError, match="Linear has no matching head.*k=0 instead of 4"):
        evaluate_retrieval(nn.Linear(1, 1), ToyProcessor(), data, k=4)


def test_a_result_survives_json():
    result = evaluate_retrieval(ToyModel(), ToyProcessor(), make_data(), k=[2, 3], batch_size=4, bootstrap=5)
    assert np.isnan(result.image_to_text_scores[:, 3:]).all()
    again = RetrievalResult.from_json(result.to_json())
    assert again.metrics == result.metrics and again.name == "noise" and again.k == 3
    for name in ("median_ranks", "intervals", "sweep", "score"):
        assert getattr(again, name) == getattr(result, name), name
    same(result, again)


# Shares that differ in size, and fewer images than ranks.
SIZES = ((9, 23), (1, 3))


def _one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for images, texts in SIZES:
        model = ToyModel()
        result = evaluate_retrieval(model, ToyProcessor(), make_data(images, texts), k=min(4, images), batch_size=4)
        with open(f"{folder}/{images}-{rank}.json", "w", encoding="utf-8") as file:
            file.write(result.to_json())
        if images > 1:  # the work was shared
            assert model.calls.images < images and model.calls.texts < texts and model.calls.projected < images
            on_disk = evaluate_retrieval(
                ToyModel(),
                ToyProcessor(),
                make_data(images, texts),
                k=4,
                batch_size=4,
                token_memory=1,
                token_folder=folder,
            )
            same(result, on_disk)
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    multiprocessing.spawn(_one_of_two, args=(str(tmp_path),), nprocs=2)
    for images, texts in SIZES:
        alone = evaluate_retrieval(
            ToyModel(), ToyProcessor(), make_data(images, texts), k=min(4, images), batch_size=4
        )
        for rank in range(2):
            same(alone, retrieval.read_result(tmp_path / f"{images}-{rank}.json"))


def test_captions_without_words_are_no_texts_to_find():
    features = datasets.Features(
        {
            "image": datasets.Value("string"),
            "captions": datasets.List(datasets.Value("string")),
            "group": datasets.Value("int64"),
        }
    )
    rows = {"image": ["a", "b"], "captions": [["", "a cat", " "], ["a dog"]], "group": [0, 1]}
    data = gallery(datasets.Dataset.from_dict(rows, features=features), "group", "toys", first_caption=True)
    assert data.texts == ["a cat", "a dog"] and data.text_groups == [0, 1]
    rows["captions"][1] = [" ", ""]
    with pytest.raises(ValueError, match="toys, row 1: no caption with words, so no text is right for it"):
        gallery(datasets.Dataset.from_dict(rows, features=features), "group", "toys")
