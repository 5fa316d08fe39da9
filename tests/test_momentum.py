"""Momentum copies and queues."""

from collections import deque

import pytest
import torch
from torch import nn

from albef_hf.momentum import FeatureQueue, MomentumCopy


def test_update_is_the_moving_average_of_every_parameter():
    online = {"tower": nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), "head": nn.Linear(4, 2)}
    copy = MomentumCopy(online)
    start = {name: parameter.clone() for name, parameter in copy.named_parameters()}
    with torch.no_grad():
        for module in online.values():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
    copy.update(online, 0.9)
    for name, parameter in copy.named_parameters():
        part, _, rest = name.partition(".")
        expected = 0.9 * start[name] + 0.1 * online[part].get_parameter(rest)
        torch.testing.assert_close(parameter, expected, atol=1e-7, rtol=1e-6)
    assert not any(parameter.requires_grad for parameter in copy.parameters())


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_the_ends_of_momentum_are_exact(momentum):
    online = {"head": nn.Linear(4, 2)}
    copy = MomentumCopy(online)
    before = copy.head.weight.clone()
    with torch.no_grad():
        online["head"].weight.add_(1.0)
    copy.update(online, momentum)
    assert torch.equal(copy.head.weight, before if momentum == 1.0 else online["head"].weight)


@pytest.mark.parametrize("size", [1, 6, 64])
def test_queue_equals_a_deque_for_any_batch(size):
    queue = FeatureQueue(size, dim=2, id_columns=1)
    oracle = deque([[row, number] for row, number in zip(queue.features.tolist(), queue.ids.tolist(), strict=True)])
    generator = torch.Generator().manual_seed(0)
    written = 0
    for count in [1, 3, 5, 7, 0, 6, 2, 64, 13, 200]:
        rows = torch.randn(count, 2, generator=generator)
        ids = torch.arange(written, written + count)[:, None]
        written += count
        queue.enqueue(rows, ids)
        for row, number in zip(rows.tolist(), ids.tolist(), strict=True):
            oracle.popleft()
            oracle.append([row, number])
        order = (torch.arange(size) + queue.cursor) % size  # oldest first
        assert queue.features[order].tolist() == [row for row, _ in oracle]
        assert queue.ids[order].tolist() == [number for _, number in oracle]
        assert queue.cursor.item() == written % size


def test_an_empty_queue_takes_anything_and_stays_empty():
    queue = FeatureQueue(0, dim=3, id_columns=2)
    queue.enqueue(torch.randn(5, 3), torch.ones(5, 2, dtype=torch.int64))
    assert queue.features.shape == (0, 3)


def test_a_queue_starts_with_unit_rows_and_no_ids():
    queue = FeatureQueue(100, dim=8, id_columns=2)
    torch.testing.assert_close(queue.features.norm(dim=1), torch.ones(100))
    assert (queue.ids == -100).all()
