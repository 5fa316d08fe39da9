"""Data of the downstream tasks: published lists and Hub columns in, model arguments out, errors that name the row."""

import importlib.util
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from data_helpers import first, picture
from PIL import Image
from transformers import BertTokenizerFast

from albef_hf.data.arguments import DataArguments
from albef_hf.processing_albef import AlbefProcessor
from albef_hf.tasks.batches import build_task_data, evaluation_batches, task_augmentation, tokenize_answers
from albef_hf.tasks.rows import (
    TASKS,
    answer_coverage,
    label_number,
    load_karpathy,
    load_task,
    most_frequent_answers,
    read_answer_list,
    weighted_answers,
)

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
    "grounding": lambda i: {"image": f"{i}.png", "text": "the left cat", "bbox": [1, 1, 5, 5]},
}


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
    return load_task(task, str(path), image_suffix=suffix, **options)


def training_batch(task, rows, processor, **options):
    data = build_task_data(task, {"list": rows}, processor, DataArguments(), batch_size=6, seed=0, **options)
    return first(data, 1)[0]


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("retrieval", {"image_ids", "caption_ids", "negative_draws", "assignment_draws"}),
        (
            "question_answering",
            {"answer_input_ids", "answer_attention_mask", "answer_weights", "answers_per_question"},
        ),
        ("visual_reasoning", {"labels"}),
        ("visual_entailment", {"labels"}),
        ("grounding", {"image_ids", "caption_ids", "negative_draws", "assignment_draws"}),
    ],
)
def test_batches_are_the_arguments_of_the_models(lists, processor, task, names):
    batch = training_batch(task, rows_of(lists, task), processor)
    assert set(batch) == {"pixel_values", "input_ids", "attention_mask", "rejected", *names}
    pair = (2,) if task == "visual_reasoning" else ()
    assert batch["pixel_values"].shape == (6, *pair, 3, 32, 32) and batch["rejected"] == []
    if task in ("retrieval", "grounding"):
        assert len(batch["image_ids"].unique()) == (3 if task == "retrieval" else 6)
    if "labels" in names:
        assert set(batch["labels"].tolist()) == ({0, 1} if task == "visual_reasoning" else {1, 2})
    evaluated = list(evaluation_batches(task, rows_of(lists, task), processor, DataArguments(), batch_size=4))
    assert [len(each["pixel_values"]) for each in evaluated] == [4, 2] and "rejected" not in evaluated[0]
    again = next(iter(evaluation_batches(task, rows_of(lists, task), processor, DataArguments(), batch_size=4)))
    assert torch.equal(evaluated[0]["pixel_values"], again["pixel_values"])


def test_answers_are_weighted_and_end_with_a_separator(lists, processor):
    batch = training_batch("question_answering", rows_of(lists, "question_answering"), processor)
    assert batch["answers_per_question"].tolist() == [2] * 6
    assert batch["answer_weights"][:2].tolist() == pytest.approx([0.7, 0.3])
    ids = [WORDS.index(word) for word in ("[CLS]", "cat", "[SEP]", "[PAD]")]
    assert batch["answer_input_ids"][0].tolist() == ids and batch["answer_attention_mask"][0].tolist() == [1, 1, 1, 0]
    sep = AlbefProcessor.from_parts(processor.tokenizer, 32, add_sep_token=True)
    assert torch.equal(tokenize_answers(sep, ["cat"])["input_ids"], torch.tensor([ids[:3]]))  # not two of them
    AlbefProcessor.from_parts(processor.tokenizer, 32)  # the tokenizer is shared: no separator again
    assert weighted_answers({"answers": "red", "source": "vg"}) == {"red": 0.5}
    assert weighted_answers({"answers": [{"answer": "red"}, {"answer": "red"}]}) == {"red": 1.0}


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
    rows = load_task("visual_reasoning", str(tmp_path / "pairs"), columns=columns)
    (batch,) = evaluation_batches("visual_reasoning", rows, processor, DataArguments())
    assert batch["labels"].tolist() == [1, 0, 1]
    assert not torch.equal(batch["pixel_values"][:, 0], batch["pixel_values"][:, 1])
    with pytest.raises(ValueError, match="no column 'statment'; did you mean 'statement'"):
        load_task("visual_reasoning", str(tmp_path / "pairs"), columns=columns | {"sentence": "statment"})
    with pytest.raises(ValueError, match="columns of visual_reasoning: unknown key 'lable'; did you mean 'label'"):
        load_task("visual_reasoning", str(tmp_path / "pairs"), columns={"lable": "truth"})
    with pytest.raises(ValueError, match="unknown task 'vqa'; there are: retrieval"):
        load_task("vqa", str(tmp_path / "pairs"))
    assert set(TASKS) == set(ROWS)


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
    ("grounding", "text", None, "expression: no words in None"),
]


@pytest.mark.parametrize(("task", "field", "value", "reason"), BAD)
def test_a_row_that_cannot_be_used_is_counted_in_training_and_named_in_evaluation(
    lists, processor, task, field, value, reason
):
    rows = rows_of(lists, task, change_field(field, value))
    batch = training_batch(task, rows, processor)
    assert len(batch["pixel_values"]) == 6  # replaced
    assert {entry["row"] for entry in batch["rejected"]} == {2} and batch["rejected"][0]["source"] == "list"
    with pytest.raises(ValueError, match=f"test set, row 2: {reason}"):
        list(evaluation_batches(task, rows, processor, DataArguments(), name="test set"))


def test_answers_outside_the_list_are_left_out_and_counted(lists, processor):
    rows = rows_of(lists, "question_answering", change_field("answer", ["dog"] * 10))
    batch = training_batch("question_answering", rows, processor, answer_list=["cat"])
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
        ('["a", "a"]', "answer 1: 'a' is there twice"),
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
    assert "1 answers, which answer 100.00% of questions" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["x", source, "--minimum", "100", "--output", str(output)])
    with pytest.raises(ValueError, match="no answer was given 100 times"):
        script.main()


def test_labels_are_read_as_people_write_them():
    assert [label_number("visual_reasoning", value) for value in (True, "False", "true", 0)] == [1, 0, 1, 0]
    assert label_number("visual_entailment", "entailment") == label_number("visual_entailment", 2) == 2
    with pytest.raises(ValueError, match="label 3 is none of contradiction, neutral, entailment"):
        label_number("visual_entailment", 3)


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
    with pytest.raises(ValueError, match=r"images\[2\] \(3.jpg\): no caption"):
        load_karpathy(path, "test")
    with pytest.raises(ValueError, match="no split 'dev'; there are: restval, test, train"):
        load_karpathy(path, "dev")
    path.write_text("[]")
    with pytest.raises(ValueError, match="not one of Karpathy's lists"):
        load_karpathy(path, "test")


def test_grounding_sees_the_whole_picture_and_other_tasks_a_crop(processor):
    """A picture whose edge is red: only without a crop is the edge always there."""
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[:, :2] = pixels[:, -2:] = (255, 0, 0)
    image = Image.fromarray(pixels)
    options = {"operations": 0}
    edges = {
        task: [
            bool(
                (
                    task_augmentation(task, processor, **options)(image, np.random.default_rng(seed))[0, 16, [0, -1]]
                    > 1
                ).all()
            )
            for seed in range(20)
        ]
        for task in ("grounding", "retrieval")
    }
    assert all(edges["grounding"]) and not all(edges["retrieval"])
    whole = task_augmentation("retrieval", processor, training=False)
    assert torch.equal(whole(image, np.random.default_rng(0)), whole(image, np.random.default_rng(1)))
