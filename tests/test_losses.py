"""The losses against closed forms and brute force."""

import math

import pytest
import torch
from torch import nn

from albef_hf.losses import (
    contrastive_loss,
    matching_loss,
    mean_cross_entropy,
    sample_hard_negatives,
)


def random_logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_contrast_of_equal_similarities_is_log_of_keys():
    loss = contrastive_loss(torch.zeros(5, 12), torch.arange(5), torch.zeros(5, 12), 0.4)
    assert loss.item() == pytest.approx(math.log(12))


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_contrast_equals_cross_entropy_with_dense_targets(alpha):
    logits, teacher = random_logits(4, 9), random_logits(4, 9, seed=1)
    own = torch.arange(4)
    targets = alpha * teacher.softmax(1) + (1 - alpha) * nn.functional.one_hot(own, 9).double()
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    assert contrastive_loss(logits, own, teacher, alpha).item() == pytest.approx(expected.item(), abs=1e-12)


def test_soft_cross_entropy_has_the_gradient_of_the_papers_divergence():
    """Equation 6 is (1 - alpha) * L + alpha * KL(q || p); our form differs from it only by the entropy of q."""
    teacher, alpha = random_logits(4, 9, seed=1), 0.4
    ours = random_logits(4, 9).requires_grad_()
    contrastive_loss(ours, torch.arange(4), teacher, alpha).backward()
    papers = random_logits(4, 9).requires_grad_()
    hard = nn.functional.cross_entropy(papers, torch.arange(4))
    divergence = nn.functional.kl_div(papers.log_softmax(1), teacher.softmax(1), reduction="batchmean")
    ((1 - alpha) * hard + alpha * divergence).backward()
    torch.testing.assert_close(ours.grad, papers.grad, atol=1e-12, rtol=0)


def test_several_positives_share_the_target():
    logits = random_logits(2, 5)
    positives = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 0, 0, 0]], dtype=torch.bool)
    targets = positives / positives.sum(1, keepdim=True)
    expected = -(targets * logits.log_softmax(1)).sum(1).mean()
    assert contrastive_loss(logits, positives).item() == pytest.approx(expected.item(), abs=1e-12)


def test_keys_left_out_do_not_exist():
    logits, teacher = random_logits(3, 7), random_logits(3, 7, seed=1)
    left_out = torch.zeros(3, 7, dtype=torch.bool)
    left_out[:, 5:] = True
    masked = contrastive_loss(logits, torch.arange(3), teacher, 0.4, left_out)
    cut = contrastive_loss(logits[:, :5], torch.arange(3), teacher[:, :5], 0.4)
    assert masked.item() == pytest.approx(cut.item(), abs=1e-12)
    logits.requires_grad_()
    contrastive_loss(logits, torch.arange(3), teacher, 0.4, left_out).backward()
    assert logits.grad.isfinite().all() and (logits.grad[:, 5:] == 0).all()


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_language_modeling_equals_brute_force_over_the_vocabulary(alpha):
    """The softmax runs over the vocabulary: the publication once took it over positions."""
    logits, teacher = random_logits(6, 11), random_logits(6, 11, seed=1)
    labels = torch.tensor([3, -100, 0, 10, -100, 7])
    per_position = [
        -(1 - alpha) * logits[row].log_softmax(0)[label]
        - alpha * (teacher[row].softmax(0) * logits[row].log_softmax(0)).sum()
        for row, label in enumerate(labels.tolist())
        if label != -100
    ]
    expected = torch.stack(per_position).mean()
    actual = mean_cross_entropy(logits, labels, teacher if alpha else None, alpha)
    assert actual.item() == pytest.approx(expected.item(), abs=1e-12)


def test_no_masked_position_costs_nothing():
    logits = torch.zeros(0, 11, requires_grad=True)
    loss = mean_cross_entropy(logits, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0
    assert matching_loss(torch.zeros(2, 2), torch.tensor([-100, -100])).item() == 0


def test_matching_ignores_rows_without_a_negative():
    logits = random_logits(4, 2)
    labels = torch.tensor([1, 0, -100, 0])
    expected = nn.functional.cross_entropy(logits[[0, 1, 3]], labels[[0, 1, 3]])
    assert matching_loss(logits, labels).item() == pytest.approx(expected.item(), abs=1e-12)


def test_adding_a_constant_before_the_softmax_changes_no_probability():
    """So the publication's `+ 1e-4` has no effect; we mask before the softmax instead."""
    logits = random_logits(3, 5)
    torch.testing.assert_close((logits + 1e-4).softmax(1), logits.softmax(1), atol=1e-15, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.07, 0.02, 0.001])
def test_a_hard_negative_is_never_excluded_however_sure_the_model(dtype, temperature):
    rows = 64
    similarity = torch.full((rows, rows), 0.05)
    similarity.fill_diagonal_(0.95)
    similarity = (similarity / temperature).to(dtype)
    excluded = torch.eye(rows, dtype=torch.bool)
    excluded[0, 1:9] = True
    draws = torch.linspace(0, 1 - 2**-24, rows)
    index, found = sample_hard_negatives(similarity, excluded, draws)
    assert found.all() and not excluded[torch.arange(rows), index].any()


def test_hard_negatives_follow_the_softmax():
    similarity = torch.tensor([[2.0, 0.0, 1.0, -1.0]]).log_softmax(1)
    excluded = torch.tensor([[True, False, False, False]])
    draws = (torch.arange(20000) + 0.5) / 20000
    index, _ = sample_hard_negatives(similarity.expand(20000, 4), excluded.expand(20000, 4), draws)
    frequency = torch.bincount(index, minlength=4) / 20000
    expected = similarity[0].masked_fill(excluded[0], -torch.inf).softmax(0)
    torch.testing.assert_close(frequency, expected, atol=1e-3, rtol=0)


def test_vanishing_mass_falls_back_to_uniform():
    similarity = torch.full((4000, 4), torch.nan)
    excluded = torch.tensor([[True, False, False, True]]).expand(4000, 4)
    index, found = sample_hard_negatives(similarity, excluded, torch.linspace(0, 0.999, 4000))
    frequency = torch.bincount(index, minlength=4) / 4000
    torch.testing.assert_close(frequency, torch.tensor([0, 0.5, 0.5, 0]), atol=2e-3, rtol=0)
    assert found.all()


def test_a_row_without_candidates_is_reported():
    _, found = sample_hard_negatives(torch.zeros(2, 2), torch.tensor([[True, True], [True, False]]), torch.rand(2))
    assert found.tolist() == [False, True]
