"""Visual question answering: a question about a picture, answered from a list of answers (VQA v2; paper section 5)."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from ..data.fields import parse_json
from ..data.images import BadImage, decode_image
from ..evaluation.answers import answer_accuracy, answer_metrics
from ..evaluation.classification import majority
from ..modeling_albef_question_answering import AlbefForQuestionAnswering
from ..processing_albef import AlbefProcessor
from ..reporting.html import Example, table_section
from .batches import predict_rows
from .result import TaskResult, TaskSettings
from .task import Task, write_json_lines

ANSWER_FILE = "answer_list.json"  # beside a saved model
ANSWERS_KEPT = 5  # best answers to each question in the predictions
QUESTION_TOKENS = 25  # longer questions are cut in training (released code)
_COLUMN = "columns: {answers: ...}"
VG_WEIGHT = 0.5  # weight of an answer of Visual Genome (released code); in VQA v2 it is the share who gave it


class QuestionAnswering(Task):
    """Training teaches weighted answers token by token; evaluation ranks a list of answers.

    Columns: `question`; `answers`, one (Visual Genome) or those of ten people (VQA v2); `question_id`, for the server;
    `question_type` and `answer_type`, for tables; `source`, where "vg" stands for Visual Genome.

    Attributes:
        answers: the list to rank in evaluation. `prepare_training` and `read_saved` set it.
        learnable: answers to train on; a question without any of them cannot be used. None: all answers.
    """

    name = "question_answering"
    model_class = AlbefForQuestionAnswering
    needed = {"image": "image", "question": "question"}
    text_columns = ("question",)
    optional = {
        "answers": "answer",
        "question_id": "question_id",
        "question_type": "question_type",
        "answer_type": "answer_type",
        "source": "dataset",
    }
    description = (
        f"Answers questions about pictures, in its own words or by ranking a list of answers (`{ANSWER_FILE}`)."
    )
    pipeline_tag = "visual-question-answering"
    usage = (
        'inputs = processor(images=picture, text="what colour is it?")',
        "print(processor.tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True))",
    )

    def __init__(self, processor: AlbefProcessor, settings: TaskSettings | None = None) -> None:
        super().__init__(processor, settings)
        self.answers: list[str] = []
        self.learnable: set[str] | None = None

    def check_rows(self, rows: datasets.Dataset, name: str, chooses: bool) -> None:
        """Check that rows that choose the weights have answers. Tests may have none, and are only predicted.

        Raises:
            ValueError: they have none, or one row has none where others have some; names the row.
        """
        answered = has_answers(rows)
        if chooses and not answered:
            raise ValueError(f"{name} has no answers to compare with: name their column by {_COLUMN}")
        super().check_rows(rows if answered else rows.select_columns(["question"]), name, chooses)

    def check_row(self, row: Mapping[str, Any]) -> None:
        """See `Task.check_row`."""
        super().check_row(row)
        if "answers" in row and not answers_of(row):
            raise BadImage("answers: none")

    def prepare(self, row: Mapping[str, Any], generator: np.random.Generator, training: bool) -> dict[str, Any]:
        """The question, its picture, and in training its answers with their weights."""
        sample = {"pixel_values": self.pixels(row["image"], generator, training), "text": self.text(row, "question")}
        if not training:
            return sample
        answers = weighted_answers(row)
        if not answers:
            raise BadImage("answers: none")
        if self.learnable is not None:
            given, answers = answers, {each: weight for each, weight in answers.items() if each in self.learnable}
            if not answers:
                raise BadImage(f"answers: none of {list(given)} is in the answer list")
        return sample | {"answers": answers}

    def tokenize(self, texts: Sequence[str], training: bool) -> Mapping[str, torch.Tensor]:
        """`input_ids` and `attention_mask` (questions, tokens)."""
        return self.processor.tokenizer(
            [self.processor.clean_question(text, train=training) for text in texts],
            padding="longest",
            truncation=True,
            max_length=QUESTION_TOKENS if training else self.max_tokens,
            return_tensors="pt",
            return_token_type_ids=False,
        )

    def collate(self, samples: Sequence[Mapping[str, Any]], training: bool) -> dict[str, torch.Tensor]:
        """In training, adds the answers to all questions, one after the other: `answer_input_ids` and
        `answer_attention_mask` (answers, tokens), `answer_weights` (answers,), `answers_per_question` (samples,)."""
        batch = super().collate(samples, training)
        if training:
            tokens = tokenize_answers(self.processor, [answer for sample in samples for answer in sample["answers"]])
            weights = [weight for sample in samples for weight in sample["answers"].values()]
            batch |= {f"answer_{name}": tensor for name, tensor in tokens.items()}
            batch["answer_weights"] = torch.tensor(weights)
            batch["answers_per_question"] = torch.tensor([len(sample["answers"]) for sample in samples])
        return batch

    def prepare_training(self, parts: Mapping[str, datasets.Dataset]) -> None:
        """Set `answers`: those of the answer list, or all in the training data.

        Raises:
            ValueError: a part has no answers.
        """
        for name, part in parts.items():
            if not has_answers(part):
                raise ValueError(f"{name} has no answers to train on: name their column by {_COLUMN}")
        if self.settings.answer_list is not None:
            self.answers = read_answer_list(self.settings.answer_list)
        else:
            self.answers = most_frequent_answers(
                row for part in parts.values() for row in part.select_columns(["answers"])
            )

    def saved_files(self) -> dict[str, str]:
        """The answer list."""
        return {ANSWER_FILE: json.dumps(self.answers, ensure_ascii=False)} if self.answers else {}

    def read_saved(self, model_path: str) -> None:
        """Set `answers`: those saved with the model, unless the settings name a list.

        Raises:
            ValueError: there is neither.
        """
        beside = Path(model_path) / ANSWER_FILE
        if self.settings.answer_list is None and not beside.is_file():
            raise ValueError(f"question answering ranks a list of answers: set answer_list, there is no {beside}")
        self.answers = read_answer_list(self.settings.answer_list or beside)

    def measure(self, model: AlbefForQuestionAnswering, rows: datasets.Dataset, name: str) -> TaskResult:
        """VQA accuracy of the best-ranked answers; predictions alone where the rows have no answers.

        Raises:
            ValueError: there is no answer list.
        """
        if not self.answers:
            raise ValueError("question answering ranks a list of answers: set answer_list")
        tokens, device = tokenize_answers(self.processor, self.answers), next(model.parameters()).device
        candidates = {key: ids.to(device) for key, ids in tokens.items()}

        def predict(batch: dict[str, torch.Tensor]) -> list[list[tuple[str, float]]]:
            ranking = model.rank_answers(
                batch["input_ids"],
                batch["pixel_values"],
                batch["attention_mask"],
                candidate_input_ids=candidates["input_ids"],
                candidate_attention_mask=candidates["attention_mask"],
                k=self.settings.ranked_answers,
            )
            assert ranking.answer_ids is not None and ranking.probabilities is not None
            best = ranking.answer_ids[:, :ANSWERS_KEPT].tolist()
            probabilities = ranking.probabilities[:, :ANSWERS_KEPT].tolist()
            return [
                [(self.answers[number], probability) for number, probability in zip(*row, strict=True)]
                for row in zip(best, probabilities, strict=True)
            ]

        ranked = predict_rows(self, model, rows, name, predict)
        identifiers = rows["question_id"] if "question_id" in rows.column_names else range(len(rows))
        predictions = [
            {"question_id": identifier, "answer": row[0][0], "ranked": row}
            for identifier, row in zip(identifiers, ranked, strict=True)
        ]
        result = TaskResult(name, len(rows), {}, predictions=predictions)
        if has_answers(rows):
            _compare(result, rows)
        return result

    def write_predictions(self, result: TaskResult, folder: Path) -> None:
        """NAME.json, the list of {"question_id", "answer"} that the VQA server takes; NAME.details.jsonl with the best
        answers and their probabilities."""
        kept = [{key: row[key] for key in ("question_id", "answer")} for row in result.predictions]
        (folder / f"{result.name}.json").write_text(json.dumps(kept) + "\n", encoding="utf-8")
        write_json_lines(folder / f"{result.name}.details.jsonl", result.predictions)

    def example(self, result: TaskResult, row: int, data: Mapping[str, Any]) -> Example:
        """A question with the three best answers, and the answers that people gave."""
        references = answers_of(data)
        lines: list[tuple[str, bool | None]] = []
        for number, (answer, probability) in enumerate(result.predictions[row]["ranked"][:3]):
            right = answer in references if references and number == 0 else None
            lines.append((f"{answer} ({probability:.0%})", right))
        if references:
            lines.append((f"people: {', '.join(dict.fromkeys(references))}", None))
        return Example([decode_image(data["image"])], data["question"], lines)

    def tables(self, result: TaskResult) -> list[str]:
        """Accuracy by type of question, and by type of answer if that is different."""
        by_question, by_answer = (result.details.get(f"accuracy_per_{each}_type") for each in ("question", "answer"))
        sections = []
        for words, accuracies in (("question", by_question), ("answer", by_answer)):
            if not accuracies or (words == "answer" and accuracies == by_question):
                continue
            lines = [[name, f"{value:.1%}"] for name, value in sorted(accuracies.items(), key=lambda item: -item[1])]
            title = f"Accuracy by type of {words}: {result.name}"
            sections.append(table_section(title, "The types are those of the data set.", ["type", "accuracy"], lines))
        return sections


def _compare(result: TaskResult, rows: datasets.Dataset) -> None:
    """Fill in metrics, and as baselines the accuracy of the most frequent answers."""
    given = [row["answer"] for row in result.predictions]
    references = [answers_of(row) for row in rows.select_columns(["answers"])]
    types = {
        f"{column}s": list(rows[column]) for column in ("question_type", "answer_type") if column in rows.column_names
    }
    figures = answer_metrics(given, references, **types)
    result.metrics = {key: value for key, value in figures.items() if isinstance(value, float)}
    result.details = {key: value for key, value in figures.items() if not isinstance(value, float)}
    result.correct = [answer_accuracy(answer, right) for answer, right in zip(given, references, strict=True)]

    def accuracy(guesses: list[Any]) -> float:
        return float(answer_metrics([str(guess) for guess in guesses], references)["accuracy"])  # type: ignore[arg-type]

    common = [majority(right) for right in references]
    result.baselines["most frequent answer"] = accuracy([majority(common)] * len(rows))
    if "question_types" in types:
        by_type: dict[str, list[Any]] = {}
        for question_type, answer in zip(types["question_types"], common, strict=True):
            by_type.setdefault(question_type, []).append(answer)
        guesses = [majority(by_type[question_type]) for question_type in types["question_types"]]
        result.baselines["most frequent answer of a question's type"] = accuracy(guesses)


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
