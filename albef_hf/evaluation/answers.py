"""VQA v2 accuracy: an answer scores by how many of ten people gave it, after the official scorer's normalization.

Rules and tables are those of the scorer of the VQA challenge (Goyal et al. 2017, https://arxiv.org/abs/1612.00837; its
formula: Antol et al. 2015), with its mistakes, since figures are compared with it.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

_NUMBERS = "zero one two three four five six seven eight nine ten"
NUMBERS = {word: str(number) for number, word in enumerate(_NUMBERS.split())} | {"none": "0"}
ARTICLES = ("a", "an", "the")
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'

# A word that lacks exactly one of its apostrophes gets it back: "dont", "couldn'tve", "couldnt've".
_APOSTROPHES = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[:position] + word[position + 1 :]: word
    for word in _APOSTROPHES.split()
    for position, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # a mistake of the official table

_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS_DELETED = 32  # the scorer passes re.UNICODE, which is 32, as the greatest number of replacements


def _strip(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(answer: str) -> str:
    """The answer without punctuation.

    A mark is deleted everywhere if it stands beside a space anywhere, or if the answer has a number with a comma;
    otherwise it becomes a space. Periods are deleted unless a digit follows.
    """
    number = _COMMA_IN_NUMBER.search(answer) is not None
    cleaned = answer
    for mark in PUNCTUATION:
        deleted = number or f"{mark} " in answer or f" {mark}" in answer
        cleaned = cleaned.replace(mark, "" if deleted else " ")
    return _PERIOD.sub("", cleaned, count=_PERIODS_DELETED)


def normalize_answer(answer: str) -> str:
    """The official normalization: no punctuation, lower case, digits for number words, no articles, contractions with
    their apostrophes."""
    words = (NUMBERS.get(word, word) for word in _without_punctuation(_strip(answer)).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def answer_accuracy(answer: str, references: Sequence[str]) -> float:
    """The VQA accuracy of the answer to one question, in 0 .. 1.

    The mean over leaving out each person: one third for each of the other people who gave this answer, at most 1. As
    in the official scorer, answers are normalized only where people disagree.

    Args:
        references: the answers of people, one each.

    Raises:
        ValueError: there is no reference.
    """
    if not references:
        raise ValueError("a question needs the answers of people to compare with, got none")
    answer, given = _strip(answer), [_strip(reference) for reference in references]
    if len(set(given)) > 1:
        answer, given = normalize_answer(answer), [normalize_answer(reference) for reference in given]
    same = given.count(answer)
    # Leaving out a person who agrees leaves one vote less.
    scores = [min(1.0, (same - (reference == answer)) / 3) for reference in given]
    return sum(scores) / len(scores)


def type_names(types: Sequence[str | None]) -> list[str]:
    """The types of questions, "unknown" where a data set has none."""
    return ["unknown" if name is None else str(name) for name in types]


def _mean_per_type(scores: Sequence[float], types: Sequence[str | None]) -> dict[str, float]:
    grouped = defaultdict(list)
    for score, type_ in zip(scores, type_names(types), strict=True):
        grouped[type_].append(score)
    return {type_: sum(values) / len(values) for type_, values in sorted(grouped.items())}


def answer_metrics(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    question_types: Sequence[str | None] | None = None,
    answer_types: Sequence[str | None] | None = None,
) -> dict[str, float | dict[str, float]]:
    """VQA accuracy of many questions, as fractions.

    Args:
        predictions: one answer per question.
        references: one list per question: the answers of people, ten in VQA v2.
        question_types, answer_types: one per question, such as "how many" and "number"; None counts as "unknown".

    Returns: `accuracy`, and where types are given `accuracy_per_question_type` and `accuracy_per_answer_type`.

    Raises:
        ValueError: the lists differ in length, are empty, or a question has no reference (names its row).
    """
    lists: Mapping[str, Sequence | None] = {
        "references": references,
        "question_types": question_types,
        "answer_types": answer_types,
    }
    for name, values in lists.items():
        if values is not None and len(values) != len(predictions):
            raise ValueError(f"{len(predictions)} predictions do not fit {len(values)} {name}")
    if not len(predictions):
        raise ValueError("no questions to measure")
    for row, given in enumerate(references):
        if not given:
            raise ValueError(f"question {row} has no reference answers")
    scores = [answer_accuracy(answer, given) for answer, given in zip(predictions, references, strict=True)]
    metrics: dict[str, float | dict[str, float]] = {"accuracy": sum(scores) / len(scores)}
    if question_types is not None:
        metrics["accuracy_per_question_type"] = _mean_per_type(scores, question_types)
    if answer_types is not None:
        metrics["accuracy_per_answer_type"] = _mean_per_type(scores, answer_types)
    return metrics
