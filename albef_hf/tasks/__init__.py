"""The downstream tasks, one file for each. CONTRIBUTING.md shows how to add one."""

from collections.abc import Sequence

from ..data.hints import nearest_hint
from .grounding import Grounding
from .image_text_classification import ImageTextClassification
from .question_answering import QuestionAnswering
from .retrieval import Retrieval
from .task import Task
from .text_assignment import TextAssignment
from .visual_entailment import VisualEntailment
from .visual_reasoning import VisualReasoning

_CLASSES: tuple[type[Task], ...] = (
    Retrieval,
    QuestionAnswering,
    VisualReasoning,
    VisualEntailment,
    ImageTextClassification,
    TextAssignment,
    Grounding,
)
TASKS: dict[str, type[Task]] = {task.name: task for task in _CLASSES}


def task_named(name: str, allowed: Sequence[type[Task]] = _CLASSES) -> type[Task]:
    """The class of a task.

    Raises:
        ValueError: no allowed task has this name; says which come nearest.
    """
    known = {task.name: task for task in allowed}
    if name not in known:
        raise ValueError(f"unknown task {name!r}; {nearest_hint(name, known)}")
    return known[name]
