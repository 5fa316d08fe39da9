"""VQA v2 accuracy: an answer counts by how many of ten people gave it, after the official scorer's clean-up.

Rules and tables are those of the scorer of the VQA challenge (Goyal et al. 2017, https://arxiv.org/abs/1612.00837; its
formula: Antol et al. 2015), its slips included, since figures are compared with it.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

_NUMBERS = "zero one two three four five six seven eight nine ten"
NUMBERS = {word: str(number) for number, word in enumerate(_NUMBERS.split())} | {"none": "0"}
ARTICLES = ("a", "an", "the")
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'

# A word that misses exactly one of its apostrophes gets it back: "dont", "couldn'tve", "couldnt've".
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
    word[:place] + word[place + 1 :]: word
    for word in _APOSTROPHES.split()
    for place, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # a slip of the official table

_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS_DELETED = 32  # the scorer hands a flag to the argument that limits how many


def _strip(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(answer: str) -> str:
    """A mark goes where it stands beside a space anywhere, or the answer has a number with a comma; else it becomes a
    space. Periods go unless a digit follows."""
    number = _COMMA_IN_NUMBER.search(answer) is not None
    cleaned = answer
    for mark in PUNCTUATION:
        deleted = number or f"{mark} " in answer or f" {mark}" in answer
        cleaned = cleaned.replace(mark, "" if deleted else " ")
    return _PERIOD.sub("", cleaned, count=_PERIODS_DELETED)


def normalise_answer(answer: str) -> str:
    """The official clean-up: punctuation, lower case, number words to digits, no articles, apostrophes put back."""
    words = (NUMBERS.get(word, word) for word in _without_punctuation(_strip(answer)).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def answer_accuracy(answer: str, references: Sequence[str]) -> float:
    """Of one question, in 0 .. 1: for each person left out, a third of a point for each of the others who gave this
    answer, one at most; the mean over persons. Answers are cleaned up only where people disagree, as officially.

    Raises:
        ValueError: no reference.
    """
    if not references:
        raise ValueError("a question needs the answers of people to compare with, got none")
    answer, given = _strip(answer), [_strip(reference) for reference in references]
    if len(set(given)) > 1:
        answer, given = normalise_answer(answer), [normalise_answer(reference) for reference in given]
    same = given.count(answer)
    # Leaving out one who agrees leaves one vote less.
    scores = [min(1.0, (same - (reference == answer)) / 3) for reference in given]
    return sum(scores) / len(scores)


def _means(scores: Sequence[float], kinds: Sequence[str]) -> dict[str, float]:
    grouped = defaultdict(list)
    for score, kind in zip(scores, kinds, strict=True):
        grouped[kind].append(score)
    return {kind: sum(values) / len(values) for kind, values in sorted(grouped.items())}


def answer_metrics(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    question_types: Sequence[str] | None = None,
    answer_types: Sequence[str] | None = None,
) -> dict[str, float | dict[str, float]]:
    """VQA accuracy as fractions.

    Args:
        predictions: one answer a question.
        references: the answers of people (ten in VQA v2), one list a question.
        question_types, answer_types: such as "how many" and "number", one a question.

    Returns: `accuracy`, and where types were given `accuracy_per_question_type`, `accuracy_per_answer_type`.

    Raises:
        ValueError: numbers that differ, or a question without reference (names its row).
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
        metrics["accuracy_per_question_type"] = _means(scores, question_types)
    if answer_types is not None:
        metrics["accuracy_per_answer_type"] = _means(scores, answer_types)
    return metrics
