"""What tests of fine-tuning need for each downstream task (an entry of `CASES`), and how they run one."""

import json
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from albef_hf.tasks import TASKS
from albef_hf.tasks.pairs import CaptionTask

ROOT = Path(__file__).parent.parent
COLORS = ("red", "green", "blue", "yellow")
COMMON = {
    "image_size": 32,
    "queue_size": 5,
    "batch_size": 4,
    "evaluation_batch_size": 4,
    "max_steps": 4,
    "save_every": 2,
    "evaluate_every": 2,
    "log_every": 1,
    "warmup_steps": 1,
    "learning_rate": 1e-3,
    "rerank": 2,
    "threads": 1,
    "report_to": "none",
}


@dataclass
class TaskCase:
    """A task as its tests need it.

    Args:
        row: the number of a row and the color of its picture -> the row as in the publication's list. The picture is
            COLOR.png, for each of `COLORS`.
        report: texts that its report must contain besides its metrics.
        predictions: the prediction files of a test named `test`.
    """

    row: Callable[[int, str], dict[str, Any]]
    report: tuple[str, ...]
    predictions: tuple[str, ...] = ("test.jsonl",)


def _captions(number: int, color: str) -> dict[str, Any]:
    return {"image": f"{color}.png", "caption": [f"a {color} square", color], "image_id": color}


CASES = {
    "retrieval": TaskCase(_captions, ("Heat maps", "Gallery", "Retrieval: test"), ("test.json",)),
    "question_answering": TaskCase(
        lambda number, color: {
            "image": f"{color}.png",
            "question": "what colour is it?",
            "answer": [color] * 10,
            "question_id": 100 + number,
            "question_type": "what colour" if number % 3 else None,
        },
        ("Examples: test", "Accuracy by type of question", "people: red"),
        ("test.details.jsonl", "test.json"),
    ),
    "visual_reasoning": TaskCase(
        lambda number, color: {
            "images": [f"{color}.png", "red.png"],
            "sentence": "both are red",
            "label": str(number % 4 == 0),
            "identifier": f"test-{number}",
        },
        ("Examples: test", "Confusion: test"),
        ("test.csv", "test.details.jsonl"),
    ),
    "visual_entailment": TaskCase(
        lambda number, color: {
            "image": f"{color}.png",
            "sentence": "it is red",
            "label": "entailment" if number % 4 == 0 else "contradiction" if number % 2 else "neutral",
        },
        ("Examples: test", "Confusion: test"),
    ),
    "image_text_classification": TaskCase(
        lambda number, color: {"image": f"{color}.png", "sentence": "what is it?", "label": f"{color}ish"},
        ("Examples: test", "Confusion: test", "redish"),
    ),
    "text_assignment": TaskCase(_captions, ("Confusion: test",), ()),
    "grounding": TaskCase(
        lambda number, color: {
            "image": f"{color}.png",
            "text": f"the {color} one",
            "bbox": [0, 0, 16, 16],
            "proposals": [[0, 0, 16, 16], [16, 16, 16, 16]],
        },
        ("Examples: test", "a box at random"),
    ),
}


def write_config(task: str, folder: Path, model: Path) -> Path:
    """Write a configuration that fine-tunes a model folder on a task, with its lists and pictures beside it."""
    for color in COLORS:
        Image.new("RGB", (32, 32), color).save(folder / f"{color}.png")
    for name, count in (("train", 12), ("validation", 7), ("test", 6)):
        rows = [CASES[task].row(number, COLORS[number % 4]) for number in range(count)]
        if issubclass(TASKS[task], CaptionTask):  # every picture once
            rows = rows[:4] * (3 if name == "train" else 1)
        (folder / f"{name}.json").write_text(json.dumps(rows))
    values = {
        **COMMON,
        "task": task,
        "model_path": str(model),
        "dataset": str(folder / "train.json"),
        "validation": {"dataset": str(folder / "validation.json")},
        "tests": {"test": {"dataset": str(folder / "test.json")}},
    }
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump(values))
    return config


def run_script(name: str, config: Path, **flags: Any) -> None:
    """Run a script of `scripts/` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", [name, str(config), *(f"--{key}={value}" for key, value in flags.items())])
        runpy.run_path(f"scripts/{name}", run_name="__main__")


def logged(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Rows of a kind in the log of a run."""
    return [row for row in map(json.loads, (folder / "log.jsonl").read_text().splitlines()) if row["kind"] == kind]
