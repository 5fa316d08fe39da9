"""Published recipes: configs have their values, and cards say what a run does otherwise."""

import json
import re
from pathlib import Path

import pytest
import yaml

from albef_hf.reporting.model_card import write_model_card
from albef_hf.reporting.published import deviations
from albef_hf.reporting.published_recipes import PUBLISHED
from albef_hf.training.arguments import GROUPS, parse_arguments
from albef_hf.training.task_arguments import TASK_GROUPS
from ssl_methods import METHODS
from ssl_methods.run import default_options

ROOT = Path(__file__).parent.parent
CONFIGS = {path.stem: path for path in (ROOT / "configs").glob("*.yaml")}
BF16 = [("mixed_precision", "no", "bf16")]
# What configs do otherwise, each with a comment there.
DECLARED = {
    "barlow_twins": [("bias_learning_rate", 0.0048, 0.0003)],
    **{name: BF16 for name, path in CONFIGS.items() if "\ntask: " in path.read_text(encoding="utf-8")},
}


def arguments_of(name: str) -> dict:
    """All arguments of a config, with the defaults of its method's options."""
    text = CONFIGS[name].read_text(encoding="utf-8")
    found: dict = {}
    for group in parse_arguments([str(CONFIGS[name])], TASK_GROUPS if "\ntask: " in text else GROUPS):
        found |= vars(group)
    if found["method"] in METHODS:
        found["method_options"] = default_options(METHODS[found["method"]]) | found["method_options"]
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_config_has_the_published_values(name):
    config, recipe = arguments_of(name), PUBLISHED[name]
    assert config["published_recipe"] == name
    per_device = config["batch_size"] * config["accumulation"]
    assert recipe.samples_per_step % per_device == 0
    assert deviations(recipe, config, recipe.samples_per_step) == DECLARED.get(name, [])


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_config_says_what_its_source_reached_and_on_what(name):
    text = CONFIGS[name].read_text(encoding="utf-8")
    comment = " ".join(line.removeprefix("# ") for line in text.splitlines() if line.startswith("#"))
    recipe = PUBLISHED[name]
    assert recipe.source in comment
    assert f"Reached: {recipe.reached}; on {recipe.hardware}, {recipe.samples_per_step} samples a step." in comment


def test_no_other_config_names_a_recipe():
    named = {name for name, path in CONFIGS.items() if "published_recipe:" in path.read_text(encoding="utf-8")}
    assert named == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_setting_that_differs_is_found(name):
    recipe = PUBLISHED[name]
    settings = {key: dict(value) if isinstance(value, dict) else value for key, value in recipe.settings.items()}
    assert deviations(recipe, settings, recipe.samples_per_step) == []
    assert deviations(recipe, settings, 7) == [("samples of an optimizer step", recipe.samples_per_step, 7)]
    for key, value in settings.items():
        if isinstance(value, dict):
            for part in value:
                other = {**settings, key: {**value, part: "x"}}
                assert deviations(recipe, other, recipe.samples_per_step) == [(f"{key}.{part}", value[part], "x")]
        assert deviations(recipe, {**settings, key: "x"}, recipe.samples_per_step) != []
        missing = {k: v for k, v in settings.items() if k != key}
        if value is None:  # left out, as published
            continue
        assert all(own is None for _, _, own in deviations(recipe, missing, recipe.samples_per_step))
        assert deviations(recipe, missing, recipe.samples_per_step) != []


def card(folder: Path, changes: dict, devices: int = 8, **options) -> str:
    run, model = folder / "run", folder / "model"
    run.mkdir(exist_ok=True), model.mkdir(exist_ok=True)
    (run / "config.yaml").write_text(yaml.safe_dump(arguments_of("moco_v2") | changes), encoding="utf-8")
    row = {"kind": "run", "method": "moco_v2", "devices": devices}
    (run / "log.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return write_model_card(run, model, **options).read_text(encoding="utf-8")


def rows_of(text: str) -> list[str]:
    section = text.split("## Beside the published recipe")[1].split("\n## ")[0]
    return re.findall(r"^\| (?!--- ).*$", section, re.M)[1:]


def test_a_card_lists_what_a_run_does_otherwise_beside_the_figure(tmp_path):
    equal = card(tmp_path, {})
    assert "It reached 67.5 % on ImageNet by a linear probe" in equal and "8 V100" in equal
    assert [row.split(" | ")[0] for row in rows_of(equal)] == ["| training data"]
    changes = {"dataset": "/home/somebody/pictures", "batch_size": 64, "epochs": 20, "weight_decay": 0.0}
    text = card(tmp_path, changes, devices=1, settings={"method_options": {"queue_size": 4096, "temperature": 0.2}})
    assert rows_of(text) == [
        "| training data | ImageNet-1k, 1.28 million pictures | local data |",
        "| samples of an optimizer step | 256 | 64 |",
        "| epochs | 200 | 20 |",
        "| weight_decay | 0.0001 | 0.0 |",
        "| method_options.queue_size | 65536 | 4096 |",
        "| method_options.momentum | 0.999 | None |",
        "| method_options.dim | 128 | None |",
    ]
    assert "somebody" not in text


def test_a_card_of_another_recipe_quotes_no_figure(tmp_path):
    assert "67.5 %" not in card(tmp_path, {"published_recipe": None})


def test_what_no_argument_makes_equal_is_listed(tmp_path):
    text = card(tmp_path, {"published_recipe": "byol"})
    assert [row for row in rows_of(text) if row.startswith("| of the code | Pillow's bicubic")]


def test_an_unknown_recipe_is_refused(tmp_path):
    with pytest.raises(ValueError, match="published_recipe must be one of null, albef_4m, .*not 'moco'"):
        parse_arguments(["--published_recipe", "moco"])
