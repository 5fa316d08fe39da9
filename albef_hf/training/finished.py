"""Whether a comparison of runs can take a run that is there as it is."""

from pathlib import Path
from typing import Any

import yaml

from .arguments import GROUPS, TrainingArguments, parse_arguments, resolved
from .changes import SILENT
from .limits import read_settings
from .processes import settled_precision

# What changes neither the weights nor what is measured.
FREE = SILENT | {"workers", "threads", "log_every", "save_every", "keep_checkpoints", "keep_every", "report_to"}


def is_complete(folder: Path, arguments: list[Any], result: str, groups: tuple[Any, ...] = GROUPS) -> bool:
    """Whether the run of a command is complete in a folder.

    Args:
        arguments: of the command: its configuration and flags.
        result: the file that a run writes last.
        groups: of arguments that the command knows.

    Raises:
        ValueError: the run in the folder has other settings, or started from weights that have changed since; says
            which, and what to do.
    """
    if not (folder / "config.yaml").is_file():
        return False
    parsed = parse_arguments([str(argument) for argument in arguments], groups)
    now, before = yaml.safe_load(resolved(*parsed)), read_settings(folder / "config.yaml")
    for group in parsed:
        if isinstance(group, TrainingArguments):
            now["mixed_precision"] = settled_precision(group)
    other = [key for key in now if key in before and before[key] != now[key] and key not in FREE]
    wrong = "; ".join(f"{key}: {before[key]!r} there, {now[key]!r} now" for key in other)
    began = (folder / "run.json").stat().st_mtime if (folder / "run.json").is_file() else 0.0
    for key in ("model_path", "vision_model", "text_model"):
        weights = Path(now.get(key) or "").glob("*.safetensors") if now.get(key) else ()
        if not wrong and any(file.stat().st_mtime > began for file in weights):
            wrong = f"the weights in {now[key]} are newer than the run"
    if wrong:
        raise ValueError(
            f"{folder} holds a run of something else ({wrong}). Move or remove that folder to run it again, or choose "
            "another output_dir"
        )
    return (folder / result).is_file()
