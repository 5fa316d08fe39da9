"""What the card of a fine-tuned model says: the task, code that uses it, and its figures."""

from collections.abc import Mapping

from ..reporting.model_card import CardText
from .result import TaskResult
from .task import TASK_KINDS

_LOAD = ["model = {0}.from_pretrained(name).eval()", "processor = AlbefProcessor.from_pretrained(name)"]
_CLASSES = [
    "with torch.no_grad():",
    "    print(dict(zip(model.classes, model(**inputs).logits.softmax(-1)[0].tolist())))",
]

_TEXTS: Mapping[str, tuple[str, str | None, list[str]]] = {
    "retrieval": (
        "Finds texts with pictures and pictures with texts: contrast ranks all of them, and matching, which reads a "
        "text with a picture, gives the best of them a new order.",
        "zero-shot-image-classification",
        [
            'inputs = processor(images=picture, text=["a red square", "a green tree"])',
            "with torch.no_grad():",
            "    print(model(**inputs).logits_per_image.softmax(-1))",
        ],
    ),
    "question_answering": (
        "Answers questions about pictures, in its own words or by ranking a list of answers (`answer_list.json`).",
        "visual-question-answering",
        [
            'inputs = processor(images=picture, text="what colour is it?")',
            "print(processor.tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True))",
        ],
    ),
    "visual_reasoning": (
        "Says whether a sentence is true of two pictures.",
        None,
        [
            'inputs = processor(images=[picture, picture], text="both are red")',
            'inputs["pixel_values"] = inputs["pixel_values"][None]  # (1, 2, channels, height, width)',
            *_CLASSES,
        ],
    ),
    "visual_entailment": (
        "Says whether a picture contradicts a sentence, leaves it open, or entails it.",
        None,
        ['inputs = processor(images=picture, text="there is a tree")', *_CLASSES],
    ),
    "text_assignment": (
        "Says which of two pictures a text belongs to, if any. Made to start a model of visual reasoning from it.",
        None,
        [
            "# AlbefForVisualReasoning.from_pretrained(name) starts fine-tuning from it",
            "print(model.loading_report)",
        ],
    ),
    "grounding": (
        "Points out what an expression means in a picture. It has never seen a box: heat maps of its attention choose "
        "one.",
        None,
        [
            "from albef_hf.evaluation.grounding import AlbefGrounder",
            "",
            'print(AlbefGrounder(model, processor)(picture, "the red car").box)  # x, y, width, height',
        ],
    ),
}


def task_card(task: str, results: Mapping[str, TaskResult]) -> CardText:
    """The text for a task and the figures of its tests, by name."""
    description, tag, usage = _TEXTS[task]
    model = TASK_KINDS[task].model.__name__
    lines = ["| data | metric | value |", "|---|---|---:|"]
    for name, result in results.items():
        rows = [*result.metrics.items(), *((f"({key})", value) for key, value in result.baselines.items())]
        lines += [f"| {name} | {metric} | {value:.2%} |" for metric, value in rows]
    words = "## Results\n\nOf the weights that validation chose; in brackets, what needs no model.\n\n" + "\n".join(
        lines
    )
    return CardText(
        f"ALBEF (*Align before Fuse*, Li et al. 2021) fine-tuned for {task.replace('_', ' ')}. {description}",
        tag,
        [task.replace("_", "-")],
        [line.format(model) for line in _LOAD] + usage,
        f"AlbefProcessor, {model}",
        words if results else "",
    )
