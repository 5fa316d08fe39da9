"""Visual question answering: a question about a picture, answered from a list of answers (VQA v2; paper section 5)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from ..data.images import BadImage, decode_image
from ..evaluation.answers import answer_accuracy, answer_metrics, type_names
from ..evaluation.classification import majority
from ..modeling_albef_question_answering import AlbefForQuestionAnswering
from ..processing_albef import AlbefProcessor
from ..reporting.html import Example, table_section
from .answers import (
    answers_of,
    has_answers,
    most_frequent_answers,
    read_answer_list,
    tokenize_answers,
    weighted_answers,
)
from .batches import predict_rows
from .result import TaskResult, TaskSettings
from .task import Task, write_json_lines

ANSWER_FILE = "answer_list.json"  # beside a saved model
ANSWERS_KEPT = 5  # best answers to each question in the predictions
QUESTION_TOKENS = 25  # longer questions are cut in training (released code)
NAME_THEM = "name their column by columns: {answers: ...}"


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
            raise ValueError(f"{name} has no answers to compare with: {NAME_THEM}")
        super().check_rows(rows if answered else rows.select_columns(["question"]), name, chooses)

    def check_row(self, row: Mapping[str, Any]) -> None:
        """See `Task.check_row`."""
        super().check_row(row)
        if "answers" in row and not answers_of(row):
            raise BadImage("answers: none")

    def prepare(self, row: Mapping[str, Any], generator: np.random.Generator, training: bool) -> dict[str, Any]:
        """The question, its picture, and in training its answers with their weights."""
        question = self.text(row, "question")
        sample = {"pixel_values": self.pixels(row["image"], generator, training), "text": question}
        if not training:
            return sample
        answers = weighted_answers(row)
        if not answers:
            raise BadImage("answers: none")
        if self.learnable is not None:
            known = {answer: weight for answer, weight in answers.items() if answer in self.learnable}
            if not known:
                raise BadImage(f"answers: none of {list(answers)} is in the answer list")
            answers = known
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
                raise ValueError(f"{name} has no answers to train on: {NAME_THEM}")
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
        device = next(model.parameters()).device
        candidates = {key: ids.to(device) for key, ids in tokenize_answers(self.processor, self.answers).items()}

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
        f"{column}s": type_names(rows[column])
        for column in ("question_type", "answer_type")
        if column in rows.column_names
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
