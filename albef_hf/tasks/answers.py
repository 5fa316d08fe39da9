"""Answers of visual question answering: reading them from rows, their weights, and lists of them."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch

from ..data.fields import parse_json
from ..data.images import BadImage
from ..processing_albef import AlbefProcessor

VG_WEIGHT = 0.5  # weight of an answer of Visual Genome (released code); in VQA v2 it is the share who gave it


def tokenize_answers(processor: AlbefProcessor, answers: Sequence[str]) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` (answers, tokens): [CLS], the answer, [SEP], then padding."""
    tokenizer = processor.tokenizer
    rows = tokenizer(list(answers), add_special_tokens=False, return_token_type_ids=False)["input_ids"]
    rows = [[tokenizer.cls_token_id, *row, tokenizer.sep_token_id] for row in rows]
    longest = max(len(row) for row in rows)
    ids = [row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def answers_of(row: Mapping[str, Any]) -> list[str]:
    """The answers of a question, which may be given as one, a list, a list of {"answer": ...}, {"answer": a list}, or
    as the JSON of these. Numbers are answers too, 0 among them.

    Raises:
        BadImage: an answer is neither a text nor a number.
    """
    value = row.get("answers")
    value = parse_json(value) if isinstance(value, str) else value
    value = _answer(value) if isinstance(value, Mapping) else value
    values = value if isinstance(value, list | tuple) else [value]
    texts = [_answer_text(_answer(each) if isinstance(each, Mapping) else each) for each in values]
    return [text for text in texts if text]


def has_answers(rows: datasets.Dataset) -> bool:
    """Whether any row has an answer. The tests of evaluation servers have none, or a column of nothing."""
    return "answers" in rows.column_names and any(value not in (None, "", []) for value in rows["answers"])


def _answer(value: Mapping[str, Any]) -> Any:
    """What a mapping holds under `answer`: an answer, or a list of them."""
    if "answer" not in value:
        raise BadImage(f"answers: a mapping with the keys {', '.join(map(repr, value))}, but not 'answer'")
    return value["answer"]


def _answer_text(value: Any) -> str:
    """An answer as a text. A number is written as people say it: 2, not 2.0."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float):
        raise BadImage(f"answers: {type(value).__name__} {str(value)[:80]!r} is no answer")
    return str(value).strip()


def weighted_answers(row: Mapping[str, Any]) -> dict[str, float]:
    """Distinct answers and their weights: the share of people who gave it; 0.5 for Visual Genome (published)."""
    answers = answers_of(row)
    if row.get("source") == "vg":
        return dict.fromkeys(answers[:1], VG_WEIGHT)
    return {answer: count / len(answers) for answer, count in Counter(answers).items()}


def most_frequent_answers(rows: Iterable[Mapping[str, Any]], most: int | None = None, minimum: int = 1) -> list[str]:
    """The answer list of a training set, most frequent first; equally frequent ones in alphabetical order.

    Args:
        most: at most this many answers; None: all.
        minimum: leave out answers that were given fewer times.
    """
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(answers_of(row))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [answer for answer, count in ordered if count >= minimum][:most]


def read_answer_list(path: str | Path) -> list[str]:
    """Read a JSON list of answers.

    Raises:
        ValueError: it is not a list of distinct, non-empty strings.
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
            raise ValueError(f"{path}, answer {number}: {answer!r} is not a non-empty string")
        if answer in seen:
            raise ValueError(f"{path}, answer {number}: {answer!r} occurs twice")
        seen.add(answer)
    return answers


def answer_coverage(rows: Iterable[Mapping[str, Any]], answer_list: Sequence[str]) -> float:
    """The share of questions with at least one answer in the list, which is the most that ranking it can reach.

    Raises:
        ValueError: there are no questions.
    """
    known = set(answer_list)
    covered = [any(answer in known for answer in answers_of(row)) for row in rows]
    if not covered:
        raise ValueError("no questions to cover")
    return sum(covered) / len(covered)
