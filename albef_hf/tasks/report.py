"""report.html of a task: figures beside what needs no model, tables, examples with right and wrong, heat maps.

Examples are drawn by a fixed seed, whatever became of them.
"""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import ImageDraw

from ..data.images import decode_image
from ..evaluation.explain import explain, overlay
from ..reporting.html import Example, example_section, table_section
from ..reporting.report import GALLERY_SEED, write_report
from .result import TaskResult
from .rows import answers_of

EXAMPLES = 12
HEAT_MAPS = 8
RIGHT_BOX, CHOSEN_BOX = "#00664a", "#d55e00"


def write_task_report(
    folder: Path,
    task: str,
    model: Any,
    processor: Any,
    results: Mapping[str, Mapping[str, TaskResult]],
    rows: Mapping[str, datasets.Dataset],
) -> Path:
    """Write report.html into a run folder.

    Args:
        model, processor: with the chosen weights, for heat maps.
        results: of each test, by which weights; the first of them is shown.
        rows: of each test.
    """
    sections = [_figures(results)] if results else []
    result, data = None, None
    for name, by_weights in results.items():
        first = next(iter(by_weights.values()))
        sections += _tables(first)
        if result is None and first.retrieval is not None:
            result, data = first.retrieval, first.retrieval_data
            sections.append(_retrieval_maps(model, processor, first))
        elif task in _EXAMPLES:
            sections.append(_examples(task, first, rows[name]))
    return write_report(folder, result, data, sections)


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
        "Measured once, after training. The chosen weights are those with the best validation figure; no figure here "
        "chose anything.",
        heads,
        lines,
    )


def _tables(result: TaskResult) -> list[str]:
    details, sections = result.details, []
    if "confusion" in details:
        labels = details["labels"]
        lines = [
            [label, *(f"{count:,}" for count in counts), f"{counts[row] / max(1, sum(counts)):.1%}"]
            for row, (label, counts) in enumerate(zip(labels, details["confusion"], strict=True))
        ]
        heads = ["true class", *(f"said: {label}" for label in labels), "found"]
        sections.append(table_section(f"Confusion: {result.name}", "One row a true class.", heads, lines))
    for key, words in (("question_type", "question"), ("answer_type", "answer")):
        kinds = details.get(f"accuracy_per_{key}")
        if kinds and not (key == "answer_type" and kinds == details.get("accuracy_per_question_type")):
            lines = [[kind, f"{value:.1%}"] for kind, value in sorted(kinds.items(), key=lambda item: -item[1])]
            title = f"Accuracy by type of {words}: {result.name}"
            sections.append(table_section(title, "The types are those of the data set.", ["type", "accuracy"], lines))
    return sections


def _drawn(count: int, wanted: int) -> list[int]:
    return sorted(random.Random(GALLERY_SEED).sample(range(count), min(wanted, count)))


def _examples(task: str, result: TaskResult, rows: datasets.Dataset) -> str:
    shown = _drawn(len(rows), HEAT_MAPS if task == "grounding" else EXAMPLES)
    examples = [_EXAMPLES[task](result, row, rows[row]) for row in shown]
    caption = "Drawn at random with a fixed seed, not chosen by their outcome. ✓ marks what is right, ✗ what is wrong."
    if task == "grounding":
        caption += (
            " Left: the right box in green, the chosen one in orange, unless they are the same. Right: where it looks."
        )
    return example_section(f"Examples: {result.name}", caption, examples)


def _answered(result: TaskResult, row: int, data: dict[str, Any]) -> Example:
    ranked = result.predictions[row]["ranked"]
    references = answers_of(data)
    lines: list[tuple[str, bool | None]] = []
    for place, (answer, probability) in enumerate(ranked[:3]):
        right = answer in references if references and place == 0 else None
        lines.append((f"{answer} ({probability:.0%})", right))
    if references:
        lines.append((f"people: {', '.join(dict.fromkeys(references))}", None))
    return Example([decode_image(data["image"])], data["question"], lines)


def _classified(result: TaskResult, row: int, data: dict[str, Any]) -> Example:
    labels, prediction = result.details["labels"], result.predictions[row]
    lines: list[tuple[str, bool | None]] = []
    for label, share in zip(labels, prediction["probabilities"], strict=True):
        said = label == prediction["prediction"]
        lines.append((f"{label} ({share:.0%})", bool(result.correct[row]) if said else None))
    lines.append((f"it is: {data['label']}", None))
    images = data.get("images") or [data[name] for name in ("image", "image_0", "image_1") if name in data]
    return Example([decode_image(image) for image in images], data["sentence"], lines)


def _grounded(result: TaskResult, row: int, data: dict[str, Any]) -> Example:
    found, picture = result.groundings[row], decode_image(data["image"])
    heat = overlay(picture, torch.from_numpy(found.heat_map))
    boxed = picture.copy()
    draw = ImageDraw.Draw(boxed)
    width = max(2, round(max(boxed.size) / 90))
    for (x, y, wide, high), colour in ((found.box, CHOSEN_BOX), (data["box"], RIGHT_BOX)):
        draw.rectangle((x, y, x + wide, y + high), outline=colour, width=width)
    return Example(
        [boxed, heat], data["expression"], [("the box overlaps by half or more", bool(result.correct[row]))]
    )


_EXAMPLES = {
    "question_answering": _answered,
    "visual_reasoning": _classified,
    "visual_entailment": _classified,
    "grounding": _grounded,
}


def _retrieval_maps(model: Any, processor: Any, result: TaskResult) -> str:
    """Where the model looks when a text is matched with its own picture."""
    data = result.retrieval_data
    assert data is not None
    pairs: list[tuple[int, str]] = []
    for text in _drawn(len(data.texts), 4 * HEAT_MAPS):
        if data.text_groups[text] in data.image_groups and len(pairs) < HEAT_MAPS:
            pairs.append((data.image_groups.index(data.text_groups[text]), data.texts[text]))
    pictures = [decode_image(data.images[image]["image"]) for image, _ in pairs]
    found = explain(model, processor, pictures, [text for _, text in pairs])
    examples = [
        Example([each.image, each.picture()], text, [(f"matching logit {each.score:.2f}", None)])
        for each, (_, text) in zip(found, pairs, strict=True)
    ]
    return example_section(
        "Heat maps",
        "Texts with a picture of their own, drawn at random with a fixed seed. Right: where the model looks when it "
        "decides that they match; each map has its own scale.",
        examples,
    )
