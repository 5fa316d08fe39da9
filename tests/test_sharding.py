"""Sharding by FSDP2: two ranks against one process, and checkpoints that every rank writes a part of."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers import run_two_ranks
from sharding_worker import BAD, CASES, STEPS, method_of, trained

from albef_hf import AlbefForPreTraining
from albef_hf.crashtest.damage import DAMAGES
from albef_hf.crashtest.inside import Fault, count_file_calls
from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.checkpoints import (
    Damaged,
    check_checkpoint,
    clean_up,
    load_checkpoint,
    newest_valid,
    saved_checkpoints,
)
from albef_hf.training.optimization import build_optimizer
from albef_hf.training.parts import KINDS, Part, Saved, rank_files
from albef_hf.training.processes import build_accelerator
from albef_hf.training.sharded_checkpoints import phases

WORKER = Path(__file__).parent / "sharding_worker.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of the two ranks, what each found, and what one process finds."""
    folder = tmp_path_factory.mktemp("sharding")
    trained("albef", folder / "begun", 0, 1, max_steps=2)
    ranks = run_two_ranks(WORKER, folder)
    alone = {case: trained(case, folder / f"{case}-alone", 0, 1) for case in CASES}
    return folder, ranks, alone | {"begun": alone["albef"]}


@pytest.mark.parametrize("case", [*CASES, "begun"])
def test_two_ranks_that_share_all_equal_one_process(runs, case):
    """Teacher, queues, optimizer state and logged norms too, over a step that does not count since one rank's
    gradient is not finite. `begun` goes on, sharded, from a checkpoint that is not."""
    _, ranks, alone = runs
    for results in ranks:
        found = {key.split("/", 1)[1]: value for key, value in results.items() if key.startswith(f"{case}/")}
        assert found.keys() == alone[case].keys()
        for name, expected in alone[case].items():
            if name != "evaluation/checkpoints":
                # Losses are logged in float32.
                atol = 3e-6 if name.startswith("log/") else 1e-9
                torch.testing.assert_close(
                    found[name], expected, atol=atol, rtol=1e-6, msg=lambda t, n=name: f"{n}: {t}"
                )
        skipped = [float(step == BAD) for step in range(STEPS)]
        assert found["log/skipped_steps"].tolist() == skipped


@pytest.mark.parametrize("case", CASES)
def test_the_whole_method_is_what_the_checkpoint_holds(runs, case):
    folder, ranks, _ = runs
    method = method_of(case)
    optimizer = build_optimizer(method, TrainingArguments())
    load_checkpoint(saved_checkpoints(folder / case / "checkpoints")[-1], method, optimizer)
    for results in ranks:
        for name, tensor in method.state_dict().items():
            assert torch.equal(results[f"{case}/whole/{name}"], tensor), name
            assert torch.equal(results[f"{case}/model/{name}"], tensor), name


def test_every_rank_writes_its_part(runs):
    folder, _, _ = runs
    newest = saved_checkpoints(folder / "albef" / "checkpoints")[-1]
    files = {name for rank in range(2) for name in rank_files(rank, 2)}
    assert {path.name for path in newest.iterdir()} == {*files, "progress.json", "manifest.json"}
    sizes = [(newest / rank_files(rank, 2)[1]).stat().st_size for rank in range(2)]
    assert max(sizes) < 1.2 * min(sizes)


def test_a_sharded_run_saves_before_it_evaluates(runs):
    _, ranks, _ = runs
    assert ranks[0]["albef/evaluation/checkpoints"].tolist() == [1]


def test_a_model_saved_within_a_run_loads_by_itself(runs):
    folder, _, _ = runs
    loaded = AlbefForPreTraining.from_pretrained(folder / "albef" / "model", dtype=torch.float64)
    with Saved(folder / "albef" / "checkpoints" / "step-00000002", "model") as saved:
        for name, parameter in loaded.named_parameters():
            if not name.startswith("momentum_copy."):
                assert torch.equal(parameter, saved.whole(name)), name


def test_a_rank_that_cannot_write_is_named_on_all(runs):
    _, ranks, _ = runs
    texts = [bytes(results["told"].tolist()).decode() for results in ranks]
    assert texts == ["ValueError: rank 1: the disk is full", "OSError: the disk is full"]


def test_float16_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    arguments = TrainingArguments(output_dir=str(tmp_path), sharding="fsdp2", mixed_precision="fp16", report_to="none")
    with pytest.raises(ValueError, match="sharding fsdp2 does not go with float16: set mixed_precision to bf16"):
        build_accelerator(arguments)


# -- checkpoints in parts ---------------------------------------------------------------------------------------------


def tensors_of(step):
    """Whole tensors by kind and name. Those of shape () are whole on every rank."""
    generator = torch.Generator().manual_seed(step)
    shapes = {"matrix": (7, 3), "row": (1, 4), "vector": (5,), "temperature": ()}
    model = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {"model": model, "optimizer": {f"{name}/moment": tensor * 2 for name, tensor in model.items()}}


def parts_of(tensors, number, ranks):
    """What a rank holds, split as `torch.chunk` does."""
    parts = {}
    for kind, named in tensors.items():
        parts[kind] = {}
        for name, tensor in named.items():
            if not tensor.dim():
                parts[kind][name] = Part(tensor, ())
                continue
            size = -(-len(tensor) // ranks)
            start = min(number * size, len(tensor))
            parts[kind][name] = Part(tensor[start : start + size], tuple(tensor.shape), start)
    return parts


def write(folder, tensors, step, ranks):
    """Write a checkpoint as `ranks` ranks do, phase by phase."""
    target = folder / f"step-{step:08d}"
    each = [phases(target, parts_of(tensors, number, ranks), {"step": step}, number, ranks) for number in range(ranks)]
    for phase in zip(*each, strict=True):
        for work in phase:
            work()
    return target


def read(checkpoint, ranks):
    """The tensors of a checkpoint, put together from what each of `ranks` ranks reads."""
    found = {}
    for kind in KINDS:
        with Saved(checkpoint, kind) as saved:
            assert saved.shapes == {name: tuple(tensor.shape) for name, tensor in tensors_of(0)[kind].items()}
            pieces = [parts_of(tensors_of(0), number, ranks)[kind] for number in range(ranks)]
            found[kind] = {
                name: torch.cat([saved.read(name, each[name]) for each in pieces]) if shape else saved.whole(name)
                for name, shape in saved.shapes.items()
            }
    return found


def assert_equal(found, expected):
    for kind, named in expected.items():
        assert all(torch.equal(found[kind][name], tensor) for name, tensor in named.items())


def test_checkpoints_of_any_number_of_ranks_are_read_by_any_other(tmp_path):
    tensors = tensors_of(1)
    for step, (writers, readers) in enumerate([(4, 2), (2, 1), (1, 4), (4, 3), (3, 5), (6, 4)]):
        checkpoint = write(tmp_path, tensors, step, writers)
        check_checkpoint(checkpoint)
        tensors = read(checkpoint, readers)
        assert_equal(tensors, tensors_of(1))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_a_kill_at_any_moment_of_a_save_loses_nothing(tmp_path):
    write(tmp_path, tensors_of(1), 1, 3)
    steps = []
    for at in range(200):
        pid = os.fork()
        if pid == 0:
            count_file_calls(Fault("exit", at), lambda line: None, tmp_path)
            write(tmp_path, tensors_of(2), 2, 3)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        clean_up(tmp_path)
        newest, _, reasons = newest_valid(tmp_path)
        assert not reasons and {path.name for path in tmp_path.iterdir()} <= {"step-00000001", "step-00000002"}
        steps.append(int(newest.name[-1]))
        assert_equal(read(newest, 2), tensors_of(steps[-1]))
        if status == 0:
            break
        shutil.rmtree(tmp_path / "step-00000002", ignore_errors=True)
    assert status == 0 and len(steps) > 25 and sorted(steps) == steps


@pytest.mark.parametrize("what", list(DAMAGES))
def test_a_damaged_part_sets_its_checkpoint_aside(tmp_path, what):
    for step in (1, 2):
        write(tmp_path, tensors_of(step), step, 2)
    DAMAGES[what](tmp_path / "step-00000002")
    with pytest.raises(Damaged):
        check_checkpoint(tmp_path / "step-00000002")
    newest, _, reasons = newest_valid(tmp_path)
    assert newest.name == "step-00000001" and len(reasons) == 1
    assert_equal(read(newest, 1), tensors_of(1))


def test_rows_that_no_rank_wrote_are_missed(tmp_path):
    checkpoint = write(tmp_path, tensors_of(1), 1, 3)
    for name in rank_files(1, 3):
        (checkpoint / name).unlink()
    shutil.copy(checkpoint / rank_files(0, 3)[0], checkpoint / rank_files(1, 3)[0])
    (checkpoint / rank_files(1, 3)[2]).write_text('{"model": {"matrix": [[7, 3], 0]}, "optimizer": {}}')
    with Saved(checkpoint, "model") as saved, pytest.raises(Damaged, match="lacks rows 3 to 7 of matrix"):
        saved.whole("matrix")
