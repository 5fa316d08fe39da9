"""Emoji tasks: labels follow their rules, parts share no emoji, and the same seed makes the same rows."""

import dataclasses
import json
import runpy
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from albef_hf.data.builtin import emoji_tasks
from albef_hf.data.builtin.emoji_tasks import CELL, Drawing, color_name, dominant_color
from albef_hf.data.sources import BUILT_IN
from albef_hf.evaluation.boxes import check_box
from albef_hf.evaluation.classification import majority_baseline
from albef_hf.tasks import TASKS
from albef_hf.tasks.question_answering import QuestionAnswering
from albef_hf.training.arguments import parse_arguments, resolved
from albef_hf.training.task_arguments import TASK_GROUPS

ROOT = Path(__file__).parent.parent
COLORS = ("red", "blue", "yellow")


@pytest.fixture
def drawings(monkeypatch):
    """In place of the corpus, eighteen squares of three colors and two designs, whose content can be read back."""

    def make(part, designs, seed, groups=False):
        return [
            Drawing(
                Image.new("RGB", (CELL, CELL), color), f"{part}{color}{i}", f"{color} {i}", "things", design, color
            )
            for color in COLORS
            for i in range(6)
            for design in designs[i % len(designs) : i % len(designs) + 1]
        ]

    monkeypatch.setattr(emoji_tasks, "_drawings", make)
    return make


def color_at(image: Image.Image, x: int, y: int) -> str:
    return color_name(*(channel / 255 for channel in image.getpixel((x, y))[:3]))


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((255, 0, 0), "red"),
        ((255, 140, 0), "orange"),
        ((255, 220, 0), "yellow"),
        ((0, 160, 40), "green"),
        ((20, 60, 220), "blue"),
        ((130, 40, 200), "purple"),
        ((255, 80, 170), "pink"),
        ((120, 70, 30), "brown"),
        ((10, 10, 10), "black"),
        ((128, 128, 128), "grey"),
        ((250, 250, 250), "white"),
    ],
)
def test_colors_have_names(rgb, name):
    assert color_name(*(channel / 255 for channel in rgb)) == name


def test_the_dominant_color_holds_half_of_what_is_not_white():
    image = Image.new("RGB", (72, 72), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 20, 20), fill=(255, 0, 0))
    assert dominant_color(image) == "red"  # however small
    draw.rectangle((30, 0, 71, 71), fill=(0, 0, 255))
    assert dominant_color(image) == "blue"
    draw.rectangle((30, 0, 71, 23), fill=(0, 160, 40))
    draw.rectangle((30, 24, 71, 47), fill=(255, 220, 0))
    assert dominant_color(image) is None  # three of a third
    assert dominant_color(Image.new("RGB", (9, 9), "white")) is None


def test_statements_about_two_pictures_are_true_or_false_as_labeled(drawings):
    rows = emoji_tasks.load_emoji_reasoning(size=200)
    assert {(row["rule"], row["label"]) for row in rows} == {
        (rule, label) for rule in ("both", "only one", "left and right") for label in ("True", "False")
    }
    for row in rows:
        left, right = (color_at(image, 5, 5) for image in row["images"])
        words = row["sentence"].split()
        if row["rule"] == "both":
            truth = left == right == words[-1]
        elif row["rule"] == "only one":
            truth = (left == words[-1]) != (right == words[-1])
        else:
            truth = (left, right) == (words[4], words[-1])
        assert str(truth) == row["label"], row["sentence"]


def test_entailment_follows_from_what_is_seen(drawings):
    rows = emoji_tasks.load_emoji_entailment(size=150)
    sentences: dict[str, set[str]] = {}
    for row in rows:
        seen = color_at(row["image"], CELL // 2, CELL // 2)
        denied, color = " no " in row["sentence"], row["sentence"].split()[-2]
        covered = "grey" in [color_at(row["image"], x, y) for x in (1, CELL - 2) for y in (1, CELL - 2)]
        if row["label"] == "neutral":
            assert covered
        elif color != seen:  # certainly absent, so the picture is open
            assert not covered and (row["label"] == "entailment") == denied
        sentences.setdefault(f"{denied}", set()).add(row["label"])
    assert all(len(labels) == 3 for labels in sentences.values())
    counts = Counter(row["label"] for row in rows)
    assert min(counts.values()) > 150 / 3 * 0.6


def test_boxes_hold_what_the_expression_names(drawings):
    rows = emoji_tasks.load_emoji_grounding(size=20, objects=5)
    for row in rows:
        assert (
            row["image"].size == (3 * CELL, 3 * CELL) and len(row["proposals"]) == 5 and row["box"] in row["proposals"]
        )
        x, y, width, height = row["box"]
        check_box(row["box"], *row["image"].size, "test")
        assert color_at(row["image"], int(x + width / 2), int(y + height / 2)) == row["expression"].split()[0]
    with pytest.raises(ValueError, match="2 x 2 cells has no room for 5"):
        emoji_tasks.load_emoji_grounding(size=1, objects=5, grid=2)


def test_seeds_and_sizes_are_arguments(drawings):
    for name in ("emoji_questions", "emoji_reasoning", "emoji_entailment", "emoji_grounding"):
        first, again, other = (BUILT_IN[name](size=8, seed=seed) for seed in (1, 1, 2))
        image = "images" if "images" in first.column_names else "image"
        assert len(first) == 8

        def content(table, image=image):
            return [
                {**{k: v for k, v in row.items() if k != image}, "pixels": np.asarray(row[image]).tobytes()}
                if image == "image"
                else {
                    **{k: v for k, v in row.items() if k != image},
                    "pixels": [np.asarray(i).tobytes() for i in row[image]],
                }
                for row in table
            ]

        assert content(first) == content(again) != content(other)
        with pytest.raises(ValueError, match="size of at least 1"):
            BUILT_IN[name](size=0)


def test_the_real_corpus_parts_share_no_emoji_and_load_as_tasks():
    train, test = (
        QuestionAnswering.load("emoji_questions", options={"part": part, "size": 60}) for part in ("train", "test")
    )
    assert set(train.column_names) == {"image", "question", "answers", "question_type", "answer_type"}
    answers = {(row["question_type"], row["answers"][0]) for row in train.remove_columns("image")}
    assert {("design", "google"), ("design", "twitter")} <= answers
    baseline = majority_baseline(
        [each[0] for each in train["answers"]],
        [each[0] for each in test["answers"]],
        train["question_type"][:],
        test["question_type"][:],
    )
    assert 0 < baseline < 0.7  # no type of question is always answered by one word
    emoji = [set(emoji_tasks.load_emoji_retrieval(part)["image_id"]) for part in ("train", "validation", "test")]
    assert all(emoji) and sum(map(len, emoji)) == len(set.union(*emoji))
    with pytest.raises(ValueError, match="part must be one of train, test, validation, not 'all'"):
        emoji_tasks.load_emoji_retrieval("all")


def test_the_majority_baseline_gives_each_kind_its_own_answer():
    train, test = ["a", "a", "b", "x", "x"], ["a", "b", "x"]
    assert majority_baseline(train, test) == pytest.approx(1 / 3)
    kinds = ["letter"] * 3 + ["sign"] * 2
    assert majority_baseline(train, test, kinds, ["letter", "letter", "sign"]) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="no majority for .'number'"):
        majority_baseline(train, test, kinds, ["number"] * 3)


# -- the script that runs all of them -------------------------------------------------------------------------------


def test_emoji_tasks_that_have_been_run_are_not_run_again(tmp_path, monkeypatch):
    script = runpy.run_path(str(ROOT / "scripts" / "run_emoji_tasks.py"))
    started = []

    def run_task(command):
        started.append(command)
        groups = parse_arguments(command, TASK_GROUPS)
        model, seed, folder = groups[0].model_path, groups[2].seed, Path(groups[2].output_dir)
        folder.mkdir(parents=True)
        settled = dataclasses.replace(groups[2], mixed_precision="no")
        (folder / "config.yaml").write_text(resolved(*groups[:2], settled, groups[3]))
        accuracy = {None: 0.25, "runs/emoji/model": 0.5}[model] + seed / 100
        test = {
            "chosen": {"accuracy": accuracy},
            "last": {"accuracy": 0.9},
            "baselines": {"most frequent class": 0.34},
        }
        other = test | {"chosen": {"accuracy": accuracy / 2}}
        (folder / "results.json").write_text(json.dumps({"tests": {"test": test, "other_design": other}}))

    monkeypatch.setitem(script["measure"].__globals__, "run_task", run_task)
    starts = {"pre-trained": "runs/emoji/model", "from scratch": "null"}
    for _ in range(2):
        found = script["measure"](["emoji_entailment"], starts, [1, 3], tmp_path, ["--max_steps", "5"])
    assert len(started) == 4
    assert [Path(started[0][0]).stem, *started[0][1:5]] == [
        "emoji_entailment",
        "--model_path",
        "runs/emoji/model",
        "--seed",
        "1",
    ]
    assert started[0][-2:] == ["--max_steps", "5"]
    with pytest.raises(ValueError, match="holds a run of something else .max_steps: 5 there, 6 now"):
        script["measure"](["emoji_entailment"], starts, [1, 3], tmp_path, ["--max_steps", "6"])
    assert script["table"](found).splitlines()[-2:] == [
        "| entailment, test | 52.0 ± 1.4 | 27.0 ± 1.4 | most frequent class 34.0 |",
        "| entailment, other_design | 26.0 ± 0.7 | 13.5 ± 0.7 | most frequent class 34.0 |",
    ]


def test_emoji_tasks_name_configs_that_are_there():
    script = runpy.run_path(str(ROOT / "scripts" / "run_emoji_tasks.py"))
    for name, metric in script["TASKS"].items():
        _, data, arguments, task = parse_arguments([str(ROOT / "configs" / f"{name}.yaml")], TASK_GROUPS)
        assert TASKS[task.task].metric == metric and task.tests.keys() == {"test", "other_design"}
        assert task.tests["other_design"]["options"]["designs"] == ["windows"]
        assert data.dataset_options["part"] == "train" and arguments.output_dir == f"runs/{name}"
