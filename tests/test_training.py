"""Arguments, schedule, checkpoints, and the loop through the real script."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from helpers import tiny_batch, tiny_model
from safetensors.torch import load_file

from albef_hf import AlbefForPreTraining, AlbefProcessor
from albef_hf.training.arguments import TrainingArguments, parse_arguments, resolved
from albef_hf.training.checkpoints import latest_checkpoint, load_checkpoint, save_checkpoint
from albef_hf.training.optimization import build_optimizer, learning_rate

ROOT = Path(__file__).parent.parent


# -- arguments --------------------------------------------------------------------------------------------------------


def test_flags_beat_the_file_and_the_rest_is_default(tmp_path):
    (tmp_path / "run.yaml").write_text("alpha: 0.2\nlearning_rate: 3e-4\ndataset_options: {designs: [google]}\n")
    model, data, training = parse_arguments([str(tmp_path / "run.yaml"), "--alpha", "0.3", "--resume"])
    assert model.alpha == 0.3 and training.learning_rate == 3e-4 and training.resume is True
    assert data.dataset_options == {"designs": ["google"]} and model.queue_size == 65536
    (tmp_path / "again.yaml").write_text(resolved(model, data, training))
    assert parse_arguments([str(tmp_path / "again.yaml")]) == (model, data, training)


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_config_is_understood(config):
    parse_arguments([str(config)])


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("learning_rat: 1", [], "unknown key 'learning_rat'; did you mean 'learning_rate'"),
        ("", ["--alhpa", "1"], "unknown flag --alhpa; did you mean 'alpha'"),
        ("batch_size: many", [], "batch_size must be int, not 'many'"),
        ("", ["--queue_size", "1.5"], "queue_size must be int, not 1.5"),
        ("", ["stray"], "unexpected argument 'stray'"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, text, flags, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        parse_arguments([str(tmp_path / "run.yaml"), *flags])


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
    "projection_dim": 16,
    "queue_size": 50,
    "batch_size": 8,
    "warmup_steps": 2,
    "log_every": 2,
    "save_every": 3,
    "keep_checkpoints": 9,
    "max_steps": 6,
    "rerank": 4,
}


def launch(folder: Path, *flags: str, **options):
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump({**TINY, "output_dir": str(folder / "run")}))
    command = [sys.executable, str(ROOT / "scripts" / "pretrain.py"), str(config), *flags]
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
    # The schedule of a shorter run differs, so the checkpoint is taken from the straight run's third step instead.
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
