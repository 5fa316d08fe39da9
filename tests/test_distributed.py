"""Two processes against one on the same global batch (negatives over all ranks, dropout 0, float64)."""

from pathlib import Path

import pytest
import torch
from distributed_worker import NEEDED, run_steps
from helpers import run_two_ranks

from albef_hf.data.lines import read_lines
from albef_hf.training.checkpoints import saved_checkpoints, step_of

WORKER = Path(__file__).parent / "distributed_worker.py"


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return run_two_ranks(WORKER, tmp_path_factory.mktemp("two_ranks"))


def test_two_ranks_equal_one_process(two_ranks):
    alone = run_steps(0, 1, gather_negatives=True)
    for results in two_ranks:
        assert alone.keys() == {name for name in results if not name.startswith("exchange.")}
        for name, expected in alone.items():
            torch.testing.assert_close(
                results[name], expected, atol=1e-9, rtol=0, msg=lambda text, n=name: f"{n}: {text}"
            )


def test_both_ranks_hold_the_same_state(two_ranks):
    one, other = two_ranks
    assert all(torch.equal(one[name], other[name]) for name in one if name.startswith("state."))


@pytest.mark.parametrize("case", range(len(NEEDED)))
def test_only_rows_that_are_needed_are_sent_and_gradients_flow_back(two_ranks, case):
    rows = torch.arange(24.0, dtype=torch.float64).view(8, 3).requires_grad_()
    needed = NEEDED[case]
    fetched = [rows[index] for index in needed]
    losses = [
        (rank + 1) * (part * torch.arange(1.0, len(part) + 1)[:, None]).sum() for rank, part in enumerate(fetched)
    ]
    sum(losses).backward()
    for rank, results in enumerate(two_ranks):
        assert torch.equal(results[f"exchange.fetched.{case}"], fetched[rank])
        assert torch.equal(results[f"exchange.gradient.{case}"], rows.grad[rank * 4 : rank * 4 + 4])
        sent = [sum(row // 4 == rank for row in index) for index in needed]
        assert results[f"exchange.sent.{case}"].tolist() == sent


def test_without_a_process_group_gathering_is_the_identity():
    gathered, local = run_steps(0, 1, gather_negatives=True), run_steps(0, 1, gather_negatives=False)
    assert all(torch.equal(gathered[name], local[name]) for name in local)


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """The folder of the ranks, and what each said of each case."""
    folder = tmp_path_factory.mktemp("failures")
    return folder, run_two_ranks(WORKER.with_name("failing_worker.py"), folder)


@pytest.mark.parametrize("case", ["retrieve", "encode_texts", "rank_again", "predict", "ground", "probe"])
def test_an_evaluation_that_fails_on_one_rank_fails_on_all(failures, case):
    """Otherwise the others would wait, or take the numbers of the next step for those they wait for."""
    _, (healthy, failing) = failures
    own, told = (bytes(results[case].tolist()).decode() for results in (failing, healthy))
    assert own != "nothing" and told == f"RuntimeError: rank 1: {own}"
    assert healthy[f"{case}/together"] == failing[f"{case}/together"] == 2


@pytest.mark.parametrize("case", ["while_it_works", "while_it_waits", "in_the_step_before"])
def test_a_signal_to_one_rank_in_an_evaluation_stops_all_with_a_checkpoint(failures, case):
    folder, ranks = failures
    assert [bytes(results[case].tolist()).decode() for results in ranks] == ["SystemExit: 143"] * 2
    assert [step_of(path) for path in saved_checkpoints(folder / case / "checkpoints")] == [2]
    assert [row["kind"] for row in read_lines(folder / case / "log.jsonl")] == ["run", "train"]


def test_a_stop_between_two_saves_rounds_no_running_statistics(failures):
    folder, ranks = failures
    assert [bytes(results["resumed"].tolist()).decode() for results in ranks] == ["ValueError: "] * 2
    saved = [step_of(path) for path in saved_checkpoints(folder / "with_a_stop" / "checkpoints")]
    assert saved[0] in (3, 4) and saved[1] == 6
