"""Recall arithmetic: hand-made matrices, ties, several right answers, chance, and the metric module."""

import evaluate
import numpy as np
import pytest
import torch

from albef_hf.evaluation import RETRIEVAL_RECALL, recall_from_scores
from albef_hf.evaluation.recall import best_ranks, chance_recall, group_codes, relevant_counts, reranked_ranks


def test_known_recalls_of_a_hand_made_matrix():
    # Image 0 finds its text first, image 1 third, image 2 second; texts: 0 first, 1 second, 2 third (ahead: 0 and 1).
    scores = torch.tensor([[0.9, 0.5, 0.8], [0.7, 0.4, 0.6], [0.1, 0.3, 0.2]])
    metrics, chance = recall_from_scores(scores, ["a", "b", "c"], ["a", "b", "c"])
    assert metrics["image_to_text_r1"] == pytest.approx(1 / 3)
    assert metrics["text_to_image_r1"] == pytest.approx(1 / 3)
    assert metrics["image_to_text_r5"] == metrics["text_to_image_r10"] == 1.0
    assert metrics["mean_recall"] == pytest.approx((2 / 3 + 4) / 6)
    assert chance["image_to_text_r1"] == pytest.approx(1 / 3)
    assert chance["image_to_text_r5"] == 1.0


def test_ranks_count_the_wrong_candidates_ahead():
    scores = torch.tensor([[0.9, 0.5, 0.8], [0.7, 0.4, 0.6], [0.1, 0.3, 0.2]])
    assert best_ranks(scores, torch.eye(3, dtype=torch.bool)).tolist() == [0, 2, 1]


def test_several_right_answers_count_once_by_the_best_and_never_against_each_other():
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.1, 0.0, 0.6]])
    relevant = torch.tensor([[False, True, True, True, False, False]])
    assert best_ranks(scores, relevant).tolist() == [1]
    assert best_ranks(-scores, relevant).tolist() == [1]  # only the 0.0 is ahead of the 0.1


def test_a_constant_score_finds_nothing():
    for value in (0.0, 1.0, float("-inf"), float("nan")):
        scores = torch.full((20, 20), value)
        metrics, _ = recall_from_scores(scores, range(20), range(20))
        assert set(metrics.values()) == {0.0}, value


def test_a_tie_with_the_right_answer_counts_as_ahead():
    relevant = torch.tensor([[True, False, False]])
    assert best_ranks(torch.tensor([[0.5, 0.5, 0.1]]), relevant).tolist() == [1]
    assert best_ranks(torch.tensor([[0.5, 0.4, float("nan")]]), relevant).tolist() == [1]
    assert best_ranks(torch.tensor([[float("nan"), 0.4, 0.1]]), relevant).tolist() == [2]


def test_queries_without_a_right_answer_are_left_out():
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.9, 0.8]])
    metrics, chance = recall_from_scores(scores, ["a", "b", "stranger"], ["a", "b"])
    assert metrics["image_to_text_r1"] == 1.0
    assert chance["image_to_text_r1"] == 0.5
    assert metrics["text_to_image_r1"] == 0.0  # the stranger ties with both and counts against them


def test_reranking_moves_the_shortlist_only():
    matching = torch.tensor([[0.1, 0.9], [0.1, 0.9]])
    relevant = torch.tensor([[True, False], [False, False]])
    everything = torch.ones_like(relevant)
    assert reranked_ranks(matching, torch.tensor([0, 7]), relevant, everything).tolist() == [1, 7]


def test_a_right_candidate_that_tied_with_those_left_out_stays_behind():
    matching = torch.tensor([[0.9, 0.8, 0.1]])
    relevant = torch.tensor([[True, True, False]])
    admitted = torch.tensor([[False, False, True]])
    assert reranked_ranks(matching, torch.tensor([6]), relevant, admitted).tolist() == [6]
    # The other right one does not count against the one that was admitted.
    admitted = torch.tensor([[False, True, True]])
    assert reranked_ranks(matching, torch.tensor([6]), relevant, admitted).tolist() == [0]


@pytest.mark.parametrize(
    ("right", "candidates", "cutoff"), [(1, 30, 1), (5, 30, 5), (3, 12, 10), (4, 6, 5), (2, 4, 10)]
)
def test_chance_agrees_with_simulation(right, candidates, cutoff):
    generator = np.random.default_rng(0)
    draws = generator.random((40_000, candidates)).argsort(axis=1)[:, :cutoff]
    simulated = (draws < right).any(axis=1).mean()
    exact = chance_recall(torch.tensor([right]), candidates, cutoff)
    assert exact == pytest.approx(simulated, abs=0.01)


def test_chance_of_mixed_queries_is_the_mean_of_each():
    image_groups, text_groups = group_codes(["a", "b", "c"], ["a", "a", "b", "b", "b", "c"])
    counts = relevant_counts(image_groups, text_groups)
    assert counts.tolist() == [2, 3, 1]
    assert chance_recall(counts, 6, 1) == pytest.approx((2 + 3 + 1) / 18)


def test_what_cannot_be_measured_is_named():
    with pytest.raises(ValueError, match=r"\(2, 3\) do not fit 2 images and 2 texts"):
        recall_from_scores(torch.zeros(2, 3), ["a", "b"], ["a", "b"])
    with pytest.raises(ValueError, match="no text belongs to any image.*'a'.*'x'"):
        recall_from_scores(torch.zeros(1, 1), ["a"], ["x"])
    with pytest.raises(ValueError, match="got 0 and 1"):
        recall_from_scores(torch.zeros(0, 1), [], ["x"])


def test_the_metric_module_loads_offline_and_agrees(no_network, tmp_path):
    metric = evaluate.load(RETRIEVAL_RECALL, cache_dir=str(tmp_path))
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(8, 14, generator=generator, dtype=torch.float64)
    image_groups = [0, 1, 2, 3, 4, 5, 6, 6]
    text_groups = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6]
    found = metric.compute(predictions=scores.tolist(), references=image_groups, text_groups=text_groups)
    metrics, chance = recall_from_scores(scores, image_groups, text_groups)
    assert 0 < metrics["mean_recall"] < 1
    assert found == pytest.approx(metrics | {f"chance_{name}": value for name, value in chance.items()})
    words = metric.compute(predictions=[[0.9, 0.1], [0.7, 0.2]], references=["a", "b"], text_groups=["a", "b"])
    assert words["image_to_text_r1"] == 0.5
    with pytest.raises(ValueError, match="text_groups is missing"):
        metric.compute(predictions=scores.tolist(), references=image_groups)
