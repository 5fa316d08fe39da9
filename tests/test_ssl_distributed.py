"""Two processes against one on the same global batch, for every image-only method (float64)."""

from pathlib import Path

import pytest
import torch
from helpers import run_two_ranks
from ssl_distributed_worker import CASES, run_steps

from ssl_methods import normalization

WORKER = Path(__file__).parent / "ssl_distributed_worker.py"


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return run_steps(0, 1), run_two_ranks(WORKER, tmp_path_factory.mktemp("two_ranks"))


@pytest.mark.parametrize("case", [case for case in CASES if case != "barlow_twins_published"])
def test_two_ranks_equal_one_process(both, case):
    alone, ranks = both
    names = [name for name in alone if name.startswith(f"{case}/")]
    assert len(names) > 20
    for results in ranks:
        for name in names:
            torch.testing.assert_close(
                results[name], alone[name], atol=1e-9, rtol=1e-7, msg=lambda text, n=name: f"{n}: {text}"
            )


def test_the_published_gradient_is_the_true_one_over_the_ranks(both):
    """An all-reduce that autograd does not see halves the gradients on two ranks. The loss is the same."""
    alone, (first, _) = both
    torch.testing.assert_close(first["barlow_twins_published/loss/0"], alone["barlow_twins/loss/0"])
    ratios = {"barlow_twins": [], "barlow_twins_published": []}
    for case, found in ratios.items():
        for name, expected in alone.items():
            if name.startswith("barlow_twins/gradient/projector") and name.endswith("weight"):
                own = first[name.replace("barlow_twins/", f"{case}/")]
                found.append(float(own.norm() / expected.norm()))
    assert ratios["barlow_twins"] == pytest.approx([1.0] * len(ratios["barlow_twins"]), abs=1e-6)
    # Batch normalization still shares its statistics, so only the last layer shows exactly this factor.
    assert ratios["barlow_twins_published"][-1] == pytest.approx(0.5, abs=1e-6)


def test_normalization_over_ranks_in_bfloat16_is_that_of_one_process(monkeypatch):
    """Two ranks with equal rows, without a process group."""
    monkeypatch.setattr(normalization, "world_size", lambda: 2)
    monkeypatch.setattr(normalization, "sum_over_ranks", lambda value: 2 * value)
    rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    over_ranks, plain = normalization.SyncBatchNorm(3), torch.nn.BatchNorm1d(3)
    found, expected = over_ranks(rows), plain(torch.cat([rows, rows]))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected[:4])
    torch.testing.assert_close(over_ranks.state_dict(), plain.state_dict())
