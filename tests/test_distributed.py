"""Two processes against one on the same global batch (negatives over all ranks, dropout 0, float64)."""

from pathlib import Path

import pytest
import torch
from distributed_worker import run_steps
from helpers import run_two_ranks

WORKER = Path(__file__).parent / "distributed_worker.py"


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return run_two_ranks(WORKER, tmp_path_factory.mktemp("two_ranks"))


def test_two_ranks_equal_one_process(two_ranks):
    alone = run_steps(0, 1, gather_negatives=True)
    for results in two_ranks:
        assert results.keys() == alone.keys()
        for name, expected in alone.items():
            torch.testing.assert_close(
                results[name], expected, atol=1e-9, rtol=0, msg=lambda text, n=name: f"{n}: {text}"
            )


def test_both_ranks_hold_the_same_state(two_ranks):
    one, other = two_ranks
    assert all(torch.equal(one[name], other[name]) for name in one if name.startswith("state."))


def test_without_a_process_group_gathering_is_the_identity():
    gathered, local = run_steps(0, 1, gather_negatives=True), run_steps(0, 1, gather_negatives=False)
    assert all(torch.equal(gathered[name], local[name]) for name in local)


def test_an_evaluation_that_fails_on_one_rank_fails_on_all(tmp_path):
    """Otherwise the others would wait, or take the numbers of the next step for those they wait for."""
    healthy, failing = run_two_ranks(WORKER.with_name("failing_worker.py"), tmp_path)
    for case in ("retrieve", "predict", "probe"):
        own, told = (bytes(results[case].tolist()).decode() for results in (failing, healthy))
        assert own != "nothing" and told == f"RuntimeError: rank 1: {own}", case
        assert healthy[f"{case}/together"] == failing[f"{case}/together"] == 2, case
