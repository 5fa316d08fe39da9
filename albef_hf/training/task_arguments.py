"""The arguments of a downstream task, and the data sets that they name."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import datasets

from ..data.arguments import DataArguments
from ..data.sources import check_keys
from ..tasks import TASKS
from ..tasks.task import Task
from .arguments import GROUPS

# Keys that describe a data set of a task: in an entry of `mixture`, in `validation`, and in each of `tests`.
ENTRY_KEYS = ("dataset", "options", "split", "revision", "columns", "image_root", "image_suffix", "label_names")

# Arguments of pre-training data that tasks do not have -> what to use instead.
_NOT_OF_TASKS = {
    "image_column": "columns: {image: ...}",
    "caption_column": "columns: {captions: ...}",
    "caption_template": "nothing: captions of tasks are texts",
    "image_mean": "nothing: the processor of the model has it",
    "image_std": "nothing: the processor of the model has it",
    "id_column": "columns: {image_id: ...}",
    "label_column": "columns: {label: ...}",
    "streaming": "a map-style data set",
    "evaluation_dataset": "validation and tests",
    "evaluation_dataset_options": "validation and tests",
    "evaluation_split": "validation and tests",
    "evaluation_first_caption": "validation and tests",
    "knn_protocol": "nothing: tasks have their own measures",
    "evaluation_resize": "nothing: tasks see whole pictures",
    "augmentation": "augmentation_options",
    "max_caption_tokens": "nothing: each task has its published length",
    "mlm_probability": "nothing: no task masks words",
}


@dataclass
class TaskArguments:
    """The downstream task, its data and its evaluation."""

    task: str = field(default="retrieval", metadata={"help": f"what to fine-tune for: {', '.join(TASKS)}"})
    columns: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": "column of the task -> its name in the data set, see docs/downstream.md; {}: the names in the "
            "publication's lists"
        },
    )
    image_suffix: str = field(default="", metadata={"help": "ending to add to picture paths, e.g. .jpg"})
    label_names: list[str] | None = field(
        default=None,
        metadata={"help": "names of class numbers, in their order, where the data set does not tell them"},
    )
    validation: dict[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": "data that chooses the weights, as far as it differs from training, e.g. {split: validation}; "
            "{}: the last weights are kept"
        },
    )
    tests: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "data measured once at the end, by name, e.g. {test: {split: test}}; {}: none"},
    )
    chosen_by: str | None = field(
        default=None, metadata={"help": "validation metric that chooses the weights; null: the task's own"}
    )
    answer_list: str | None = field(
        default=None,
        metadata={"help": "JSON list of answers for question answering; null: all answers of the training data"},
    )
    ranked_answers: int = field(
        default=128, metadata={"help": "candidate answers that question answering scores in full for each question"}
    )
    evaluation_batch_size: int = field(default=64, metadata={"help": "rows per device and batch in evaluation"})


TASK_GROUPS = (*GROUPS, TaskArguments)


def _entry(
    data: DataArguments, task_arguments: TaskArguments, changes: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Arguments of `Task.load`: those of the training data, with changes."""
    check_keys(changes, (*ENTRY_KEYS, "weight"), where)
    training = {
        "dataset": data.dataset,
        "options": data.dataset_options,
        "split": data.split,
        "revision": data.revision,
        "columns": task_arguments.columns,
        "image_root": data.image_root,
        "image_suffix": task_arguments.image_suffix,
        "label_names": task_arguments.label_names,
    }
    if "dataset" in changes and changes["dataset"] != data.dataset and "options" not in changes:
        training["options"] = {}  # another loader has other options
    return training | {key: value for key, value in changes.items() if key != "weight"}


def check_task_data(data: DataArguments) -> None:
    """Check that only arguments are set that the data of tasks has.

    Raises:
        ValueError: an argument of pre-training data is set; says what to use instead.
    """
    for f in dataclasses.fields(data):
        default = f.default if f.default is not dataclasses.MISSING else f.default_factory()  # type: ignore[misc]
        if f.name in _NOT_OF_TASKS and getattr(data, f.name) != default:
            raise ValueError(f"{f.name} is for pre-training; for a task use {_NOT_OF_TASKS[f.name]}")


def load_training_parts(
    task: type[Task], data: DataArguments, task_arguments: TaskArguments
) -> tuple[dict[str, datasets.Dataset], list[float] | None]:
    """Load the data sets to train on, by name, and their weights if the mixture has any.

    Raises:
        ValueError: some data sets have a weight and others do not; or see `Task.load`.
    """
    entries = data.mixture or [{}]
    weights = [entry["weight"] for entry in entries if "weight" in entry]
    if weights and len(weights) < len(entries):
        raise ValueError("mixture: give every data set a weight, or none")
    parts = {}
    for number, changes in enumerate(entries):
        entry = _entry(data, task_arguments, changes, "mixture")
        name = entry["dataset"] if entry["dataset"] not in parts else f"{entry['dataset']} ({number})"
        parts[name] = task.load(**entry)
    return parts, [float(weight) for weight in weights] or None


def load_evaluation_rows(
    task: type[Task], data: DataArguments, task_arguments: TaskArguments, changes: Mapping[str, Any], where: str
) -> datasets.Dataset:
    """Load the rows of `validation` or of one of `tests`. where: which of them, for errors.

    Raises:
        ValueError: `changes` is not a mapping; the name cannot name a file; or see `Task.load`.
    """
    if str(where) in ("", ".", "..") or "/" in str(where):
        raise ValueError(f"tests: predictions are saved in a file named {where!r}: choose a name without /")
    if not isinstance(changes, Mapping):
        raise ValueError(f"{where} must say what differs from training, such as {{split: {where}}}, not {changes!r}")
    return task.load(**_entry(data, task_arguments, changes, where))
