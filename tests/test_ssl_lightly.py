"""Losses against those of lightly, where it is installed: equal, or different where lightly is wrong."""

import pytest
import torch

from albef_hf.losses import unit_vectors
from ssl_methods.losses import barlow_twins_loss, byol_loss, queue_contrastive_loss

loss = pytest.importorskip("lightly.loss", reason="lightly is not installed")


def features(seed, rows=12, dim=6):
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def test_barlow_twins():
    a, b = features(0), features(1)
    standard = [(z - z.mean(0)) / torch.sqrt(z.var(0, correction=0) + 1e-5) for z in (a, b)]
    ours = barlow_twins_loss(standard[0].T @ standard[1] / len(a), 0.005)
    torch.testing.assert_close(ours, loss.BarlowTwinsLoss(lambda_param=0.005)(a, b))


def test_byol_in_one_direction():
    """Their loss is the negative cosine: ours, 2 - 2 cos, is 2 plus twice theirs. Their caller sums directions."""
    a, b = features(0), features(1)
    torch.testing.assert_close(byol_loss(a, b), 2 + 2 * loss.NegativeCosineSimilarity()(a, b))


def test_moco_with_a_memory_bank():
    criterion = loss.NTXentLoss(temperature=0.2, memory_bank_size=(24, 6))
    a, b = features(0), features(1)
    criterion(a, b)  # makes the bank, and fills a part of it after the loss
    bank = criterion.memory_bank.bank.clone()
    queue = bank if bank.shape[1] == 6 else bank.T
    c, d = features(2).requires_grad_(), features(3)
    ours = queue_contrastive_loss(unit_vectors(c), unit_vectors(d), queue, 0.2)
    torch.testing.assert_close(ours, criterion(c, d))


def test_a_symmetric_loss_through_one_bank_meets_its_own_keys():
    """Documented difference (lightly #564): with both directions through one memory bank, the first direction's keys
    are among the negatives of the second. Our queues take keys once, after both losses."""
    a, b = unit_vectors(features(0)), unit_vectors(features(1))
    criterion = loss.NTXentLoss(temperature=0.2, memory_bank_size=(24, 6))
    criterion(features(4).requires_grad_(), features(5))
    bank = criterion.memory_bank.bank.clone()
    queue = bank if bank.shape[1] == 6 else bank.T
    criterion(a.clone().requires_grad_(), b)
    second = criterion(b.clone().requires_grad_(), a)
    ours = queue_contrastive_loss(b, a, queue, 0.2)
    assert (second - ours).abs() > 1e-3
