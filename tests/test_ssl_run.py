"""The script with an image-only method: a run, its folder, its hand-over, resuming, and its errors."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import built_once
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING, AutoImageProcessor, AutoModel

from albef_hf.training.arguments import ModelArguments
from albef_hf.training.initialization import build_albef
from ssl_methods import METHODS
from ssl_methods.run import build_method

ROOT = Path(__file__).parent.parent
TINY = {
    "vision_config": "{model_type: resnet, embedding_size: 8, hidden_sizes: [8], depths: [1], layer_type: basic}",
    "threads": 1,
    "deterministic": True,
    "dataset_options": "{placements: 1}",
    "save_every": 2,
    "log_every": 1,
    "evaluate_every": 0,
    "report_to": "none",
    "batch_size": 32,
}


def arguments(name, folder, **changes):
    flags = [f"--{key}={value}" for key, value in {**TINY, **changes}.items()]
    return [sys.executable, "scripts/pretrain.py", f"configs/digits_{name}.yaml", "--output_dir", str(folder), *flags]


def run(name, folder, **changes):
    done = subprocess.run(arguments(name, folder, **changes), cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def run_here(name, folder, **changes):
    """The same in this process: a dozen runs need not import torch a dozen times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", arguments(name, folder, **changes)[1:])
        runpy.run_path("scripts/pretrain.py", run_name="__main__")


def rows(folder, kind):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    steps = {"max_steps": 6, "save_every": 3, "evaluate_every": 3}
    return built_once(tmp_path_factory, "finished_moco", lambda folder: run("moco_v2", folder, **steps))


def test_a_run_leaves_a_folder_that_explains_itself(finished):
    folder, printed = finished
    for name in ("config.yaml", "versions.json", "log.jsonl", "curves.png", "report.html", "views.png", "map.png"):
        assert (folder / name).stat().st_size > 0, name
    train = rows(folder, "train")
    assert len(train) == 6
    health = {
        "projection_spread",
        "effective_rank",
        "queue_fill",
        "momentum_drift",
        "contrastive_accuracy",
        "momentum",
    }
    assert all(health <= row.keys() for row in train)
    assert [row["queue_fill"] for row in train] == pytest.approx([32 * n / 1024 for n in range(1, 7)])
    (start,) = rows(folder, "run")
    assert start["method"] == "moco_v2" and start["chance"]["loss"] == pytest.approx(6.9324, abs=1e-3)
    assert [row["step"] for row in rows(folder, "evaluation")] == [3, 6, 6]
    assert "logistic_regression" in rows(folder, "evaluation")[-1]["metrics"]
    assert any("hardly leave their start" in row["text"] for row in rows(folder, "warning"))
    page = (folder / "report.html").read_text()
    for part in ("Frozen features", "Views", "Nearest neighbors", "Map", "Warnings", "MOCO_V2"):
        assert part in page, part
    assert "knn_20" in printed


def test_the_backbone_is_an_ordinary_folder(finished):
    """It loads without this package, feeds a pipeline, and starts ALBEF."""
    folder = finished[0] / "model"
    code = (
        "import sys; sys.modules['albef_hf'] = sys.modules['ssl_methods'] = None\n"
        "from transformers import AutoModel, pipeline\n"
        "from PIL import Image\n"
        f"extract = pipeline('image-feature-extraction', model={str(folder)!r})\n"
        "print(len(extract(Image.new('RGB', (40, 30), 'red'))[0]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0 and int(done.stdout.split()[-1]) > 0, done.stderr[-2000:]
    assert AutoImageProcessor.from_pretrained(folder).crop_size["height"] == 32
    trained = AutoModel.from_pretrained(folder).state_dict()
    state = load_file(finished[0] / "checkpoints" / "step-00000006" / "model.safetensors")
    for name, tensor in trained.items():
        assert torch.equal(tensor, state[f"backbone.backbone.{name}"]), name
    text = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    options = {"projection_dim": 8, "queue_size": 8, "text_config": {**text, "fusion_layer": 1}}
    albef, _ = build_albef(ModelArguments(vision_model=str(folder), vision_pooling="mean", image_size=32, **options))
    own = albef.albef.vision_model.backbone.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in trained.items())


@pytest.mark.parametrize("name", list(METHODS))
def test_resuming_equals_the_straight_run(tmp_path, name):
    options = {"max_steps": 4, "warmup_steps": 1, "label_column": "null", "evaluation_dataset": "null"}
    run_here(name, tmp_path / "straight", **options)
    shutil.copytree(tmp_path / "straight", tmp_path / "stopped")  # as if it had stopped after its first checkpoint
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "step-00000004")
    run_here(name, tmp_path / "stopped", **options, resume=True)
    for file in ("model.safetensors", "optimizer.safetensors"):
        folders = [tmp_path / part / "checkpoints" / "step-00000004" for part in ("straight", "stopped")]
        one, other = (load_file(folder / file) for folder in folders)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), file
    losses = [[row["loss"] for row in rows(tmp_path / part, "train")] for part in ("straight", "stopped")]
    assert losses[0] == losses[1] and len(losses[0]) == 4


def test_a_report_that_fails_costs_a_warning_and_is_made_again(tmp_path, capsys, monkeypatch):
    options = {"max_steps": 2, "warmup_steps": 1}
    with monkeypatch.context() as patch:
        patch.setattr("ssl_methods.run.knn_accuracy", lambda *_: (_ for _ in ()).throw(OSError("full")))
        run_here("barlow_twins", tmp_path, **options)
    assert "the report failed: OSError: full. The trained weights are saved" in capsys.readouterr().out
    assert AutoModel.from_pretrained(tmp_path / "model") is not None and not (tmp_path / "report.html").exists()
    run_here("barlow_twins", tmp_path, **options, resume=True)
    assert (tmp_path / "report.html").exists() and len(rows(tmp_path, "evaluation")) == 1


def test_the_card_knows_the_options_that_were_left_out(tmp_path):
    changes = {"max_steps": 2, "warmup_steps": 1, "label_column": "null", "evaluation_dataset": "null"}
    run_here("moco_v2", tmp_path, **changes, published_recipe="moco_v2")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "It reached 67.5 % on ImageNet by a linear probe" in card
    assert "| method_options.queue_size | 65536 | " in card and "| samples of an optimizer step | 256 | 32 |" in card
    assert "method_options.dim" not in card  # by default as published


def test_neighbors_are_counted_by_the_chosen_protocol(tmp_path):
    run_here("barlow_twins", tmp_path, max_steps=2, warmup_steps=1, knn_protocol="instdisc-knn")
    (row,) = rows(tmp_path, "evaluation")
    assert row["name"].endswith(", instdisc-knn")
    assert [name for name in row["metrics"] if name.startswith("knn")] == ["knn_200"]


def test_a_dry_run_draws_the_views(tmp_path, capsys):
    run_here("byol", tmp_path / "dry", dry_run=True)
    printed = capsys.readouterr().out
    assert (tmp_path / "dry" / "first_batch.png").stat().st_size > 0 and "memory of a step" in printed
    assert not (tmp_path / "dry" / "log.jsonl").exists()


def test_wrong_options_are_named():
    config = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    common = {"method": "moco_v2", "vision_config": config, "vision_pooling": "mean"}
    with pytest.raises(ValueError, match="method_options: unknown key 'queue_sise'; did you mean 'queue_size'"):
        build_method(ModelArguments(**common, method_options={"queue_sise": 4}))
    with pytest.raises(ValueError, match="queue_size is ALBEF's; give moco_v2 its own inside method_options"):
        build_method(ModelArguments(**common, queue_size=4))
    with pytest.raises(ValueError, match="unknown model_type 'resnett'; did you mean 'resnet'"):
        build_method(ModelArguments(**{**common, "vision_config": {"model_type": "resnett"}}))
    with pytest.raises(ValueError, match="vision_config needs a model_type"):
        build_method(ModelArguments(**{**common, "vision_config": {"depths": [1]}}))


def test_pictures_that_would_be_too_small_for_the_saved_processor_are_refused(tmp_path):
    with pytest.raises(ValueError, match="evaluation_resize 30 is below image_size 32"):
        run_here("moco_v2", tmp_path / "dry", dry_run="true", evaluation_resize=30, label_column="null")


def test_features_of_any_folder_are_probed(finished, tmp_path):
    out = tmp_path / "found.jsonl"
    command = [
        "scripts/evaluate_features.py", "configs/digits_moco_v2.yaml",
        "--model", str(finished[0] / "model"),
        "--baselines", "--probes", "knn", "--output", str(out), "--dataset_options={placements: 1}", "--threads=1",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", command)
        runpy.run_path(command[0], run_name="__main__")
        patch.setattr(sys, "argv", [*command[:-1], "--output", str(tmp_path)])
        with pytest.raises(ValueError, match="--output .* is a folder: name a file"):
            runpy.run_path(command[0], run_name="__main__")
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["name"] for row in found] == ["raw pixels", "random initialisation", str(finished[0] / "model")]
    last = rows(finished[0], "evaluation")[-1]["metrics"]
    assert found[-1]["knn_20"] == pytest.approx(last["knn_20"], abs=0.01)


def probe(*flags):
    """What scripts/evaluate_features.py finds, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(
            sys, "argv", ["scripts/evaluate_features.py", "configs/digits_moco_v2.yaml", "--threads=1", *flags]
        )
        runpy.run_path("scripts/evaluate_features.py", run_name="__main__")


def test_the_untrained_network_has_the_architecture_of_the_model_and_none_of_its_weights(tmp_path):
    fields = {"embedding_size": 8, "hidden_sizes": [16], "depths": [1], "layer_type": "basic"}
    model = AutoModel.from_config(CONFIG_MAPPING["resnet"](**fields))
    for weight in model.parameters():
        torch.nn.init.zeros_(weight)  # all pictures look the same to it
    model.save_pretrained(tmp_path / "model")
    out, own = tmp_path / "found.jsonl", str(tmp_path / "model")
    flags = ["--baselines", "--probes", "knn", "--output", str(out), "--dataset_options={placements: 1}"]
    probe(*flags, "--model", own)
    probe(*flags, "--vision_model", own, "--vision_config={}")
    probe(*flags, f"--vision_config={json.dumps({'model_type': 'resnet', **fields})}")
    found = [json.loads(line) for line in out.read_text().splitlines()]
    untrained = [row["knn_10"] for row in found if row["name"] == "random initialisation"]
    (trained,) = [row["knn_10"] for row in found if row["name"] == own]
    assert untrained == untrained[:1] * 3 and untrained[0] > trained + 0.05


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--baselines", "--model_path", "x"], "model_path would have no effect: --model names what is measured"),
        (["--supervised_epochs", "-1"], "--supervised_epochs must be 0 or more, not -1"),
        (["--baselines", "--model", "x", "--name", "raw pixels"], "--name 'raw pixels' is the name of --model"),
        (["--baselines", "--name", "own"], "--name 'own' is the name of --model in the results"),
        (["--baselines", "--output", "README.md/x.jsonl"], "--output README.md/x.jsonl cannot be written: "),
    ],
)
def test_odd_flags_of_probes_are_refused_before_any_work(flags, message):
    with pytest.raises(ValueError, match=message):
        probe(*flags)


def test_probes_are_not_measured_once_for_each_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="probes run in one process"):
        probe("--baselines")
