"""The tables of `scripts/compare_image_methods.py` and `scripts/compare_backbones.py`, and their configs."""

import importlib.util
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from albef_hf.training.arguments import parse_arguments, resolved
from ssl_methods.augment import view_recipes
from ssl_methods.run import build_method

ROOT = Path(__file__).parent.parent
BASELINES = ("raw pixels", "random initialisation", "supervised")


def load(name):
    specification = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return load("compare_image_methods")


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("compare_*.yaml")), ids=lambda path: path.name)
def test_a_config_builds_all_five_methods(tmp_path, config):
    shared = yaml.safe_load(config.read_text(encoding="utf-8"))
    methods = shared.pop("methods")
    assert shared.pop("supervised_epochs") == shared["epochs"]
    assert set(methods) == {"moco_v1", "moco_v2", "moco_v3", "byol", "barlow_twins"}
    for name, own in methods.items():
        (tmp_path / "run.yaml").write_text(yaml.safe_dump({**shared, "method": name, **own}))
        model, data, _ = parse_arguments([str(tmp_path / "run.yaml")])
        assert build_method(model).name == name
        view_recipes(data.augmentation, **data.augmentation_options)


class Runs:
    """Stands for running a script: what was started, and the files that it would have left."""

    def __init__(self, metrics):
        self.started, self.metrics = [], metrics

    def __call__(self, name, *arguments):
        self.started.append((name, arguments))
        if name == "evaluate_features.py":
            partial = Path(arguments[-1])
            partial.write_text("".join(json.dumps({"name": n, "seed": 1, "knn_20": 0.5}) + "\n" for n in BASELINES))
            return
        groups = parse_arguments([str(argument) for argument in arguments])
        folder = Path(groups[-1].output_dir)
        folder.mkdir(exist_ok=True)
        metrics = {metric: value + len(self.started) / 100 for metric, value in self.metrics.items()}
        rows = [{"kind": "train", "step": 1, "loss": 1.0}, {"kind": "evaluation", "step": 1, "metrics": metrics}]
        (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        written = replace(groups[-1], mixed_precision="no", resume=False)
        (folder / "config.yaml").write_text(resolved(*groups[:-1], written))
        (folder / "run.json").write_text("{}")
        (folder / "report.html").write_text("")


@pytest.fixture
def measuring(tmp_path, script, monkeypatch):
    """`measure` with one method and one seed, and what it starts. Keywords: changes of the configuration."""
    runs = Runs({"knn_20": 0.24})
    monkeypatch.setattr(script, "run", runs)

    def measure(epochs=2, **changes):
        config = {"dataset": "digits", "methods": {"byol": {}}, "supervised_epochs": epochs, **changes}
        return script.measure(config, [1], tmp_path)

    return measure, runs


def test_runs_that_are_there_are_not_made_again(measuring):
    """Finished runs are read, also with settings of no consequence; baselines are measured once for each seed."""
    measure, runs = measuring
    for _ in range(2):
        found = measure()
        assert [(row["name"], row["knn_20"]) for row in found] == [("byol", 0.25), *((n, 0.5) for n in BASELINES)]
    assert [name for name, _ in runs.started] == ["pretrain.py", "evaluate_features.py"]
    assert runs.started[0][1][-2:] == ("--resume", "auto")


def test_a_run_without_an_end_goes_on(measuring, tmp_path):
    measure, runs = measuring
    measure()
    (tmp_path / "byol-1" / "report.html").unlink()
    measure()
    assert [name for name, _ in runs.started] == ["pretrain.py", "evaluate_features.py", "pretrain.py"]


@pytest.mark.parametrize("complete", [True, False])
def test_a_run_with_other_settings_is_no_part_of_a_table(complete, measuring, tmp_path):
    measure, runs = measuring
    measure()
    if not complete:
        (tmp_path / "byol-1" / "report.html").unlink()
    measure(log_every=7)
    del runs.started[:]
    with pytest.raises(ValueError, match="byol-1 holds a run of something else .learning_rate: .* there, 0.3 now"):
        measure(learning_rate=0.3)
    with pytest.raises(ValueError, match=r"method_options: \{\} there, \{'dim': 8\} now\). Move or remove"):
        measure(methods={"byol": {"method_options": {"dim": 8}}})
    assert runs.started == []


def test_baselines_with_other_settings_are_no_part_of_a_table(measuring, tmp_path):
    measure, _ = measuring
    measure()
    with pytest.raises(ValueError, match="baselines-1.jsonl was measured with other settings"):
        measure(epochs=3)
    (tmp_path / "baselines-1.json").unlink()
    with pytest.raises(ValueError, match="baselines-1.jsonl was measured with other settings"):
        measure()


def test_the_table_has_mean_and_sample_deviation(script):
    rows = [{"name": "byol", **dict.fromkeys(script.COLUMNS, value)} for value in (0.5, 0.6, 0.7)]
    title, *_, last = script.table(rows, script.COLUMNS, "features").splitlines()
    assert title == "| features | 20 neighbors | 200 neighbors | logistic regression |"
    assert last == "| byol | 60.0 ± 10.0 | 60.0 ± 10.0 | 60.0 ± 10.0 |"
    assert script.table(rows[:1], {"knn_20": "k 20"}, "x").splitlines()[-1] == "| byol | 50.0 |"  # no spread of one


@pytest.fixture
def backbones(tmp_path, monkeypatch):
    """The script that starts ALBEF from backbones, two of them, and what it starts instead of runs."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    for name, width in (("byol-1", 8), ("moco_v1-1", 8), ("other", 16)):
        (tmp_path / name / "model").mkdir(parents=True)
        fields = {"model_type": "resnet", "embedding_size": width, "architectures": ["ResNetModel"]}
        (tmp_path / name / "model" / "config.json").write_text(json.dumps(fields))
    module = load("compare_backbones")
    runs = Runs(dict.fromkeys(module.METRICS, 0.0))
    monkeypatch.setattr(module, "run", runs)
    return module, runs


def start_backbones(module, monkeypatch, folder, *names):
    paths = [str(folder / name / "model") for name in names]
    arguments = [str(ROOT / "configs" / "emoji.yaml"), "--output_dir", str(folder / "out"), "--epochs", "2"]
    monkeypatch.setattr(sys, "argv", ["compare_backbones.py", *arguments, "--backbones", *paths])
    module.main()


def test_albef_starts_from_each_backbone_and_from_its_architecture(tmp_path, backbones, monkeypatch):
    module, runs = backbones
    for _ in range(2):  # the second time everything is there
        start_backbones(module, monkeypatch, tmp_path, "byol-1", "moco_v1-1")
    configs = [yaml.safe_load(arguments[0].read_text()) for _, arguments in runs.started]
    assert [(config.get("vision_model"), config["vision_config"]) for config in configs] == [
        (None, {"model_type": "resnet", "embedding_size": 8}),
        (str(tmp_path / "byol-1" / "model"), {}),
        (str(tmp_path / "moco_v1-1" / "model"), {}),
    ]
    assert all(config["dataset"] == "emoji" for config in configs)
    assert all(arguments[3:] == ("--epochs", "2", "--resume", "auto") for _, arguments in runs.started)
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()[2:]
    assert [line.split(" | ")[:2] for line in lines] == [
        ["| random weights", "1.0"], ["| byol-1", "2.0"], ["| moco_v1-1", "3.0"],
    ]  # fmt: skip


def test_a_run_from_a_backbone_that_was_trained_further_is_no_part_of_a_table(tmp_path, backbones, monkeypatch):
    module, _ = backbones
    weights = tmp_path / "byol-1" / "model" / "model.safetensors"
    weights.touch()
    start_backbones(module, monkeypatch, tmp_path, "byol-1")
    start_backbones(module, monkeypatch, tmp_path, "byol-1")
    os.utime(weights, (time.time() + 60, time.time() + 60))
    with pytest.raises(ValueError, match="out/byol-1 holds a run of something else .the weights in .*are newer"):
        start_backbones(module, monkeypatch, tmp_path, "byol-1")


def test_backbones_that_cannot_be_compared_are_named(tmp_path, backbones, monkeypatch):
    module, _ = backbones
    with pytest.raises(ValueError, match="other/model and .*byol-1/model differ in architecture"):
        start_backbones(module, monkeypatch, tmp_path, "byol-1", "other")
    with pytest.raises(ValueError, match="no such backbone: .*nothing/model/config.json"):
        start_backbones(module, monkeypatch, tmp_path, "nothing")
