"""Arguments, schedule, checkpoints, and the loop through the real script."""

import dataclasses
import itertools
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.utils import send_to_device
from data_helpers import table_of
from helpers import ON_CPU, tiny_batch, tiny_model
from safetensors.torch import load_file
from transformers.utils import ModelOutput

from albef_hf import AlbefForPreTraining, AlbefProcessor
from albef_hf.trainable import Trainable
from albef_hf.training.arguments import GROUPS, TrainingArguments, parse_arguments, resolved
from albef_hf.training.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint
from albef_hf.training.loop import train
from albef_hf.training.optimization import build_optimizer, learning_rate
from albef_hf.training.processes import build_accelerator
from albef_hf.training.task_arguments import TASK_GROUPS

ROOT = Path(__file__).parent.parent


# -- arguments --------------------------------------------------------------------------------------------------------


def test_flags_beat_the_file_and_the_rest_is_default(tmp_path):
    (tmp_path / "run.yaml").write_text("alpha: 0.2\nlearning_rate: 3e-4\ndataset_options: {designs: [google]}\n")
    model, data, training = parse_arguments([str(tmp_path / "run.yaml"), "--alpha", "0.3", "--resume"])
    assert model.alpha == 0.3 and training.learning_rate == 3e-4 and training.resume is True
    assert data.dataset_options == {"designs": ["google"]} and model.queue_size == 65536
    (tmp_path / "again.yaml").write_text(resolved(model, data, training))
    assert parse_arguments([str(tmp_path / "again.yaml")]) == (model, data, training)


CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("config", [c for c in CONFIGS if not c.name.startswith("compare_")], ids=lambda c: c.name)
def test_every_config_is_understood(config):
    text = config.read_text()
    parse_arguments([str(config)], TASK_GROUPS if "\ntask: " in text else GROUPS)


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("learning_rat: 1", [], "unknown key 'learning_rat'; did you mean 'learning_rate'"),
        ("", ["--alhpa", "1"], "unknown flag --alhpa; did you mean 'alpha'"),
        ("batch_size: many", [], "batch_size must be int, not 'many'"),
        ("", ["--queue_size", "1.5"], "queue_size must be int, not 1.5"),
        ("", ["stray"], "unexpected argument 'stray'"),
        ("mixed_precision: no", [], "mixed_precision must be str, not False: YAML reads no, off, yes .* in quotes"),
        ("image_mean: 0.5", [], "image_mean must be list, not 0.5"),
        ("image_std: [a, 1]", [], "image_std must be a list of float, not with 'a' in it"),
        ("milestones: [true]", [], "milestones must be a list of float, not with True in it"),
        ("", ["--evaluation_resize", "big"], "evaluation_resize must be int, not 'big'"),
        ("", ["--optimizer", "adamww"], "optimizer must be one of adamw, sgd, lars, not 'adamww'"),
        ("", ["--optimizer", "[adamw"], "optimizer must be one of adamw, sgd, lars, not '.adamw'"),
        ("schedule: cosine", [], "schedule must be one of cosine_per_epoch, cosine_per_step, steps, not 'cosine'"),
        ("same_image: masked", [], "same_image must be one of negative, mask, positive, not 'masked'"),
        ("", ["--output_dir", ""], "output_dir is empty; leave it out for its default, runs/albef"),
        ("dataset: ''", [], "dataset is empty; leave it out for its default, emoji"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, text, flags, message):
    (tmp_path / "run.yaml").write_text(text or "seed: 1")
    with pytest.raises(ValueError, match=message):
        parse_arguments([str(tmp_path / "run.yaml"), *flags])


def test_a_command_without_a_configuration_trains_nothing(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pretrain.py"])
    with pytest.raises(ValueError, match="no configuration is given: name one of configs/, or see --help"):
        parse_arguments()
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--seed", "7"])
    assert parse_arguments()[2].seed == 7


def test_what_may_be_left_out_has_its_own_type(tmp_path):
    (tmp_path / "run.yaml").write_text("image_mean: [0.5, 1, 0.25]\nevaluation_resize: 256\nlabel_column: null\n")
    for flags, resize in (([], 256), (["--evaluation_resize", "null"], None), (["--evaluation_resize", "64"], 64)):
        data = parse_arguments([str(tmp_path / "run.yaml"), *flags])[1]
        assert (data.image_mean, data.evaluation_resize, data.label_column) == ([0.5, 1, 0.25], resize, None)


def test_a_missing_file_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'quickstart.yaml'"):
        parse_arguments([str(ROOT / "configs" / "quikstart.yaml")])


# -- optimizer and schedule -------------------------------------------------------------------------------------------


def test_the_published_schedule():
    arguments = TrainingArguments()
    per_epoch, total = 10_000, 300_000

    def rate(step):
        return learning_rate(arguments, step, per_epoch, total)

    assert [rate(s) for s in (0, 99, 100, 1999)] == pytest.approx([1e-5, 1e-5, 1.45e-5, 9.55e-5])
    assert rate(2000) == rate(9999) == pytest.approx(1e-4)
    assert rate(15 * per_epoch) == rate(16 * per_epoch - 1) == pytest.approx(5.5e-5)
    assert rate(29 * per_epoch) == pytest.approx(1.0247e-5, rel=1e-3)


def test_decay_groups_are_the_published_ones():
    model = tiny_model()
    decayed, free = build_optimizer(model, TrainingArguments()).param_groups
    assert free["weight_decay"] == 0 and all(p.dim() == 1 for p in free["params"])
    assert any(p is model.albef.temperature for p in decayed["params"])
    count = sum(p.requires_grad for p in model.parameters())
    assert len(decayed["params"]) + len(free["params"]) == count


# -- checkpoints ------------------------------------------------------------------------------------------------------


def stepped(seed=0):
    model = tiny_model(seed)
    optimizer = build_optimizer(model, TrainingArguments())
    output = model(**tiny_batch())
    output.loss.backward()
    model.enqueue(output)
    optimizer.step()
    model.update_momentum()
    return model, optimizer


def test_a_checkpoint_holds_everything(tmp_path):
    model, optimizer = stepped()
    path = save_checkpoint(tmp_path, model, optimizer, {"step": 1}, keep=2)
    other, other_optimizer = stepped(seed=1)
    assert load_checkpoint(path, other, other_optimizer) == {"step": 1}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    for one, two in zip(optimizer.param_groups, other_optimizer.param_groups, strict=True):
        for a, b in zip(one["params"], two["params"], strict=True):
            for key, value in optimizer.state[a].items():
                assert torch.equal(value, other_optimizer.state[b][key])


def test_old_checkpoints_go_after_the_new_one_stands(tmp_path, monkeypatch):
    model, optimizer = stepped()
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, model, optimizer, {"step": step}, keep=2)
    assert [p.name for p in sorted(tmp_path.glob("step-*"))] == ["step-00000002", "step-00000003"]
    save_checkpoint(tmp_path, model, optimizer, {"step": 1}, keep=2)  # a new run in an old folder
    assert latest_checkpoint(tmp_path).name == "step-00000001" and len(list(tmp_path.glob("step-*"))) == 1
    for step in (2, 3):
        save_checkpoint(tmp_path, model, optimizer, {"step": step}, keep=2)
    for call in ("rename", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, lambda *_: (_ for _ in ()).throw(OSError("disk full")))
            with pytest.raises(OSError, match="disk full"):
                save_checkpoint(tmp_path, model, optimizer, {"step": 4}, keep=1)
        assert latest_checkpoint(tmp_path).name == "step-00000003"
        assert load_checkpoint(latest_checkpoint(tmp_path), *stepped())["step"] == 3


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "progress.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_damage_is_found_and_named(tmp_path, file, damage):
    path = save_checkpoint(tmp_path, *stepped(), {"step": 1}, keep=1)
    data = bytearray((path / file).read_bytes())
    if damage == "cut":
        (path / file).write_bytes(data[:-3])
    elif damage == "flip":
        data[-5] ^= 1
        (path / file).write_bytes(data)
    else:
        (path / file).unlink()
    with pytest.raises(ValueError, match=f"{file} is (damaged|missing)"):
        load_checkpoint(path, *stepped())


def test_another_models_checkpoint_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, *stepped(), {"step": 1}, keep=1)
    other = tiny_model(projection_dim=4)
    with pytest.raises(ValueError, match="belongs to another model"):
        load_checkpoint(path, other, build_optimizer(other, TrainingArguments()))


# -- the script -------------------------------------------------------------------------------------------------------

TINY = {
    "dataset": "emoji",
    "dataset_options": {"designs": ["google"]},
    "evaluation_dataset": "emoji",
    "evaluation_dataset_options": {"designs": ["twitter"], "captions": ["name"], "part": "test"},
    "augmentation": "crop",
    "max_caption_tokens": 12,
    "image_size": 32,
    "vision_config": {
        "model_type": "vit",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "patch_size": 16,
    },
    "text_config": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "fusion_layer": 1,
        "max_position_embeddings": 32,
    },
    "deterministic": True,
    "projection_dim": 16,
    "queue_size": 50,
    "batch_size": 8,
    "warmup_steps": 2,
    "log_every": 2,
    "save_every": 3,
    "keep_checkpoints": 9,
    "max_steps": 6,
    "rerank": 4,
    "report_to": "none",
}


def written_config(folder: Path) -> Path:
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump({**TINY, "output_dir": str(folder / "run")}))
    return config


def run_here(folder: Path, *flags: str) -> None:
    """The script in this process, which has imported torch already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pretrain.py", str(written_config(folder)), *flags])
        runpy.run_path(str(ROOT / "scripts" / "pretrain.py"), run_name="__main__")


def launch(folder: Path, *flags: str, **options):
    command = [sys.executable, str(ROOT / "scripts" / "pretrain.py"), str(written_config(folder)), *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def finish(process) -> str:
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return printed


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight")
    printed = finish(launch(folder, "--accumulation", "2"))
    return folder / "run", printed


def test_a_run_leaves_a_folder_that_explains_itself(straight):
    run, printed = straight
    for name in ("config.yaml", "versions.json", "log.jsonl", "curves.png", "report.html", "model/README.md"):
        assert (run / name).stat().st_size > 0, name
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [2, 4, 6]
    assert rows[0]["chance"].keys() == {"loss_itc", "loss_itm", "loss_mlm"}
    assert "reranked_image_to_text_r10" in printed and "report:" in printed
    model = AlbefForPreTraining.from_pretrained(run / "model")
    processor = AlbefProcessor.from_pretrained(run / "model")
    inputs = processor(text=["a tomato", "a car"])
    assert model.get_text_features(**inputs).pooler_output.shape == (2, 16)


def test_stopped_and_resumed_equals_straight_bit_for_bit(straight, tmp_path):
    finish(launch(tmp_path, "--accumulation", "2", "--max_steps", "3"))
    # A shorter run has another schedule, so the checkpoint after step 3 of the straight run is used.
    import shutil

    shutil.rmtree(tmp_path / "run" / "checkpoints")
    source = straight[0] / "checkpoints" / "step-00000003"
    shutil.copytree(source, tmp_path / "run" / "checkpoints" / source.name)
    finish(launch(tmp_path, "--accumulation", "2", "--resume"))
    for file in ("model.safetensors", "optimizer.safetensors"):
        one = load_file(straight[0] / "checkpoints" / "step-00000006" / file)
        other = load_file(tmp_path / "run" / "checkpoints" / "step-00000006" / file)
        assert one.keys() == other.keys()
        assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_a_terminated_run_leaves_a_checkpoint(tmp_path):
    process = launch(tmp_path, "--max_steps", "100000", "--save_every", "100000")
    log = tmp_path / "run" / "log.jsonl"
    for _ in range(600):
        if process.poll() is not None or (log.exists() and len(log.read_text().splitlines()) > 1):
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 143, printed
    assert latest_checkpoint(tmp_path / "run" / "checkpoints") is not None


def test_a_dry_run_shows_sizes_and_the_first_batch(tmp_path, capsys):
    run_here(tmp_path, "--dry_run")
    printed = capsys.readouterr().out
    assert "trainable parameters" in printed and "6 steps" in printed and "memory of a step: about" in printed
    assert "emoji: 0.0% of the tokens of" in printed
    from PIL import Image

    with Image.open(tmp_path / "run" / "first_batch.png") as picture:
        assert picture.width > 400 and len(set(picture.convert("L").resize((64, 64)).getdata())) > 20
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_corpus_of_unknown_words_is_refused_also_by_a_dry_run(tmp_path):
    foreign = table_of(16).remove_columns("text").add_column("captions", ["\U0001f9ff \U0001f9ff"] * 16)
    foreign.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="x.parquet: the vocabulary knows none of the words in 16 texts"):
        run_here(tmp_path, "--dry_run", "--dataset", str(tmp_path / "x.parquet"), "--dataset_options", "{}")


def test_every_pass_has_its_own_random_numbers_with_room_for_ranks(tmp_path, monkeypatch):
    seeds, manual_seed = [], torch.manual_seed

    def noted(seed):
        seeds.append(seed)
        return manual_seed(seed)

    monkeypatch.setattr("albef_hf.training.loop.torch.manual_seed", noted)
    run_here(tmp_path, "--accumulation", "2", "--batch_size", "4", "--max_steps", "3", "--evaluation_dataset", "null")
    of_passes = [seed for seed in seeds if seed >= 1024]
    assert len(set(of_passes)) >= 6
    distances = {later - earlier for earlier, later in zip(sorted(of_passes), sorted(of_passes)[1:], strict=False)}
    assert min(distances - {0}) >= 1024


def test_a_tracker_that_is_not_installed_is_named(tmp_path):
    with pytest.raises(ValueError, match="report_to 'tensorbord': no such tracker is installed"):
        run_here(tmp_path, "--report_to", "tensorbord")


def launched(folder: Path, processes: int, batch_size: int) -> list[dict]:
    folder.mkdir()
    config = folder / "run.yaml"
    sharp = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    changes = {
        "text_config": {**TINY["text_config"], **sharp},
        "evaluation_dataset": None,
        "gather_negatives": True,
        "batch_size": batch_size,
        "log_every": 1,
        "max_steps": 3,
        "report_to": "tensorboard",
    }
    config.write_text(yaml.safe_dump({**TINY, **changes, "output_dir": str(folder / "run")}))
    # On CPUs `accelerate launch` starts several processes with MPI only.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += [str(ROOT / "scripts" / "pretrain.py"), str(config)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **ON_CPU}
    del environment["ACCELERATE_USE_CPU"]  # nobody sets it for `torchrun`
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Warning" not in result.stderr
    assert list((folder / "run").rglob("events.out.tfevents*")), "TensorBoard wrote nothing"
    rows = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "train"]


def test_two_launched_processes_train_as_one(tmp_path):
    one, two = launched(tmp_path / "one", 1, 16), launched(tmp_path / "two", 2, 8)
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        for name in ("loss", "loss_itc", "loss_itm", "loss_mlm", "gradient_norm", "alpha", "learning_rate"):
            assert a[name] == pytest.approx(b[name], rel=1e-4), name


# -- steps that must not count ----------------------------------------------------------------------------------------


class Fragile(Trainable):
    """A method whose loss is not a number at given steps."""

    def __init__(self, bad: set[int]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.bad, self.calls, self.seen = bad, 0, []

    def forward(self, pixel_values: torch.Tensor) -> dict:
        self.seen.append(self.weight.detach().clone())
        factor = float("nan") if self.calls in self.bad else 1.0
        self.calls += 1
        return Loss(loss=(self.weight * factor).sum())


@dataclasses.dataclass
class Loss(ModelOutput):
    loss: torch.Tensor | None = None


class Endless:
    batch_size, steps_per_epoch, rows = 2, 100, 200

    def batches(self, start=0):
        return ({"pixel_values": torch.ones(2, 3, 4, 4), "rejected": []} for _ in itertools.count(start))

    def to_device(self, batch, device):
        return send_to_device(batch, device)


def trained(tmp_path, bad, **changes):
    method = Fragile(bad)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=6, log_every=3, warmup_steps=0, report_to="none", **changes
    )
    train(method, Endless(), arguments, build_accelerator(arguments))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    return method.seen, [row for row in rows if row["kind"] == "train"]


def test_a_method_that_the_launcher_compiles_is_returned_as_it_is(tmp_path):
    method, arguments = Fragile(set()), TrainingArguments(output_dir=str(tmp_path), max_steps=2, report_to="none")
    accelerator = build_accelerator(arguments)
    prepare = accelerator.prepare

    def compiled(*parts):
        model, optimizer = prepare(*parts)
        return torch.compile(model, backend="eager"), optimizer

    accelerator.prepare = compiled
    assert train(method, Endless(), arguments, accelerator) is method
    assert len(method.seen) == 2


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_step_without_finite_gradients_changes_nothing_and_is_counted(tmp_path, clip):
    seen, rows = trained(tmp_path, {1}, max_gradient_norm=clip)
    assert torch.equal(seen[1], seen[2])
    assert all(not torch.equal(a, b) for a, b in ((seen[0], seen[1]), (seen[2], seen[3])))
    assert all(torch.isfinite(weight).all() for weight in seen)
    assert [row["skipped_steps"] for row in rows] == [1, 0]


def test_a_run_of_such_steps_ends_with_an_error(tmp_path):
    with pytest.raises(ValueError, match="no step of the last 3 before step 6 had finite gradients"):
        trained(tmp_path, {3, 4, 5})


@pytest.mark.parametrize("broken", ["write_report", "evaluate_retrieval"])
def test_what_fails_after_training_costs_a_warning_and_is_made_again(tmp_path, capsys, monkeypatch, broken):
    flags = ("--max_steps", "2", "--rerank", "0")
    with monkeypatch.context() as patch:
        patch.setattr(f"albef_hf.training.albef_run.{broken}", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
        run_here(tmp_path, *flags)
    assert "failed: OSError: full. The trained weights are saved; --resume" in capsys.readouterr().out
    run = tmp_path / "run"
    assert AlbefForPreTraining.from_pretrained(run / "model").config.projection_dim == 16
    run_here(tmp_path, *flags, "--resume")
    assert "failed" not in capsys.readouterr().out and (run / "report.html").exists()
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows].count("evaluation") == 1
    assert [row for row in rows if row["kind"] == "warning"] == [] and "failed" not in (
        run / "report.html"
    ).read_text()
    with pytest.raises(ValueError, match="holds a run already"):
        run_here(tmp_path, *flags)
