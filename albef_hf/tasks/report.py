"""report.html of a task: its metrics beside baselines, then the sections of the task."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets

from ..reporting.html import table_section
from ..reporting.report import write_report
from .result import TaskResult
from .task import Task


def write_task_report(
    folder: Path,
    task: Task,
    model: Any,
    results: Mapping[str, Mapping[str, TaskResult]],
    rows: Mapping[str, datasets.Dataset],
) -> Path:
    """Write report.html into a run folder.

    Args:
        model: with the chosen weights, for heat maps.
        results: of each test, by the name of the weights. Details are those of the first weights.
        rows: of each test.
    """
    shown = {name: next(iter(by_weights.values())) for name, by_weights in results.items()}
    sections = [_figures(results)] if results else []
    sections += task.sections(shown, rows, model)
    first = next((result for result in shown.values() if result.retrieval is not None), None)
    retrieval, data = (None, None) if first is None else (first.retrieval, first.retrieval_data)
    return write_report(folder, retrieval, data, sections)


def _figures(results: Mapping[str, Mapping[str, TaskResult]]) -> str:
    weights = list(dict.fromkeys(which for by_weights in results.values() for which in by_weights))
    lines = []
    for name, by_weights in results.items():
        first = next(iter(by_weights.values()))
        for metric in first.metrics:
            cells = [f"{by_weights[which].metrics[metric]:.1%}" for which in weights]
            lines.append([f"{name}: {metric.replace('_', ' ')}", *cells])
        for baseline, value in first.baselines.items():
            lines.append([f"{name}, no model: {baseline}", *[f"{value:.1%}"] * len(weights)])
    heads = ["", *(f"{which} weights" for which in weights)]
    return table_section(
        "Results",
        "Measured once, after training. The chosen weights are those with the best validation metric; no result here "
        "was used to choose anything.",
        heads,
        lines,
    )
