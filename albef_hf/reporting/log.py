"""The log of a run: JSON lines, written during training, and read by curves, report and card."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.lines import append_lines, read_lines, write_lines


def put_evaluation(path: Path, row: dict[str, Any]) -> None:
    """Add the row of an evaluation to a log, in place of one of the same metrics and data after the same step."""

    def same(other: dict[str, Any]) -> bool:
        alike = all(other.get(key) == row[key] for key in ("kind", "step", "name"))
        return alike and other["metrics"].keys() == row["metrics"].keys()

    write_lines(path, [other for other in read_lines(path) if not same(other)] + [row])


class LogWriter:
    """Writes a log of JSON lines. A resumed run first drops the rows after the step that it resumes from.

    It also drops the warnings of that step with `again`: what failed is now made again.

    Args:
        path: of the log.
        step: the step that the run starts from; 0 for a new log.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        rows = [row for row in read_lines(path) if row.get("step", 0) <= step] if step else []
        self.kept = [row for row in rows if not (row.get("again") and row["step"] == step)]
        write_lines(path, self.kept)

    def has(self, kind: str, step: int) -> bool:
        """Whether the log held a row of this kind and step when the run started."""
        return any(row.get("kind") == kind and row.get("step") == step for row in self.kept)

    def write(self, row: dict[str, Any]) -> None:
        append_lines(self.path, [row])


@dataclass
class RunLog:
    """The rows of log.jsonl by their kind.

    Args:
        run: the description of the run, written at its last start; empty if there is none.
        train: rows of training, by ascending step.
        evaluations: rows of evaluations, in the order of the run.
        warnings: rows of warnings, before the first step or during the run.
    """

    run: dict[str, Any] = field(default_factory=dict)
    train: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)

    def loss_names(self) -> list[str]:
        """`loss`, and then every `loss_*` of the training rows, in the order of their appearance."""
        names = dict.fromkeys(key for row in self.train for key in row if key == "loss" or key.startswith("loss_"))
        return sorted(names, key=lambda name: name != "loss")

    def chance(self, name: str) -> float | None:
        """The value of a loss for a model that knows nothing; None if unknown. For the total, the sum of its parts."""
        levels = self.run.get("chance", {})
        if name == "loss" and name not in levels:
            parts = [part for part in self.loss_names() if part != "loss"]
            known = len(parts) > 1 and all(part in levels for part in parts)
            return sum(levels[part] for part in parts) if known else None
        return levels.get(name)

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a key of the training rows, (n,) each, where the value is a finite number."""
        points = [(row["step"], row[name]) for row in self.train if _is_number(row.get(name))]
        return np.array([step for step, _ in points]), np.array([value for _, value in points], dtype=float)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_log(path: Path | str) -> RunLog:
    """Read a log of JSON lines.

    Where a run was resumed from an earlier step, the rows of the resumed run replace those after that step. A last
    line that was cut off is left out.

    Raises:
        ValueError: a line before the last is not JSON; names the file and the line.
    """
    if not Path(path).exists():
        raise FileNotFoundError(path)
    log = RunLog()
    for row in read_lines(Path(path)):
        kind = row.get("kind")
        if kind == "run":
            log.run = row
        elif kind == "train":
            if log.train and log.train[-1]["step"] >= row["step"]:  # the run was resumed from an earlier step
                log.train = [each for each in log.train if each["step"] < row["step"]]
                log.evaluations = [each for each in log.evaluations if each["step"] < row["step"]]
            log.train.append(row)
        elif kind == "evaluation":
            log.evaluations.append(row)
        elif kind == "warning":
            log.warnings.append(row)
    for row in log.evaluations:
        row.setdefault("chance", _saved_chance(Path(path).parent, row))
    return log


def _saved_chance(folder: Path, row: dict[str, Any]) -> dict[str, float]:
    """Chance levels of an evaluation whose row does not have them, from the result saved in the run folder."""
    saved = folder / "evaluations" / f"step-{row['step']:08d}.json"
    result = json.loads(saved.read_text(encoding="utf-8")) if saved.exists() else {}
    return result.get("chance", {}) if result.get("name") == row.get("name") else {}
