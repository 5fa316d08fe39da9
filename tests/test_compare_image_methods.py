"""The tables of `scripts/compare_image_methods.py` and `scripts/compare_backbones.py`, and their configs."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import yaml

from albef_hf.training.arguments import parse_arguments
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


def test_runs_that_are_there_are_not_made_again(tmp_path, script, monkeypatch):
    """Finished runs are read; a missing baseline is measured once for each seed."""
    started = []

    def run(name, *arguments):
        started.append((name, arguments[1:]))
        partial = Path(arguments[-1])
        partial.write_text("".join(json.dumps({"name": n, "seed": 1, "knn_20": 0.5}) + "\n" for n in BASELINES))

    monkeypatch.setattr(script, "run", run)
    (tmp_path / "byol-1").mkdir()
    (tmp_path / "byol-1" / "report.html").write_text("")
    rows = [{"kind": "train", "step": 1, "loss": 1.0}, {"kind": "evaluation", "step": 1, "metrics": {"knn_20": 0.25}}]
    (tmp_path / "byol-1" / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for _ in range(2):
        found = script.measure({"methods": {"byol": {}}, "supervised_epochs": 2}, [1], tmp_path)
        assert [(row["name"], row["knn_20"]) for row in found] == [("byol", 0.25), *((n, 0.5) for n in BASELINES)]
    assert [name for name, _ in started] == ["evaluate_features.py"]


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
    module, started = load("compare_backbones"), []

    def run(name, description, flag, place, *flags):
        started.append((yaml.safe_load(description.read_text()), flags))
        place.mkdir()
        metrics = dict.fromkeys(module.METRICS, len(started) / 100)
        rows = [{"kind": "train", "step": 1, "loss": 1.0}, {"kind": "evaluation", "step": 1, "metrics": metrics}]
        (place / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (place / "report.html").write_text("")

    monkeypatch.setattr(module, "run", run)
    return module, started


def start_backbones(module, monkeypatch, folder, *names):
    paths = [str(folder / name / "model") for name in names]
    arguments = [str(ROOT / "configs" / "emoji.yaml"), "--output_dir", str(folder / "out"), "--epochs", "2"]
    monkeypatch.setattr(sys, "argv", ["compare_backbones.py", *arguments, "--backbones", *paths])
    module.main()


def test_albef_starts_from_each_backbone_and_from_its_architecture(tmp_path, backbones, monkeypatch):
    module, started = backbones
    for _ in range(2):  # the second time everything is there
        start_backbones(module, monkeypatch, tmp_path, "byol-1", "moco_v1-1")
    assert [(config.get("vision_model"), config["vision_config"]) for config, _ in started] == [
        (None, {"model_type": "resnet", "embedding_size": 8}),
        (str(tmp_path / "byol-1" / "model"), {}),
        (str(tmp_path / "moco_v1-1" / "model"), {}),
    ]
    assert all(flags == ("--epochs", "2") and config["dataset"] == "emoji" for config, flags in started)
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()[2:]
    assert [line.split(" | ")[:2] for line in lines] == [
        ["| random weights", "1.0"], ["| byol-1", "2.0"], ["| moco_v1-1", "3.0"],
    ]  # fmt: skip


def test_backbones_that_cannot_be_compared_are_named(tmp_path, backbones, monkeypatch):
    module, _ = backbones
    with pytest.raises(ValueError, match="other/model and .*byol-1/model differ in architecture"):
        start_backbones(module, monkeypatch, tmp_path, "byol-1", "other")
    with pytest.raises(ValueError, match="no such backbone: .*nothing/model/config.json"):
        start_backbones(module, monkeypatch, tmp_path, "nothing")
