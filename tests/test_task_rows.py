"""Rows that cannot be measured are named before training; data sets that mean two things are refused."""

import json
from types import SimpleNamespace

import datasets
import pytest
import torch
from PIL import Image
from task_cases import CASES, COLORS, write_config

from albef_hf.tasks import TASKS
from albef_hf.tasks.image_text_classification import ImageTextClassification
from albef_hf.tasks.result import TaskSettings
from albef_hf.training.arguments import parse_arguments
from albef_hf.training.task_arguments import TASK_GROUPS, load_evaluation_rows
from albef_hf.training.task_run import evaluate_saved


def checked(task, processor, tmp_path, change=None, chooses=False, **settings):
    """`check_rows` of a task on six rows after `change` of the last row or of all. Only the pictures of grounding, 32
    pixels wide and high, are there."""
    if task == "grounding":
        for color in COLORS:
            Image.new("RGB", (32, 32), color).save(tmp_path / f"{color}.png")
    rows = [CASES[task].row(number, COLORS[number % 4]) for number in range(6)]
    for row in rows if change and change.pop("every", False) else rows[-1:]:
        row |= change or {}
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    made = TASKS[task](processor, TaskSettings(**settings))
    if task == "image_text_classification":
        made.prepare_training({"train": datasets.Dataset.from_dict({"label": [f"{color}ish" for color in COLORS]})})
    made.check_rows(TASKS[task].load(str(path)), "test", chooses)


@pytest.mark.parametrize("task", TASKS)
def test_good_rows_pass_without_their_pictures(task, processor, tmp_path):
    checked(task, processor, tmp_path, chooses=True)


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("visual_entailment", {"label": "maybe"}, "label 'maybe' is none of contradiction"),
        ("visual_entailment", {"label": None}, "label None is none of contradiction"),
        ("visual_entailment", {"sentence": " "}, "sentence: no words in ' '"),
        ("visual_reasoning", {"label": "maybe"}, "label 'maybe' is none of false, true"),
        ("visual_reasoning", {"sentence": None}, "sentence: None is no text"),
        ("image_text_classification", {"label": "pinkish"}, "label 'pinkish' is none of blueish"),
        ("question_answering", {"question": ""}, "question: no words in ''"),
        ("question_answering", {"answer": None}, "answers: none"),
        ("question_answering", {"answer": []}, "answers: none"),
        ("text_assignment", {"caption": []}, "captions: no caption with words"),
        ("grounding", {"text": "?"}, "expression: no words in '\\?'"),
        ("grounding", {"bbox": None}, "box: None is no box"),
        ("grounding", {"bbox": [1, 2, 3]}, "box: .* is no box; four numbers are needed"),
        ("grounding", {"bbox": [1, 2, 0, 3]}, "box: .* has no area"),
        ("grounding", {"bbox": [1, 2, 3, -3]}, "box: .* has no area"),
        ("grounding", {"proposals": [[0, 0, 4, 4], [1, 2, 3]]}, "proposals\\[1\\]: .* is no box"),
        ("grounding", {"bbox": [20, 20, 13, 4]}, "box: .* is not inside the image of 32 x 32 pixels"),
        ("grounding", {"proposals": [[0, 0, 4, 40]]}, "proposals\\[0\\]: .* is not inside the image of 32 x 32"),
        ("grounding", {"image": "other.png"}, "no such file: .*other.png"),
    ],
)
def test_a_row_that_cannot_be_measured_is_named_before_training(task, change, message, processor, tmp_path):
    with pytest.raises(ValueError, match=f"test, row 5: {message}"):
        checked(task, processor, tmp_path, change)


@pytest.mark.parametrize("bbox", ["1,2,3,4", None])
def test_a_column_without_boxes_is_named(bbox, processor, tmp_path):
    with pytest.raises(ValueError, match="test, row 0: box: .* is no box"):
        checked("grounding", processor, tmp_path, {"every": True, "bbox": bbox})


@pytest.mark.parametrize("nothing", [None, "", []])
def test_tests_whose_answers_are_all_empty_have_none(nothing, processor, tmp_path):
    """As the tests of evaluation servers come from the Hub."""
    checked("question_answering", processor, tmp_path, {"every": True, "answer": nothing})
    with pytest.raises(ValueError, match="test has no answers to compare with"):
        checked("question_answering", processor, tmp_path, {"every": True, "answer": nothing}, chooses=True)


@pytest.mark.parametrize("columns", [{"question": ["what?"]}, {"question": ["what?"], "answers": [None]}])
def test_training_data_without_answers_is_named(columns, processor):
    part = datasets.Dataset.from_dict(columns)
    with pytest.raises(ValueError, match="mine has no answers to train on: name their column"):
        TASKS["question_answering"](processor).prepare_training({"mine": part})


def test_text_assignment_needs_three_rows_in_a_batch(processor, tmp_path):
    with pytest.raises(ValueError, match="there are 6 rows in batches of 2 \\(evaluation_batch_size\\)"):
        checked("text_assignment", processor, tmp_path, evaluation_batch_size=2)
    checked("text_assignment", processor, tmp_path, evaluation_batch_size=3)


def test_classes_that_differ_only_in_capitals_are_refused():
    """Labels are read without regard to capitals, so the second class could never be meant."""
    parts = {"train": datasets.Dataset.from_dict({"label": ["red", "Red", "blue"]})}
    with pytest.raises(ValueError, match="the classes 'Red' and 'red' differ only in capitals"):
        ImageTextClassification.classes_of(parts)


def test_one_name_for_two_class_numbers_is_refused():
    from albef_hf.data.labels import class_names

    with pytest.raises(ValueError, match="label_names: 'red' stands there twice; each class needs its own"):
        class_names([0, 1, 2], names=["red", "blue", "red"])


def arguments_of(config):
    return parse_arguments([str(config)], TASK_GROUPS)[1:]


@pytest.mark.parametrize("name", ["a/b", "..", ""])
def test_a_test_has_a_name_that_can_name_a_file(name, model_folder, tmp_path):
    data, _, task = arguments_of(write_config("visual_entailment", tmp_path, model_folder))
    with pytest.raises(ValueError, match="choose a name without /"):
        load_evaluation_rows(TASKS["visual_entailment"], data, task, {}, name)


def test_evaluation_checks_rows_and_folder_before_it_measures(model_folder, tmp_path, monkeypatch):
    config = write_config("grounding", tmp_path, model_folder)
    data, arguments, task = arguments_of(config)
    arguments.output_dir = str(tmp_path / "run.yaml")  # a file

    def measure(*_):
        raise AssertionError("measured, and nowhere to write it")

    monkeypatch.setattr(TASKS["grounding"], "measure", measure)
    with pytest.raises(OSError, match="run.yaml"):
        evaluate_saved(str(model_folder), None, data, arguments, task)
    rows = json.loads((tmp_path / "test.json").read_text())
    for row in rows:
        del row["bbox"]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="test has no boxes to compare with"):
        evaluate_saved(str(model_folder), None, data, arguments, task)


def test_evaluation_may_be_repeated_and_tests_choose_nothing(model_folder, tmp_path, monkeypatch):
    data, arguments, task = arguments_of(write_config("grounding", tmp_path, model_folder))
    arguments.output_dir = str(tmp_path / "again")
    (tmp_path / "again" / "evaluated").mkdir(parents=True)
    seen = []

    def measure(*_):
        raise InterruptedError("measured")

    monkeypatch.setattr(TASKS["grounding"], "check_rows", lambda _, rows, name, chooses: seen.append((name, chooses)))
    monkeypatch.setattr(TASKS["grounding"], "measure", measure)
    with pytest.raises(InterruptedError, match="measured"):
        evaluate_saved(str(model_folder), None, data, arguments, task)
    assert seen == [("test", False)]


def test_a_box_is_compared_with_the_picture_as_it_is_seen(processor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (32, 64)).save(tmp_path / "turned.jpg", exif=exif)
    checked("grounding", processor, tmp_path, {"image": "turned.jpg", "bbox": [40, 0, 24, 32]})
    with pytest.raises(ValueError, match="row 5: box: .* is not inside the image of 64 x 32 pixels"):
        checked("grounding", processor, tmp_path, {"image": "turned.jpg", "bbox": [0, 40, 32, 24]})


def test_a_box_of_one_pixel_is_a_box(processor, tmp_path):
    checked("grounding", processor, tmp_path, {"bbox": [0, 0, 1, 1], "proposals": [[0, 0, 0.5, 0.5]]})


class CountsRows(torch.nn.Linear):
    """Stands for the model of text assignment: notes how many rows a batch has, and finds the first picture."""

    classes = ("first", "second", "neither")

    def forward(self, pixel_values, input_ids, attention_mask, assignment_draws, **_):
        self.seen.append(len(input_ids))
        assert assignment_draws.shape == (len(input_ids), 3)
        labels = torch.zeros(len(input_ids), dtype=torch.int64)
        return SimpleNamespace(logits=torch.eye(3)[labels], labels=labels)


@pytest.mark.parametrize(
    ("rows", "batches"), [(8, [4, 4]), (9, [4, 5]), (10, [4, 6]), (11, [4, 4, 3]), (3, [3]), (5, [5])]
)
def test_text_assignment_measures_every_row_with_others_in_its_batch(rows, batches, processor, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "red.png")
    (tmp_path / "rows.json").write_text(json.dumps([CASES["text_assignment"].row(0, "red") for _ in range(rows)]))
    model = CountsRows(1, 1)
    model.seen = []
    task = TASKS["text_assignment"](processor, TaskSettings(evaluation_batch_size=4))
    result = task.measure(model, task.load(str(tmp_path / "rows.json")), "test")
    assert model.seen == batches and result.samples == rows
