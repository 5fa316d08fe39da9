"""Predictions as files, in the form in which each task's server or scorer takes them."""

import csv
import json
from pathlib import Path

from .result import TaskResult


def write_predictions(task: str, result: TaskResult, folder: Path) -> list[Path]:
    """Write what a model said.

    - question answering: NAME.json, the list of {"question_id", "answer"} that the VQA server takes;
    - visual reasoning: NAME.csv, lines "identifier,True" without a head, as the NLVR2 scorer reads them;
    - visual entailment and grounding: NAME.jsonl, one object a row;
    - retrieval: NAME.json with the first candidates of each query, their scores and the ranks of the right ones.

    And NAME.details.jsonl with probabilities, where there are any.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []

    def write(suffix: str, text: str) -> None:
        path = folder / f"{result.name}{suffix}"
        path.write_text(text, encoding="utf-8")
        written.append(path)

    lines = "".join(json.dumps(row) + "\n" for row in result.predictions)
    if result.retrieval is not None:
        write(".json", result.retrieval.to_json())
    elif task == "question_answering":
        kept = [{"question_id": row["question_id"], "answer": row["answer"]} for row in result.predictions]
        write(".json", json.dumps(kept) + "\n")
        write(".details.jsonl", lines)
    elif task == "visual_reasoning":
        path = folder / f"{result.name}.csv"
        with path.open("w", newline="", encoding="utf-8") as handle:
            csv.writer(handle, lineterminator="\n").writerows(
                (row["identifier"], row["prediction"]) for row in result.predictions
            )
        written.append(path)
        write(".details.jsonl", lines)
    elif result.predictions:
        write(".jsonl", lines)
    return written
