"""How a run begins in a folder, goes on from a checkpoint, and skips steps that must not count."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from helpers import tiny_batch, tiny_model
from PIL import Image
from safetensors import SafetensorError
from torch import nn
from training_helpers import Full, Rows, Small, saved, trained
from transformers.modeling_outputs import BaseModelOutputWithPooling

from albef_hf.data.batches import RejectionLog, TrainingData, signals_blocked
from albef_hf.data.lines import read_lines
from albef_hf.evaluation.retrieval_features import ImageFeatures
from albef_hf.inference.retriever import AlbefRetriever
from albef_hf.reporting.log import LogWriter
from albef_hf.tasks.batches import evaluation_batches
from albef_hf.training import checkpoints
from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.changes import compare_settings
from albef_hf.training.checkpoints import load_checkpoint, newest_valid, saved_checkpoints, step_of
from albef_hf.training.identity import claim
from albef_hf.training.loop import StepGuard, train
from albef_hf.training.optimization import build_optimizer
from albef_hf.training.position import Length, Position, run_length
from albef_hf.training.processes import build_accelerator
from albef_hf.training.run_log import TrainingLog
from albef_hf.training.stopping import StopSignal

# -- checkpoints ------------------------------------------------------------------------------------------------------


MANIFESTS = ["", "{", "[]", "{}", '{"model.safetensors": 3}', "\udcff", '{"model.safetensors": {"bytes": Infinity}}']


@pytest.mark.parametrize("text", MANIFESTS)
def test_a_damaged_manifest_is_damage_and_the_checkpoint_before_is_used(tmp_path, text):
    first, second = saved(tmp_path, 1), saved(tmp_path, 2)
    (second / "manifest.json").write_text(text, errors="surrogateescape")
    path, progress, reasons = newest_valid(tmp_path)
    assert path == first and progress == {"step": 1} and len(reasons) == 1 and "manifest.json is damaged" in reasons[0]
    assert (tmp_path / "step-00000002.damaged" / "model.safetensors").exists()
    model = Small()
    load_checkpoint(path, model, build_optimizer(model, TrainingArguments(optimizer="sgd")))
    assert torch.equal(model.weight.detach(), torch.ones(3))


def test_folders_that_are_not_ours_are_neither_used_nor_removed(tmp_path):
    backup = saved(tmp_path, 99)
    backup = backup.rename(tmp_path / "step-00000099-backup")
    for step in range(1, 7):
        saved(tmp_path, step, keep=1, keep_every=3)
    assert [path.name for path in saved_checkpoints(tmp_path)] == ["step-00000003", "step-00000006"]
    assert newest_valid(tmp_path)[0].name == "step-00000006" and (backup / "manifest.json").exists()


def test_a_state_that_is_not_finite_is_never_saved(tmp_path):
    saved(tmp_path, 1)
    with pytest.raises(ValueError, match="not saved: weight is not finite"):
        saved(tmp_path, 2, value=float("nan"))
    assert [path.name for path in saved_checkpoints(tmp_path)] == ["step-00000001"]


# -- the folder -------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_named_also_where_safetensors_says_it_otherwise(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(
        OSError, match="the disk is full: .*step-00000003 could not be written; .* Make room"
    ) as raised:
        saved(tmp_path, 3)
    assert raised.value.errno == errno.ENOSPC


def test_a_used_folder_is_refused_moved_aside_or_gone_on_with(tmp_path):
    accelerator = Accelerator()
    with pytest.raises(ValueError, match="no checkpoint to resume from"), claim(tmp_path, True, False, accelerator):
        pass
    with claim(tmp_path, "auto", False, accelerator) as begun:
        assert begun.checkpoint is None
    saved(tmp_path / "checkpoints", 3)
    (tmp_path / "log.jsonl").write_text("{}\n")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds a run already .*--resume .*--overwrite"):
        claim(tmp_path, False, False, accelerator).__enter__()
    assert (tmp_path / "log.jsonl").read_text() == "{}\n"
    for resume in (True, "auto"):
        with claim(tmp_path, resume, False, accelerator) as begun:
            assert begun.progress["step"] == 3
    with claim(tmp_path, False, True, accelerator) as begun:
        assert begun.checkpoint is None and not (tmp_path / "checkpoints").exists()
    assert (tmp_path / "replaced-1" / "checkpoints" / "step-00000003").exists() and (tmp_path / "notes.txt").exists()


def test_a_start_that_is_killed_while_it_moves_a_run_aside_leaves_nothing_to_go_on_with(tmp_path, monkeypatch):
    """Otherwise the next start would go on from a checkpoint of the old run, whose log is gone."""
    saved(tmp_path / "checkpoints", 3)
    (tmp_path / "log.jsonl").write_text("{}\n")
    rename, moved = os.rename, []

    def killed(*paths):
        if moved:
            raise KeyboardInterrupt
        moved.append(rename(*paths))

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        claim(tmp_path, False, True, Accelerator()).__enter__()
    with claim(tmp_path, "auto", False, Accelerator()) as begun:
        assert begun.checkpoint is None


HOLDER = """
import sys, time
from pathlib import Path
from albef_hf.training.identity import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_runs_do_not_share_a_folder_and_a_killed_one_lets_go(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"in use by another run .process {holder.pid} "):
            claim(tmp_path, False, False, Accelerator()).__enter__()
    finally:
        holder.kill()
        holder.communicate()
    with claim(tmp_path, False, False, Accelerator()) as begun:
        assert begun.checkpoint is None


def identity(**changes):
    config = {"seed": 1, "learning_rate": 0.1, "batch_size": 8, "dataset": "a", "resume": False} | changes
    return {"config": config, "data": {"rows": changes.get("rows", 9)}, "versions": {"torch": "1"}}


def test_what_may_change_is_listed_and_what_may_not_is_refused_by_name():
    assert compare_settings(identity(), identity(learning_rate=0.2, resume=True, dataset="b")) == {
        "learning_rate": (0.1, 0.2),
        "dataset": ("a", "b"),
    }
    assert compare_settings(identity(), identity(batch_size=4)) == {"batch_size": (8, 4)}
    for wrong, named in (
        ({"seed": 2}, "seed: 1 before, 2 now"),
        ({"rows": 10}, "the rows of the data"),
        ({"rows": 10, "streaming_window": 8}, "streaming_window: 4 before, 8 now"),
    ):
        with pytest.raises(ValueError, match=named):
            compare_settings(identity(streaming_window=4), identity(**{"streaming_window": 4} | wrong))


def test_a_run_in_the_order_of_an_older_version_is_refused_with_that_version():
    before = identity() | {"data": {"rows": 9, "digest": "0"}, "versions": {"albef-hf": "0.9"}}
    now = identity() | {"data": {"rows": 9, "digest": "0", "order": [2]}}
    with pytest.raises(ValueError, match=r"puts the rows of the data in another order.*that version \(0.9\)"):
        compare_settings(before, now)


def test_other_versions_of_packages_are_listed():
    newer = identity() | {"versions": {"torch": "2", "timm": "1"}}
    assert compare_settings(identity(), newer) == {"version of torch": ("1", "2")}


def test_a_run_is_as_long_as_its_epochs_or_its_steps():
    data = Rows()
    assert run_length(TrainingArguments(epochs=1.5, accumulation=4), data) == Length(25, 38)
    assert run_length(TrainingArguments(epochs=1.5, max_steps=7), data) == Length(100, 7)


def test_a_rejected_row_is_listed_with_the_step_that_drew_it(tmp_path):
    data = Rows()
    data.batches = lambda start=0: (
        {"pixel_values": torch.randn(3, 4), "rejected": [{"row": number}]} for number in range(start, 9)
    )
    trained(tmp_path, [1.0] * 2, data)
    assert read_lines(tmp_path / "rejected.jsonl") == [{"row": 0, "step": 1}, {"row": 1, "step": 2}]


def test_the_place_in_the_data_is_counted_in_samples():
    """40 rows in steps of 16: 2 steps an epoch. After 3 steps, sample 16 of epoch 1 comes next, in steps of 8 too."""
    before = Position(Length(2, 20), (16, 1, 1), 40, 32, step=3)
    state = before.state()
    assert (state["epoch"], state["sample"]) == (1, 16)
    same = Position(Length(2, 20), (8, 2, 1), 40, 32)
    same.load(3, state, 0)
    assert same.next_batch() == (6, 0) and same.shift == 0
    halved = Position(Length(5, 50), (8, 1, 1), 40, 40)
    halved.load(3, state, 0)
    assert halved.next_batch() == (5, 16) and halved.step + halved.shift == 8
    halved.step += 3  # 24 samples are left in the epoch
    assert halved.next_batch() == (10, 0)


# -- logs -------------------------------------------------------------------------------------------------------------


def test_a_torn_last_line_is_dropped_and_rejected_rows_are_listed_once(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    LogWriter(log, 2).write({"step": 3, "again": True})
    assert read_lines(log) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]
    path = tmp_path / "rejected.jsonl"
    first = RejectionLog(path, 1.0)
    for step in (1, 2):
        first.add([{"row": step}], 8, step)
    resumed = RejectionLog(path, 1.0, step=1, seen=8)
    resumed.add([{"row": 2}], 8, 2)
    assert [row["row"] for row in read_lines(path)] == [1, 2] and (resumed.rejected, resumed.seen) == (2, 16)


def test_workers_never_see_a_signal_to_stop():
    asked = []
    before = signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    try:
        with signals_blocked():
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # to this thread: pytest has others
            assert asked == []
            print_mask = "import signal; print(signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
            started = subprocess.run([sys.executable, "-c", print_mask], capture_output=True, text=True)
            assert started.stdout == "True\n"
        assert asked == [1]
    finally:
        signal.signal(signal.SIGTERM, before)


class Masks:
    """Samples that say which signals their process blocks."""

    def __init__(self) -> None:
        self.corpus, self.samples = self, 2

    def __len__(self) -> int:
        return 2

    def rows_at(self, seed, epoch, positions):
        return positions

    def __getitem__(self, key):
        return signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_the_workers_of_training_block_signals_and_the_training_process_does_not():
    masks = next(TrainingData(Masks(), list, batch_size=2, seed=0, workers=1).batches())
    assert all({signal.SIGTERM, signal.SIGINT, signal.SIGUSR1} <= mask for mask in masks)
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


class SaysMask(nn.Linear):
    """A model whose features are what its processor made of a picture: whether a worker blocks all signals to stop."""

    def get_image_features(self, pixels):
        return BaseModelOutputWithPooling(pixels.flatten(1)[:, None], pixels.flatten(1)[:, :1])


def all_blocked(*_, **__):
    return float({signal.SIGTERM, signal.SIGINT, signal.SIGUSR1} <= signal.pthread_sigmask(signal.SIG_BLOCK, []))


def test_the_workers_of_evaluations_block_signals_too():
    """An interruption from the keyboard goes to the whole process group."""
    settings = SimpleNamespace(evaluation_batch_size=2, data=SimpleNamespace(workers=1))
    task = SimpleNamespace(settings=settings, prepare=all_blocked, collate=lambda rows, training: rows)
    assert list(evaluation_batches(task, [0, 1])) == [[1.0, 1.0]]
    images = datasets.Dataset.from_dict({"image": [Image.new("RGB", (2, 2))] * 2})

    def processor(images, return_tensors):
        return {"pixel_values": torch.full((1, 3, 2, 2), all_blocked())}

    features = ImageFeatures(SaysMask(1, 1), processor, images, batch_size=2, workers=1, storage=None).features
    assert features.tolist() == [[1.0], [1.0]] and not all_blocked()
    retriever = AlbefRetriever(SaysMask(1, 1), processor, batch_size=2).index(images, workers=1)
    assert retriever.features.tolist() == [[1.0], [1.0]]


def test_every_loader_starts_its_workers_so():
    root = Path(__file__).parent.parent
    texts = {path: path.read_text() for part in ("albef_hf", "ssl_methods") for path in (root / part).rglob("*.py")}
    loading = [path for path, text in texts.items() if "DataLoader(" in text]
    assert len(loading) >= 4 and all("started(loader)" in texts[path] for path in loading)


# -- steps that do not count ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e12, "pixel"])
@pytest.mark.parametrize("step", [0, 2])
def test_a_skipped_step_moves_nothing(tmp_path, optimizer, bad, step):
    factors = [1.0] * 5
    data = Rows(step if bad == "pixel" else -1)
    if bad != "pixel":
        factors[step] = bad
    method, rows = trained(tmp_path, factors, data, optimizer=optimizer, learning_rate=0.1)
    states = [*method.seen, method.state_dict()]
    for name, value in states[step].items():
        assert torch.equal(states[step + 1][name], value), name
    moved = [name for name in states[0] if not torch.equal(states[step + 2][name], states[step + 1][name])]
    assert {"online.0.weight", "copy.online.0.weight", "copy.updates", "queue.features", "queue.cursor"} <= {*moved}
    assert "online.1.running_mean" in moved and "online.1.num_batches_tracked" in moved
    assert all(torch.isfinite(value).all() for value in method.state_dict().values())
    assert rows[-1]["skipped_steps"] == 1


def test_a_first_step_that_is_skipped_leaves_no_memory_unset(tmp_path):
    """The steps after a skipped first one equal those of a run that never had it."""
    states = []
    for name, factors in (("with", [float("nan"), 1.0, 1.0]), ("without", [1.0, 1.0])):
        data = Rows()
        batches = data.batches
        if name == "without":
            data.batches = lambda start=0, batches=batches: batches(start + 1)
        method, _ = trained(tmp_path / name, factors, data, optimizer="sgd", learning_rate=0.1, schedule="steps")
        states.append(method.state_dict())
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name


def test_a_spike_is_skipped_and_counted_and_a_slow_rise_is_not(tmp_path):
    factors = [1.0 + 0.1 * (step % 3) for step in range(150)]
    factors[140] = 1000.0
    _, rows = trained(tmp_path / "spike", factors, learning_rate=1e-6)
    assert sum(row["spikes"] for row in rows) == sum(row["skipped_steps"] for row in rows) == 1
    _, rows = trained(tmp_path / "off", factors, learning_rate=1e-6, spike_deviations=0.0)
    assert sum(row["skipped_steps"] for row in rows) == 0


def test_after_many_skipped_steps_the_run_goes_back_and_on_with_other_samples(tmp_path):
    data = Rows()
    changes = {"log_every": 1, "save_every": 2, "max_skipped_steps": 3, "max_steps": 8}
    method, rows = trained(tmp_path, [1.0] * 4 + [float("nan")] * 3 + [1.0] * 4, data, **changes)
    assert data.starts == [0, 7] and [row["step"] for row in rows] == list(range(1, 9))
    assert len(method.seen) == 7 + 2
    with pytest.raises(ValueError, match="the run fell back once without coming further"):
        trained(tmp_path / "again", [1.0] * 4 + [float("nan")] * 9, **changes | {"max_steps": 12})


def test_the_guard_leaves_constants_alone_that_are_not_finite(tmp_path):
    accelerator = Accelerator()
    method = Full().to(accelerator.device)
    method.register_buffer("mask", torch.full((2, 2), -torch.inf, device=accelerator.device))
    method.register_buffer("view", torch.ones(1, device=accelerator.device).expand(3))
    optimizer = build_optimizer(method, TrainingArguments())
    guard = StepGuard(method, optimizer, accelerator, 0.0)
    guard.begin()
    one = torch.ones((), device=accelerator.device)
    guard.add({"loss": one})
    guard.judge(one)
    assert bool(guard.kept) and torch.isinf(method.mask).all()


def test_a_run_that_was_stopped_writes_the_log_of_one_that_was_not(tmp_path):
    """Sums of an unfinished row are part of a checkpoint."""
    factors = [1.0 + step for step in range(6)]
    _, straight = trained(tmp_path / "straight", factors, log_every=4, save_every=3, keep_checkpoints=9)
    (tmp_path / "resumed").mkdir()
    os.rename(tmp_path / "straight" / "checkpoints", tmp_path / "resumed" / "checkpoints")
    os.rename(tmp_path / "resumed" / "checkpoints" / "step-00000006", tmp_path / "step-00000006")
    _, resumed = trained(tmp_path / "resumed", factors[3:], log_every=4, save_every=3, resume=True, max_steps=6)
    timeless = [
        [{k: v for k, v in row.items() if not k.startswith(("seconds", "samples_per"))} for row in rows]
        for rows in (straight, resumed)
    ]
    assert len(straight) == 2 and json.dumps(timeless[0]) == json.dumps(timeless[1])


def test_warnings_about_the_settings_are_in_the_log_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Full, "warnings", lambda *_, **__: ["too small", "too large"])
    trained(tmp_path, [1.0] * 2, save_every=2)
    trained(tmp_path, [1.0] * 2, save_every=2, resume=True, max_steps=4)
    warned = [row["text"] for row in read_lines(tmp_path / "log.jsonl") if row["kind"] == "warning"]
    assert warned == ["too small", "too large"]
    assert capsys.readouterr().out.count("warning: too small") == 2


@pytest.mark.parametrize("where", ["evaluated", "write_evaluation", "write_means"])
def test_a_signal_after_a_save_was_due_saves_the_step(tmp_path, monkeypatch, where):
    """While the best weights or the log are written, and between a step and what is due after it."""

    def stop_here(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    def means(*_):
        stop_here()
        return {"skipped_steps": 0, "steps": 2, "worst": 0}

    options = {"evaluate": lambda method: {"accuracy": 1.0}}
    if where == "evaluated":
        options["evaluated"] = stop_here
    else:
        monkeypatch.setattr(TrainingLog, where, means)
    method = Full()
    method.factors = [1.0] * 4
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=4, evaluate_every=2, log_every=2, warmup_steps=0, report_to="none"
    )
    with pytest.raises(SystemExit) as stopped:
        train(method, Rows(), arguments, build_accelerator(arguments), **options)
    assert stopped.value.code == 143
    assert [step_of(path) for path in saved_checkpoints(tmp_path / "checkpoints")] == [2]


@pytest.mark.parametrize("where", ["evaluate", "evaluated"])
def test_nobody_waits_for_data_workers_before_the_step_is_saved(tmp_path, where):
    """Where batches are left, their workers end; one in the midst of a batch may take as long as it likes."""
    left, data = [], Rows()
    every = data.batches

    def leaving(batches):
        try:
            yield from batches
        finally:
            left.append([step_of(path) for path in saved_checkpoints(tmp_path / "checkpoints")])

    def measure(*_):
        for _ in leaving(range(2)) if where == "evaluate" else every():
            os.kill(os.getpid(), signal.SIGTERM)
            break
        return {"accuracy": 1.0}

    data.batches = lambda start: leaving(every(start))
    options = {"evaluate": lambda _: {"accuracy": 1.0}} | {where: measure}
    method = Full()
    method.factors = [1.0] * 4
    arguments = TrainingArguments(output_dir=str(tmp_path), max_steps=4, evaluate_every=2, report_to="none")
    with pytest.raises(SystemExit):
        train(method, data, arguments, build_accelerator(arguments), **options)
    assert [step_of(path) for path in saved_checkpoints(tmp_path / "checkpoints")] == [2] and [] not in left


def test_a_run_that_is_stopped_says_what_to_type(tmp_path, capsys):
    def told(resume, measured=False):
        arguments = TrainingArguments(
            output_dir=str(tmp_path), max_steps=6, evaluate_every=2, warmup_steps=0, report_to="none", resume=resume
        )
        method = Full()
        method.factors = [1.0] * 6
        with StopSignal() as stop, pytest.raises(SystemExit):
            measure = partial(os.kill, os.getpid(), signal.SIGTERM)
            if not measured:
                measure()
            train(method, Rows(), arguments, build_accelerator(arguments), stop=stop, evaluate=lambda _: measure())
        return capsys.readouterr().out

    with claim(tmp_path, False, False, Accelerator()):
        assert "stopped before the first step, so there is no checkpoint: start again with --resume auto" in told(
            False
        )
    assert "stopped after step 2; go on with --resume" in told("auto", measured=True)
    assert "stopped after step 2; go on with --resume" in told(True)


def test_where_an_evaluation_of_several_ranks_fails_the_step_before_it_is_saved(tmp_path, monkeypatch):
    """The other ranks may be gone. A process alone goes on without."""

    def failing(method):
        raise OSError("gone")

    for ranks, steps in ((1, [4]), (2, [2, 4])):
        monkeypatch.setattr(StopSignal, "agree", lambda stop: None)
        stop = StopSignal()
        stop.group = "ranks" if ranks > 1 else None
        method, folder = Full(), tmp_path / str(ranks)
        method.factors = [1.0] * 4
        arguments = TrainingArguments(output_dir=str(folder), max_steps=4, evaluate_every=2, report_to="none")
        folder.mkdir()
        train(method, Rows(), arguments, build_accelerator(arguments), stop=stop, evaluate=failing)
        assert [step_of(path) for path in saved_checkpoints(folder / "checkpoints")] == steps
        warned = [row for row in read_lines(folder / "log.jsonl") if row["kind"] == "warning"]
        assert [row["step"] for row in warned] == [2, 4] and all(
            "failed: OSError: gone" in row["text"] for row in warned
        )


def test_albef_goes_through_a_bad_pixel_unharmed():
    accelerator = Accelerator()
    model = tiny_model().to(accelerator.device)
    optimizer = build_optimizer(model, TrainingArguments())
    guard = StepGuard(model, optimizer, accelerator, 0.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = send_to_device(tiny_batch(), accelerator.device)
    batch["pixel_values"][0, 0, 0, 0] = float("nan")
    guard.begin()
    output = model(**batch)
    output.loss.backward()
    model.enqueue(output)
    guard.add(output)
    guard.judge(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
    optimizer.step()
    model.update_momentum()
    assert [name for name, value in model.state_dict().items() if not torch.equal(before[name], value)] == []


def test_no_bound_is_above_the_absurd_one():
    """After 128 large but allowed steps, a larger one than 1e8 is still skipped."""
    accelerator = Accelerator()
    method = Full().to(accelerator.device)
    guard = StepGuard(method, build_optimizer(method, TrainingArguments()), accelerator, 10.0)
    guard.load_state({"recent": [[6e7 + step, 1.0] for step in range(128)], "steps": 128.0, "in_row": 0.0})
    for loss, kept in ((9e7, True), (1.1e8, False)):
        guard.begin()
        guard.add({"loss": torch.tensor(loss, device=accelerator.device)})
        guard.judge(torch.ones((), device=accelerator.device))
        assert bool(guard.kept) is kept, loss


def test_momentum_copies_follow_again_after_a_run_whose_last_step_was_skipped(tmp_path):
    method, _ = trained(tmp_path, [1.0, float("nan")])
    before = method.copy.updates.item()
    with torch.no_grad():
        method.online[0].weight.add_(1.0)
    method.update_momentum()
    assert method.copy.updates.item() == before + 1
    assert not torch.equal(method.copy.get_submodule("online")[0].weight, method.online[0].weight - 1.0)


def test_a_tracker_that_fails_costs_a_warning(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Accelerator, "log", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
    _, rows = trained(tmp_path, [1.0, 1.0], log_every=1)
    assert "the tracker failed and is not used further: OSError: full" in capsys.readouterr().out
    assert [row["step"] for row in rows] == [1, 2]


@pytest.mark.parametrize("name", ["taken", "taken/run"])
def test_a_file_in_place_of_the_run_folder_is_named(tmp_path, name):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ValueError, match=f"output_dir .*{name} cannot be made .*taken.*; set it to a folder"):
        claim(tmp_path / name, False, False, Accelerator()).__enter__()
