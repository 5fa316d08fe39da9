"""Two processes against one on the same global batch (negatives over all ranks, dropout 0, float64)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_worker import run_steps
from safetensors.torch import load_file

WORKER = Path(__file__).parent / "distributed_worker.py"


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_ranks")
    environment = {**os.environ, "PYTHONPATH": str(WORKER.parent.parent), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder), str(rank), "2"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for worker in workers:
        printed, _ = worker.communicate(timeout=240)
        assert worker.returncode == 0, printed
    return [load_file(folder / f"rank{rank}.safetensors") for rank in range(2)]


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
