"""The table of `scripts/compare_image_methods.py`, and its configs."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from albef_hf.training.arguments import parse_arguments
from ssl_methods.augment import view_recipes
from ssl_methods.run import build_method

ROOT = Path(__file__).parent.parent
BASELINES = ("raw pixels", "random initialisation", "supervised")


@pytest.fixture(scope="module")
def script():
    path = ROOT / "scripts" / "compare_image_methods.py"
    specification = importlib.util.spec_from_file_location("compare_image_methods", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


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
    last = script.table(rows).splitlines()[-1]
    assert last == "| byol | 60.0 ± 10.0 | 60.0 ± 10.0 | 60.0 ± 10.0 |"
