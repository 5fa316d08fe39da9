"""Metrics of question answering, classification and grounding: hand-made cases, and the modules that load offline."""

import evaluate
import pytest

from albef_hf.evaluation import GROUNDING_ACCURACY, LABEL_ACCURACY, VQA_ACCURACY
from albef_hf.evaluation.answers import CONTRACTIONS, answer_accuracy, answer_metrics, normalize_answer
from albef_hf.evaluation.classification import SNLI_VE_LABELS, classification_metrics, majority


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The  Cat", "cat"),
        ("two", "2"),
        ("None", "0"),
        ("ten dogs and an apple", "10 dogs and apple"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("couldntve", "couldntve"),  # two missing: not in the table
        ("somebody'd", "somebodyd"),
        ("he's", "he's"),
        ("black/white", "black white"),  # a mark between words becomes a space
        ("black/ white", "black white"),  # beside a space it goes
        ("black/white / red", "blackwhite red"),  # ... everywhere in the answer
        ("1,000", "1000"),
        ("1,000-2,000", "10002000"),  # a number with a comma: all marks go
        ("t-shirt", "t shirt"),
        ("10:30", "10:30"),  # a colon is no mark here
        ("3.5", "3.5"),
        ("yes.", "yes"),
        ("U.S.A.", "usa"),
        ("5.", "5"),
        (" new\nyork\t", "new york"),
        ("what?!", "what"),
        ("it's", "it's"),
    ],
)
def test_answers_are_cleaned_up_as_by_the_official_scorer(answer, expected):
    assert normalize_answer(answer) == expected


def test_the_table_of_contractions_misses_one_apostrophe_each():
    assert len(CONTRACTIONS) == 114 and CONTRACTIONS["y'alld've"] == "y'all'd've" and CONTRACTIONS["twas"] == "'twas"
    assert "wed" not in CONTRACTIONS and "shed" not in CONTRACTIONS


def people(**votes: int) -> list[str]:
    return [answer for answer, count in votes.items() for _ in range(count)]


@pytest.mark.parametrize(
    ("votes", "expected"),
    # n of ten agree: leaving out one of them leaves n - 1 votes, leaving out another leaves n.
    [(0, 0), (1, 9 / 3 / 10), (2, (2 * 1 / 3 + 8 * 2 / 3) / 10), (3, (3 * 2 / 3 + 7) / 10), (4, 1), (9, 1)],
)
def test_an_answer_counts_by_how_many_gave_it(votes, expected):
    assert answer_accuracy("cat", people(cat=votes, dog=10 - votes)) == pytest.approx(expected)


def test_a_unanimous_answer_is_compared_as_it_is():
    assert answer_accuracy("2", ["two"] * 10) == 0  # officially: cleaned up only where people disagree
    assert answer_accuracy("2", ["two"] * 9 + ["three"]) == 1
    assert answer_accuracy(" two\n", ["two"] * 10) == 1


def test_accuracy_by_type():
    metrics = answer_metrics(
        ["cat", "2", "no"],
        [people(cat=9, dog=1), people(three=9, two=1), people(no=10)],
        question_types=["what", "how many", "is it"],
        answer_types=["other", "number", "yes/no"],
    )
    assert metrics["accuracy"] == pytest.approx((1 + 0.3 + 1) / 3)
    assert metrics["accuracy_per_question_type"] == pytest.approx({"how many": 0.3, "is it": 1, "what": 1})
    assert metrics["accuracy_per_answer_type"] == pytest.approx({"number": 0.3, "other": 1, "yes/no": 1})
    some = answer_metrics(["cat", "dog"], [["cat"] * 4, ["cat"] * 4], question_types=["what", None])
    assert some["accuracy_per_question_type"] == {"unknown": 0, "what": 1}
    with pytest.raises(ValueError, match="2 predictions do not fit 1 references"):
        answer_metrics(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="question 1 has no reference answers"):
        answer_metrics(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="no questions"):
        answer_metrics([], [])


def test_accuracy_with_confusion():
    metrics = classification_metrics([2, 0, 0, 1], [2, 1, 0, 1], SNLI_VE_LABELS)
    assert metrics["accuracy"] == 0.75
    assert metrics["accuracy_per_class"] == {"contradiction": 1.0, "neutral": 0.5, "entailment": 1.0}
    assert metrics["confusion"] == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert "neutral" not in classification_metrics([0], [0], SNLI_VE_LABELS)["accuracy_per_class"]
    with pytest.raises(ValueError, match="prediction 1 is class 3; there are 3"):
        classification_metrics([0, 3], [0, 1], SNLI_VE_LABELS)
    with pytest.raises(ValueError, match="do not fit"):
        classification_metrics([0, 1], [0], SNLI_VE_LABELS)


def test_the_majority_is_the_most_frequent():
    assert majority(["no", "yes", "yes"]) == "yes" and majority([3, 1]) == 3
    with pytest.raises(ValueError, match="no majority"):
        majority([])


def test_the_metric_modules_load_offline(no_network, tmp_path):
    vqa = evaluate.load(VQA_ACCURACY, cache_dir=str(tmp_path))
    found = vqa.compute(predictions=["2"], references=[people(two=9, three=1)], answer_types=["number"])
    assert found == {"accuracy": 1.0, "accuracy_per_answer_type": {"number": 1.0}}
    label = evaluate.load(LABEL_ACCURACY, cache_dir=str(tmp_path))
    assert label.compute(predictions=[1, 0], references=[1, 1])["confusion"] == [[0, 0], [1, 1]]
    named = label.compute(predictions=[2], references=[2], labels=list(SNLI_VE_LABELS))
    assert named["accuracy_per_class"] == {"entailment": 1.0}
    boxes = evaluate.load(GROUNDING_ACCURACY, cache_dir=str(tmp_path))
    found = boxes.compute(predictions=[[0, 0, 10, 8], [0, 0, 1, 1]], references=[[0, 0, 10, 10], [5, 5, 1, 1]])
    assert found == {"accuracy": 0.5, "mean_intersection_over_union": pytest.approx(0.4)}
