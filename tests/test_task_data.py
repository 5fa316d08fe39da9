"""Data of the downstream tasks: from published lists and Hub data sets to model arguments; errors name the row."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from data_helpers import first, picture
from PIL import Image
from transformers import BertTokenizerFast

from albef_hf.data.arguments import DataArguments
from albef_hf.processing_albef import AlbefProcessor
from albef_hf.tasks import TASKS, task_named
from albef_hf.tasks.answers import (
    answer_coverage,
    answers_of,
    most_frequent_answers,
    read_answer_list,
    tokenize_answers,
    weighted_answers,
)
from albef_hf.tasks.batches import build_task_data, evaluation_batches, gather_rows, predict_rows, rows_of_rank
from albef_hf.tasks.classification import class_number
from albef_hf.tasks.result import TaskResult, TaskSettings
from albef_hf.tasks.rows import load_karpathy
from albef_hf.tasks.visual_entailment import VisualEntailment
from albef_hf.tasks.visual_reasoning import VisualReasoning

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = SPECIAL + list("abcde") + ["is", "it", "red", "cat", "dog", "two", "the", "what", "left", "right"]


@pytest.fixture(scope="module")
def processor():
    return AlbefProcessor.from_parts(BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}), image_size=32)


ROWS = {
    "retrieval": lambda i: {"image": f"{i}.png", "caption": ["a cat", "the dog"], "image_id": i // 2},
    "question_answering": lambda i: {
        "image": f"{i}.png",
        "question": "What is it?",
        "answer": ["cat"] * 7 + ["two dog"] * 3,
        "question_id": i,
        "dataset": "vqa",
    },
    "visual_reasoning": lambda i: {"images": [f"{i}.png", "0.png"], "sentence": "it is red", "label": str(i % 2 == 0)},
    "visual_entailment": lambda i: {"image": i, "sentence": "a cat", "label": ["neutral", "entailment"][i % 2]},
    "image_text_classification": lambda i: {"image": f"{i}.png", "sentence": "it is red", "label": "ab"[i % 2]},
    "grounding": lambda i: {"image": f"{i}.png", "text": "the left cat", "bbox": [1, 1, 5, 5]},
}
ROWS["text_assignment"] = ROWS["retrieval"]
PAIRS = {"image_ids", "caption_ids", "negative_draws", "assignment_draws"}


@pytest.fixture
def lists(tmp_path):
    """One list a task as the publication has them, over six pictures."""
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(picture(i))
    for task, row in ROWS.items():
        (tmp_path / f"{task}.json").write_text(json.dumps([row(i) for i in range(6)]))
    return tmp_path


def rows_of(lists, task, change=None, **options):
    path = lists / f"{task}.json"
    if change is not None:
        rows = json.loads(path.read_text())
        change(rows)
        path = lists / f"{task}-changed.json"
        path.write_text(json.dumps(rows))
    suffix = ".png" if task == "visual_entailment" else ""
    return TASKS[task].load(str(path), image_suffix=suffix, **options)


def training_batch(task, rows):
    """The first batch of six of a task (an object)."""
    return first(build_task_data(task, {"list": rows}, batch_size=6, seed=0), 1)[0]


def evaluated(task, rows, processor, batch_size=64, **options):
    """All batches of a task (its name) in evaluation."""
    return evaluation_batches(TASKS[task](processor, TaskSettings(evaluation_batch_size=batch_size)), rows, **options)


@pytest.mark.parametrize(
    ("task", "column"),
    [
        ("visual_entailment", "sentence"),
        ("image_text_classification", "sentence"),
        ("visual_reasoning", "sentence"),
        ("question_answering", "question"),
        ("grounding", "text"),
    ],
)
@pytest.mark.parametrize(
    ("value", "kind"), [(3, "int64"), (["a cat"], "lists of string"), ({"en": "a cat"}, "mappings"), (None, "null")]
)
def test_a_column_without_texts_is_refused_by_name_and_type_before_training(lists, task, column, value, kind):
    def change(rows):
        for row in rows:
            row[column] = value

    with pytest.raises(ValueError, match=f"column '{column}' holds {kind}, but one text a row is needed"):
        rows_of(lists, task, change)


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("retrieval", PAIRS),
        ("text_assignment", PAIRS),
        (
            "question_answering",
            {"answer_input_ids", "answer_attention_mask", "answer_weights", "answers_per_question"},
        ),
        ("visual_reasoning", {"labels"}),
        ("visual_entailment", {"labels"}),
        ("grounding", PAIRS),
    ],
)
def test_batches_are_the_arguments_of_the_models(lists, processor, task, names):
    batch = training_batch(TASKS[task](processor), rows_of(lists, task))
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask", "rejected", *names}
    pair = (2,) if task == "visual_reasoning" else ()
    assert batch["pixel_values"].shape == (6, *pair, 3, 32, 32) and batch["rejected"] == []
    if names == PAIRS:
        assert len(batch["image_ids"].unique()) == (6 if task == "grounding" else 3)
    if "labels" in names:
        assert set(batch["labels"].tolist()) == ({0, 1} if task == "visual_reasoning" else {1, 2})
    batches = list(evaluated(task, rows_of(lists, task), processor, batch_size=4))
    assert [len(each["pixel_values"]) for each in batches] == [4, 2] and "rejected" not in batches[0]
    again = next(iter(evaluated(task, rows_of(lists, task), processor, batch_size=4)))
    assert torch.equal(batches[0]["pixel_values"], again["pixel_values"])


def test_answers_are_weighted_and_end_with_a_separator(lists, processor):
    batch = training_batch(TASKS["question_answering"](processor), rows_of(lists, "question_answering"))
    assert batch["answers_per_question"].tolist() == [2] * 6
    assert batch["answer_weights"][:2].tolist() == pytest.approx([0.7, 0.3])
    ids = [WORDS.index(word) for word in ("[CLS]", "cat", "[SEP]", "[PAD]")]
    assert batch["answer_input_ids"][0].tolist() == ids and batch["answer_attention_mask"][0].tolist() == [1, 1, 1, 0]
    sep = AlbefProcessor.from_parts(processor.tokenizer, 32, add_sep_token=True)
    assert torch.equal(tokenize_answers(sep, ["cat"])["input_ids"], torch.tensor([ids[:3]]))  # not two of them
    AlbefProcessor.from_parts(processor.tokenizer, 32)  # the tokenizer is shared: no separator again
    assert weighted_answers({"answers": "red", "source": "vg"}) == {"red": 0.5}
    assert weighted_answers({"answers": [{"answer": "red"}, {"answer": "red"}]}) == {"red": 1.0}


def test_retrieval_trains_on_whole_captions_and_measures_on_30_tokens(lists, processor):
    long = " ".join(["ab"] * 30)  # 30 words of two tokens each, or one where the vocabulary has the word
    rows = rows_of(lists, "retrieval", lambda rows: [row.update(caption=long) for row in rows])
    whole = len(processor.tokenizer(long)["input_ids"])
    task = TASKS["retrieval"](processor)
    cut = next(iter(evaluated("retrieval", rows, processor)))["input_ids"].shape[1]
    assert training_batch(task, rows)["input_ids"].shape[1] == whole > 30 == cut
    fixed = TASKS["retrieval"](processor, TaskSettings(fixed_length=True))
    assert training_batch(fixed, rows)["input_ids"].shape[1] == 30


def test_captions_are_padded_to_the_full_length_where_ranks_must_agree(lists, processor):
    rows = rows_of(lists, "retrieval")
    for fixed, length in ((False, 3), (True, 30)):  # [CLS] and two words
        task = TASKS["retrieval"](processor, TaskSettings(fixed_length=fixed))
        assert training_batch(task, rows)["input_ids"].shape == (6, length)
        assert next(evaluation_batches(task, rows))["input_ids"].shape == (6, 3)


def test_rows_that_could_not_choose_weights_are_refused_before_training(lists, processor):
    questions = rows_of(lists, "question_answering").remove_columns("answers")
    TASKS["question_answering"](processor).check_rows(questions, "test", chooses=False)  # a server has the answers
    with pytest.raises(ValueError, match="validation has no answers to compare with: name their column"):
        TASKS["question_answering"](processor).check_rows(questions, "validation", chooses=True)
    with pytest.raises(ValueError, match="test has no boxes to compare with: name their column"):
        TASKS["grounding"](processor).check_rows(questions, "test", chooses=False)


def test_hub_data_sets_come_by_column_names(processor, tmp_path):
    table = datasets.Dataset.from_dict(
        {
            "left": [Image.new("RGB", (8, 8), "red")] * 3,
            "right": [Image.new("RGB", (8, 8), "blue")] * 3,
            "statement": ["it is red"] * 3,
            "truth": [True, False, True],
        },
        features=datasets.Features(
            {
                "left": datasets.Image(),
                "right": datasets.Image(),
                "statement": datasets.Value("string"),
                "truth": datasets.Value("bool"),
            }
        ),
    )
    table.save_to_disk(tmp_path / "pairs")
    columns = {"images": ["left", "right"], "sentence": "statement", "label": "truth"}
    rows = VisualReasoning.load(str(tmp_path / "pairs"), columns=columns)
    (batch,) = evaluated("visual_reasoning", rows, processor)
    assert batch["labels"].tolist() == [1, 0, 1]
    assert not torch.equal(batch["pixel_values"][:, 0], batch["pixel_values"][:, 1])
    with pytest.raises(ValueError, match="no column 'statment'; did you mean 'statement'"):
        VisualReasoning.load(str(tmp_path / "pairs"), columns=columns | {"sentence": "statment"})
    with pytest.raises(ValueError, match="columns of visual_reasoning: unknown key 'lable'; did you mean 'label'"):
        VisualReasoning.load(str(tmp_path / "pairs"), columns={"lable": "truth"})
    with pytest.raises(ValueError, match="unknown task 'vqa'; there are: retrieval"):
        task_named("vqa")
    with pytest.raises(ValueError, match="images: give two columns, or one that holds two, not .'left'."):
        VisualReasoning.load(str(tmp_path / "pairs"), columns=columns | {"images": ["left"]})
    assert set(TASKS) >= set(ROWS)


def change_field(field, value):
    def change(rows):
        rows[2][field] = value

    return change


BAD = [
    ("retrieval", "caption", [" ?! ", ""], "captions: no caption with words"),
    ("retrieval", "image", "gone.png", "image: no such file: .*gone.png"),
    ("retrieval", "image", None, "image: no image"),
    ("visual_reasoning", "images", ["0.png", "gone.png"], r"images\[1\]: no such file"),
    ("visual_reasoning", "images", ["0.png"], "images: two are needed, there are 1"),
    ("visual_reasoning", "label", "maybe", "label 'maybe' is none of false, true"),
    ("visual_entailment", "sentence", "...", "sentence: no words"),
    ("grounding", "text", None, "expression: None is no text"),
]


@pytest.mark.parametrize(("task", "field", "value", "reason"), BAD)
def test_a_row_that_cannot_be_used_is_counted_in_training_and_named_in_evaluation(
    lists, processor, task, field, value, reason
):
    rows = rows_of(lists, task, change_field(field, value))
    batch = training_batch(TASKS[task](processor), rows)
    assert len(batch["pixel_values"]) == 6  # replaced
    assert {entry["row"] for entry in batch["rejected"]} == {2} and batch["rejected"][0]["source"] == "list"
    with pytest.raises(ValueError, match=f"test set, row 2: {reason}"):
        list(evaluated(task, rows, processor, name="test set"))


def test_predictions_keep_the_order_of_rows_and_ranks_share_them(lists, processor):
    task = VisualEntailment(processor, TaskSettings(evaluation_batch_size=4))
    rows, model = rows_of(lists, "visual_entailment"), torch.nn.Linear(1, 1)
    labels = predict_rows(task, model, rows, "test", lambda batch: batch["labels"].tolist())
    assert labels == [["contradiction", "neutral", "entailment"].index(label) for label in rows["label"]]
    ranks = [SimpleNamespace(process_index=rank, num_processes=3) for rank in range(3)]
    shared = [list(rows_of_rank(7, rank)) for rank in ranks]
    assert shared == [[0, 3, 6], [1, 4], [2, 5]] and list(rows_of_rank(7, None)) == list(range(7))
    assert gather_rows([row for rank in shared for row in rank], list("adgbecf")) == list("abcdefg")


def test_answers_outside_the_list_are_left_out_and_counted(lists, processor):
    rows = rows_of(lists, "question_answering", change_field("answer", ["dog"] * 10))
    task = TASKS["question_answering"](processor)
    task.learnable = {"cat"}
    batch = training_batch(task, rows)
    assert set(batch["answers_per_question"].tolist()) == {1}
    assert batch["answer_weights"].tolist() == pytest.approx([0.7] * 6)
    assert batch["rejected"][0]["reason"] == "answers: none of ['dog'] is in the answer list"
    assert answer_coverage(rows, ["cat"]) == pytest.approx(5 / 6)


def test_the_answer_list_is_the_most_frequent_answers(tmp_path, lists):
    rows = [{"answers": ["b"] * 3 + ["a"] * 3 + ["c"]}, {"answers": "c"}, {"answers": "d"}]
    assert most_frequent_answers(rows) == ["a", "b", "c", "d"]
    assert most_frequent_answers(rows, minimum=2, most=2) == ["a", "b"]
    path = tmp_path / "answers.json"
    path.write_text('["a", "b"]')
    assert read_answer_list(path) == ["a", "b"]
    for text, message in (
        ('["a", "a"]', "answer 1: 'a' occurs twice"),
        ('["a", ""]', "answer 1: ''"),
        ("{}", "JSON list"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_answer_list(path)


def test_the_script_builds_an_answer_list(lists, monkeypatch, capsys):
    path = Path(__file__).parent.parent / "scripts" / "build_answer_list.py"
    spec = importlib.util.spec_from_file_location("build_answer_list", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    source, output = str(lists / "question_answering.json"), lists / "answers.json"
    monkeypatch.setattr("sys.argv", ["x", source, source, "--minimum", "40", "--output", str(output)])
    script.main()
    assert read_answer_list(output) == ["cat"]  # 84 times; "two dog" was given 36 times
    assert "1 answers, which cover 100.00% of questions" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["x", source, "--minimum", "100", "--output", str(output)])
    with pytest.raises(ValueError, match="no answer was given 100 times"):
        script.main()


@pytest.mark.parametrize(
    ("value", "classes", "number"),
    [
        (True, ("False", "True"), 1),
        ("False", ("False", "True"), 0),
        (" true ", ("False", "True"), 1),
        (0, ("False", "True"), 0),
        ("1", ("False", "True"), 1),
        ("Entailment", ("contradiction", "neutral", "entailment"), 2),
        (7, ("5", "7"), 1),
    ],
)
def test_labels_are_read_as_people_write_them(value, classes, number):
    assert class_number(value, classes) == number


@pytest.mark.parametrize("value", [0, 2, "1", 3, "maybe", None, -1, True])
def test_a_number_is_no_class_of_entailment(value):
    with pytest.raises(ValueError, match=f"label {value!r} is none of contradiction, neutral, entailment") as caught:
        class_number(value, ("contradiction", "neutral", "entailment"))
    assert ("label_names" in str(caught.value)) == (str(value).lstrip("-").isdigit())


SNLI = ["entailment", "neutral", "contradiction"]  # as data sets of SNLI number them


@pytest.mark.parametrize("names", ["column", "option"])
def test_class_numbers_mean_their_names(tmp_path, processor, names):
    table = {"image": ["0.png"] * 4, "sentence": ["it is red"] * 4, "label": [0, 1, 2, -1]}
    rows = datasets.Dataset.from_dict(table)
    if names == "column":
        rows = rows.cast_column("label", datasets.ClassLabel(names=SNLI))
    rows.save_to_disk(tmp_path / "rows")
    (tmp_path / "0.png").write_bytes(picture(0))
    options = {"label_names": SNLI} if names == "option" else {}
    loaded = VisualEntailment.load(str(tmp_path / "rows"), **options)
    assert loaded["label"][:] == [*SNLI, None]
    task = VisualEntailment(processor)
    assert [task.label(loaded[row]) for row in range(3)] == [2, 1, 0]
    with pytest.raises(ValueError, match="label None is none of"):
        task.label(loaded[3])


def test_class_numbers_without_names_are_refused(tmp_path):
    table = {"image": ["0.png"], "sentence": ["it is red"], "label": [0]}
    datasets.Dataset.from_dict(table).save_to_disk(tmp_path / "rows")
    path = str(tmp_path / "rows")
    with pytest.raises(ValueError, match=r"numbers without names, .*contradiction, neutral, entailment.*label_names"):
        VisualEntailment.load(path)
    with pytest.raises(ValueError, match="row 0: label 0, but there are 0 class names"):
        VisualEntailment.load(path, label_names=[])
    with pytest.raises(ValueError, match="label_names: retrieval has no labels"):
        TASKS["retrieval"].load(path, columns={"captions": "sentence"}, label_names=SNLI)
    columns = {"images": ["image", "image"]}
    with pytest.raises(ValueError, match="no column"):
        VisualReasoning.load(path, columns={"images": ["image", "none"]})
    assert VisualReasoning.load(path, columns=columns)["label"][:] == [0]


def test_classes_of_ones_own_come_from_the_data(tmp_path, processor):
    kind = TASKS["image_text_classification"]
    (tmp_path / "0.png").write_bytes(picture(0))

    def load(labels):
        rows = [{"image": "0.png", "sentence": "it is red", "label": label} for label in labels]
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        return kind.load(str(tmp_path / "rows.json"))

    task = kind(processor)
    for labels, classes in ((["b", "a", "b"], ["a", "b"]), ([10, 9, 2], ["2", "9", "10"])):
        parts = {"x": load(labels)}
        task.prepare_training(parts)
        assert task.classes == kind.classes_of(parts) == classes
        assert [task.label(row) for row in parts["x"]] == [classes.index(str(label)) for label in labels]
    with pytest.raises(ValueError, match=r"has 1 classes \(a\)"):
        kind.classes_of({"x": load(["a", "a"])})


@pytest.mark.parametrize(
    ("value", "answers"),
    [
        (0, ["0"]),
        (2.0, ["2"]),
        (2.5, ["2.5"]),
        ([0, 3, "two "], ["0", "3", "two"]),
        ([{"answer": 0}, {"answer": "a"}], ["0", "a"]),
        ({"answer": ["a", 0], "answer_id": [1, 2]}, ["a", "0"]),
        ('["a", "b"]', ["a", "b"]),
        ('[{"answer": "a"}]', ["a"]),
        ("[sic] a", ["[sic] a"]),
        (None, []),
        ([], []),
        ("", []),
        ([None, " "], []),
        (False, ["False"]),
    ],
)
def test_answers_of_every_form(value, answers):
    assert answers_of({"answers": value}) == answers


def test_an_example_marks_the_best_answer_only(lists, processor):
    task, row = TASKS["question_answering"](processor), rows_of(lists, "question_answering")[0]
    ranked = [("cat", 0.6), ("two dog", 0.3), ("red", 0.1)]
    result = TaskResult("test", 1, {}, predictions=[{"question_id": 0, "answer": "cat", "ranked": ranked}])
    lines = task.example(result, 0, row).lines
    assert lines == [("cat (60%)", True), ("two dog (30%)", None), ("red (10%)", None), ("people: cat, two dog", None)]
    result.predictions[0]["ranked"] = ranked[::-1]
    assert task.example(result, 0, row).lines[0] == ("red (10%)", False)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"text": "a"}, "a mapping with the keys 'text', but not 'answer'"),
        ([{"text": "a"}], "a mapping with the keys 'text', but not 'answer'"),
        ([["a"]], "list .* is no answer"),
    ],
)
def test_what_is_no_answer_is_refused(value, reason):
    with pytest.raises(ValueError, match=reason):
        answers_of({"answers": value})


def test_the_answer_zero_is_trained_and_measured(lists, processor):
    rows = rows_of(lists, "question_answering", lambda rows: [row.update(answer=0) for row in rows])
    batch = training_batch(TASKS["question_answering"](processor), rows)
    assert batch["rejected"] == [] and batch["answers_per_question"].tolist() == [1] * 6
    assert most_frequent_answers(rows) == ["0"] and answer_coverage(rows, ["0"]) == 1


def test_karpathy_splits(tmp_path):
    path = tmp_path / "dataset_coco.json"

    def image(split, number, captions):
        return {
            "split": split,
            "filepath": "val2014",
            "filename": f"{number}.jpg",
            "cocoid": number,
            "sentences": [{"raw": caption} for caption in captions],
        }

    images = [image("train", 1, ["a"]), image("restval", 2, ["b ", "c"]), image("test", 3, [])]
    path.write_text(json.dumps({"images": images}))
    rows = load_karpathy(path, "train", image_root="coco")
    assert rows["image"][:] == ["coco/val2014/1.jpg", "coco/val2014/2.jpg"]
    assert rows["captions"][1] == ["b", "c"] and rows["image_id"][:] == ["1", "2"]
    assert TASKS["retrieval"].load(str(path), image_root="coco")[:] == rows[:]  # told by the name of the list
    with pytest.raises(ValueError, match=r"images\[2\] \(3.jpg\): no caption"):
        load_karpathy(path, "test")
    with pytest.raises(ValueError, match="no split 'dev'; there are: restval, test, train"):
        load_karpathy(path, "dev")
    path.write_text("[]")
    with pytest.raises(ValueError, match="not one of Karpathy's lists"):
        load_karpathy(path, "test")


def test_grounding_sees_the_whole_picture_and_other_tasks_a_crop(processor):
    """A picture with a red edge: only without a crop is the edge always visible."""
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[:, :2] = pixels[:, -2:] = (255, 0, 0)
    image = Image.fromarray(pixels)
    settings = TaskSettings(DataArguments(augmentation_options={"operations": 0}))
    edges = {}
    for name in ("grounding", "retrieval"):
        task = TASKS[name](processor, settings)
        crops = [task.pixels(image, np.random.default_rng(seed), training=True) for seed in range(20)]
        edges[name] = [bool((crop[0, 16, [0, -1]] > 1).all()) for crop in crops]
    assert all(edges["grounding"]) and not all(edges["retrieval"])
    whole = [task.pixels(image, np.random.default_rng(seed), training=False) for seed in (0, 1)]
    assert torch.equal(*whole)
