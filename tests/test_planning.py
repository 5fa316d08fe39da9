"""Plans of runs: memory against what is allocated, traffic against what is sent, time against what was recorded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from counting_cases import ARGUMENTS, CASES, build, method_of, take_step, training_batch
from helpers import ON_CPU, tiny_batch, tiny_model
from model_cases import TASKS, new, task_batch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from albef_hf.training.arguments import ModelArguments, TrainingArguments
from albef_hf.training.counting import StepCounter
from albef_hf.training.planning import Cluster, albef_batch, albef_without_weights, plan, step_seconds
from albef_hf.training.simulation import simulate

ROOT = Path(__file__).parent.parent


def run_plan(*flags):
    command = [sys.executable, str(ROOT / "scripts" / "plan_run.py"), *map(str, flags)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **ON_CPU}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def bytes_of(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def allocated(profiled) -> int:
    """The highest sum of what torch's allocator gave."""
    live = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "hidden_size": 64}


@pytest.mark.parametrize("changes", [{"queue_size": 2048}, {"text_config": DROPOUT}], ids=["queue", "dropout"])
def test_memory_is_what_a_step_allocates(changes):
    model, batch = tiny_model(**changes).train(), tiny_batch(32)
    built = build(model, ARGUMENTS)
    take_step(model, batch, built)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        take_step(model, batch, built)
    states = (value for state in built[0].state.values() for value in state.values())
    held = bytes_of(model.parameters()) + bytes_of(model.buffers()) + bytes_of(states)
    planned = simulate(model, batch, ARGUMENTS, device="cpu")
    assert planned.peak == pytest.approx(held + allocated(profiled), rel=0.1)
    assert planned.memory["parameters"] + planned.memory["momentum copies"] == bytes_of(model.parameters())


def test_operations_are_those_that_torch_counts():
    model, batch = tiny_model().train(), tiny_batch()
    built = build(model, ARGUMENTS)
    with FlopCounterMode(display=False) as torchs, StepCounter() as ours:
        take_step(model, batch, built)
    attention = sum(v for k, v in torchs.get_flop_counts()["Global"].items() if "attention" in str(k))
    products = torchs.get_total_flops() - attention
    assert 0 < products < sum(ours.flops.values()) < 1.3 * products  # torch counts no attention on a CPU


def test_traffic_is_what_ranks_send(tmp_path):
    worker = ROOT / "tests" / "counting_worker.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **ON_CPU}
    command = [sys.executable, str(worker), str(tmp_path)]
    workers = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(4)]
    assert [each.wait(timeout=120) for each in workers] == [0] * 4
    sent = json.loads((tmp_path / "rank0.json").read_text())
    for ranks in (2, 4):
        for case in CASES:
            count = simulate(method_of(case), training_batch(case), ARGUMENTS, ranks=ranks, device="cpu")
            assert count.sent == sent[f"{case} {ranks}"], case
            assert sum(count.sent.values()) > 0


@pytest.mark.parametrize("ranks", [8, 64, 1024])
def test_many_ranks_are_planned_as_few(ranks):
    few, many = (simulate(tiny_model(), tiny_batch(), ARGUMENTS, ranks=n) for n in (2, ranks))
    assert many.gradients_sent == round(2 * (ranks - 1) / ranks * many.gradients)
    assert many.sent["all_gather"] == (ranks - 1) * few.sent["all_gather"]  # keys of all ranks enter the queue
    assert many.memory["buckets of gradients"] == few.memory["buckets of gradients"] == many.gradients


def test_accumulated_micro_batches_compute_more_and_keep_gradients():
    once = simulate(tiny_model(), tiny_batch(), ARGUMENTS)
    often = simulate(tiny_model(), tiny_batch(), TrainingArguments(batch_size=4, accumulation=8))
    assert sum(often.flops.values()) == 8 * sum(once.flops.values())
    assert often.memory["gradients"] == often.gradients


@pytest.mark.parametrize("model_class", TASKS, ids=lambda kind: kind.__name__)
def test_tasks_are_planned(model_class):
    count = simulate(new(model_class).train(), task_batch(model_class), ARGUMENTS)
    assert count.peak > 0 and count.flops


def test_other_ranks_cannot_be_planned_within_a_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'x'}", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="one of 1 ranks and cannot plan for 2"):
            simulate(tiny_model(), tiny_batch(), ARGUMENTS, ranks=2)
    finally:
        torch.distributed.destroy_process_group()


# Samples a second of ALBEF with a ViT-B/16 and BERT-base at 256 pixels on one H200.
RECORDED = [("no", False, 64, 151), ("no", True, 64, 387), ("bf16", False, 64, 432), ("bf16", False, 192, 784)]


def test_time_is_near_what_was_recorded():
    model = albef_without_weights(ModelArguments())
    for precision, tf32, batch_size, recorded in RECORDED:
        arguments = TrainingArguments(batch_size=batch_size, mixed_precision=precision)
        count = simulate(model, albef_batch(model, batch_size, 256, 25, 0.15), arguments)
        seconds = step_seconds(count, Cluster(gpu="h200", tf32=tf32))["step"]
        assert batch_size / seconds == pytest.approx(recorded, rel=0.15), (precision, tf32, batch_size)


def test_a_plan_is_printed_as_a_table_and_as_json():
    flags = ("configs/digits_byol.yaml", "--rows", 2000, "--gpus", 8, "--batch_size", 32, "--epochs", 2)
    printed = run_plan(*flags, "--json")
    assert printed.returncode == 0, printed.stderr
    planned = json.loads(printed.stdout)
    assert planned["steps"] == 14 and planned["samples"] == 14 * 256
    assert planned["peak"] == sum(planned["count"]["memory"].values())


def test_a_plan_needs_the_size_of_the_corpus():
    count = simulate(tiny_model(), tiny_batch(), ARGUMENTS)
    with pytest.raises(ValueError, match="a global batch of 8 samples is larger than the corpus of 3 rows"):
        plan(count, ARGUMENTS, Cluster(gpus=2), rows=3)
    with pytest.raises(ValueError, match="unknown gpu 'h10'"):
        Cluster(gpu="h10")
    assert "--rows must be the number of samples" in run_plan("configs/digits_byol.yaml").stderr
