"""Data of the downstream tasks: which columns each needs, and any data set brought into them.

The publication's JSON lists are read with `columns` left out; a Hub data set by saying which of its columns is which.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from ..data.sources import BUILT_IN, check_keys, load_columns

VG_WEIGHT = 0.5  # of an answer of Visual Genome (published code); in VQA v2 an answer weighs the share who gave it


@dataclass(frozen=True)
class Task:
    """needed, optional: our column -> its name in the publication's JSON lists; what it holds is said in `TASKS`."""

    name: str
    needed: Mapping[str, str]
    optional: Mapping[str, str]


TASKS = {
    task.name: task
    for task in (
        # captions: one or a list; image_id: equal where pictures are the same, the path where left out.
        Task("retrieval", {"image": "image", "captions": "caption"}, {"image_id": "image_id"}),
        # answers: one (Visual Genome) or those of ten people (VQA v2).
        Task(
            "question_answering",
            {"image": "image", "question": "question"},
            {
                "answers": "answer",
                "question_id": "question_id",
                "question_type": "question_type",
                "answer_type": "answer_type",
                "source": "dataset",
            },
        ),
        # images: a list of two; a Hub data set may have them in two columns: {"images": ["left", "right"]}.
        # identifier: what a server calls the row.
        Task(
            "visual_reasoning",
            {"images": "images", "sentence": "sentence", "label": "label"},
            {"identifier": "identifier"},
        ),
        # image: the premise; sentence: the hypothesis.
        Task(
            "visual_entailment",
            {"image": "image", "sentence": "sentence", "label": "label"},
            {"identifier": "identifier"},
        ),
        # box: x, y, width, height in pixels, for evaluation only; proposals: a list of boxes.
        Task(
            "grounding",
            {"image": "image", "expression": "text"},
            {"image_id": "image_id", "box": "bbox", "proposals": "proposals"},
        ),
    )
}

LABELS: Mapping[str, Mapping[Any, int]] = {
    "visual_reasoning": {"false": 0, "true": 1},
    "visual_entailment": {"contradiction": 0, "neutral": 1, "entailment": 2},
}


def label_number(task: str, value: Any) -> int:
    """A label as people write it ("True", "entailment", a boolean, a number) -> the number of its class.

    Raises:
        ValueError: there is no such class; names those there are.
    """
    names = LABELS[task]
    if isinstance(value, int) and 0 <= value < len(names):  # booleans are integers too
        return int(value)
    text = str(value).strip().lower()
    if text not in names:
        raise ValueError(f"label {value!r} is none of {', '.join(names)}")
    return names[text]


def load_task(
    task: str,
    dataset: str,
    *,
    columns: Mapping[str, str | Sequence[str]] | None = None,
    split: str = "train",
    revision: str | None = None,
    image_root: str | Path | None = None,
    image_suffix: str = "",
    options: dict[str, Any] | None = None,
) -> datasets.Dataset:
    """The rows of a task, pictures undecoded.

    Args:
        task: `retrieval`, `question_answering`, `visual_reasoning`, `visual_entailment` or `grounding`.
        dataset, split, revision, options: as in `load_corpus`.
        columns: our column -> its name in the data set; the publication's names where left out, optional ones where
            they are there.
        image_root: folder that relative picture paths start from; that of the list where left out.
        image_suffix: what to append to a path: the publication's lists of SNLI-VE hold numbers (".jpg").

    Returns: columns named as in `TASKS`.

    Raises:
        ValueError: an unknown task or column, or one that is missing, with the nearest there is.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; there are: {', '.join(TASKS)}")
    described = TASKS[task]
    if dataset in BUILT_IN:  # ours have our names
        described = Task(task, *({name: name for name in names} for names in (described.needed, described.optional)))
    known = {**described.needed, **described.optional}
    given = dict(columns or {})
    check_keys(given, list(known), f"columns of {task}")
    pair = given.get("images")
    wanted = {name: str(given.get(name, default)) for name, default in described.needed.items()}
    if pair is not None and not isinstance(pair, str):
        if len(pair) != 2:
            raise ValueError(f"images: give two columns, or one that holds two, not {list(pair)}")
        del wanted["images"]
        wanted |= {"image_0": pair[0], "image_1": pair[1]}
    optional = {name: default for name, default in described.optional.items() if name not in given}
    wanted |= {name: str(given[name]) for name in described.optional if name in given}
    rows = load_columns(dataset, wanted, optional, split=split, revision=revision, options=options)
    root = Path(image_root) if image_root is not None else Path(dataset).expanduser().parent

    def path(value: Any) -> Any:
        return value if value is None else str(root / f"{value}{image_suffix}")

    for name in ("image", "image_0", "image_1", "images"):
        if name not in rows.column_names:
            continue
        feature = rows.features[name]
        if name == "image" and task in ("retrieval", "grounding") and "image_id" not in rows.column_names:
            # The same path is the same image; of pictures without a path each row is one.
            named = [str(value) for value in rows["image"]] if _is_plain(feature) else range(len(rows))
            rows = rows.add_column("image_id", [f"{dataset}:{value}" for value in named])
        if _is_plain(feature):
            values = [path(value) for value in rows[name]]
        elif isinstance(feature, datasets.List) and _is_plain(feature.feature):
            values = [None if pair is None else [path(value) for value in pair] for pair in rows[name]]
        else:
            continue
        rows = rows.remove_columns(name).add_column(name, values)
    return rows


def _is_plain(feature: Any) -> bool:
    """Paths, or numbers that with the suffix become paths."""
    return isinstance(feature, datasets.Value) and (feature.dtype == "string" or feature.dtype.startswith("int"))


def load_karpathy(path: str | Path, split: str, image_root: str | Path | None = None) -> datasets.Dataset:
    """A split of COCO or Flickr30K from Karpathy's `dataset_coco.json` or `dataset_flickr30k.json`.

    Args:
        split: `train`, `val` or `test`; `train` takes COCO's `restval` in, as everybody does.
        image_root: folder of the pictures; that of the list where left out.

    Returns: columns `image` (path), `captions` (list), `image_id`.

    Raises:
        ValueError: not such a file, an unknown split, or an image without caption (names its row).
    """
    path = Path(path)
    try:
        images = json.loads(path.read_text(encoding="utf-8"))["images"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not one of Karpathy's lists: {type(error).__name__}: {error}") from error
    splits = {image.get("split") for image in images}
    wanted = {"train", "restval"} if split == "train" else {split}
    if not wanted & splits:
        raise ValueError(f"{path} has no split {split!r}; there are: {', '.join(sorted(map(str, splits)))}")
    root = path.parent if image_root is None else Path(image_root)
    rows: dict[str, list] = {"image": [], "captions": [], "image_id": []}
    for number, image in enumerate(images):
        if image["split"] not in wanted:
            continue
        captions = [sentence["raw"].strip() for sentence in image.get("sentences", ()) if sentence["raw"].strip()]
        if not captions:
            raise ValueError(f"{path}, images[{number}] ({image.get('filename')}): no caption")
        rows["image"].append(str(root / image.get("filepath", "") / image["filename"]))
        rows["captions"].append(captions)
        rows["image_id"].append(str(image.get("cocoid", image["filename"])))
    return datasets.Dataset.from_dict(rows)


# ---------------------------------------------------------------------------------------------------------------------
# Answers
# ---------------------------------------------------------------------------------------------------------------------


def answers_of(row: Mapping[str, Any]) -> list[str]:
    """The answers of a question, which may be given as one, a list, or a list of {"answer": ...}."""
    value = row.get("answers")
    values = [value] if isinstance(value, str) else value or []
    texts = [each["answer"] if isinstance(each, Mapping) else each for each in values]
    return [str(text).strip() for text in texts if text is not None and str(text).strip()]


def weighted_answers(row: Mapping[str, Any]) -> dict[str, float]:
    """Each distinct answer and its weight: the share of people who gave it; 0.5 for Visual Genome (published)."""
    answers = answers_of(row)
    if row.get("source") == "vg":
        return dict.fromkeys(answers[:1], VG_WEIGHT)
    return {answer: count / len(answers) for answer, count in Counter(answers).items()}


def most_frequent_answers(rows: Iterable[Mapping[str, Any]], most: int | None = None, minimum: int = 1) -> list[str]:
    """The answer list of a training set, most frequent first and by the alphabet among equals.

    Args:
        most: how many at most.
        minimum: how many times an answer must have been given.
    """
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(answers_of(row))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [answer for answer, count in ordered if count >= minimum][:most]


def read_answer_list(path: str | Path) -> list[str]:
    """Raises:
    ValueError: not a JSON list of distinct, non-empty strings.
    """
    try:
        answers = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not an answer list: {error}") from error
    if not isinstance(answers, list) or not answers:
        raise ValueError(f"{path}: an answer list is a JSON list of strings")
    seen: set[str] = set()
    for number, answer in enumerate(answers):
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError(f"{path}, answer {number}: {answer!r} is not a word")
        if answer in seen:
            raise ValueError(f"{path}, answer {number}: {answer!r} is there twice")
        seen.add(answer)
    return answers


def answer_coverage(rows: Iterable[Mapping[str, Any]], answer_list: Sequence[str]) -> float:
    """The share of questions that have an answer in the list: no ranking of the list answers more."""
    known = set(answer_list)
    found = [any(answer in known for answer in answers_of(row)) for row in rows]
    if not found:
        raise ValueError("no questions to cover")
    return sum(found) / len(found)
