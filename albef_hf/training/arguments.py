"""The arguments of a run: dataclasses that a YAML file sets and flags override. Unknown keys are errors."""

import argparse
import contextlib
import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

import yaml

from ..configuration_albef import POOLINGS, SAME_ID_POLICIES
from ..data.arguments import DataArguments
from ..data.hints import current_names, nearest_hint
from ..reporting.card_facts import DESCRIPTIONS
from ..reporting.published_recipes import PUBLISHED
from .limits import check_limits, parse_yaml, read_settings, to_yaml
from .redaction import REDACTED, redact

OPTIMIZERS = ("adamw", "sgd", "lars")
SCHEDULES = ("cosine_per_epoch", "cosine_per_step", "steps")


@dataclass
class ModelArguments:
    """The model, and the weights it starts from."""

    method: str = field(default="albef", metadata={"help": f"what to train: {', '.join(DESCRIPTIONS)}"})
    method_options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "arguments of an image-only method, e.g. {queue_size: 4096}"}
    )
    model_path: str | None = field(
        default=None,
        metadata={"help": "ALBEF model to start from: folder or Hub id; null: start from the encoders below"},
    )
    vision_model: str | None = field(
        default=None, metadata={"help": "image encoder to start from: folder or Hub id; null: random weights"}
    )
    vision_config: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "fields of the image encoder's configuration; {}: those of vision_model, else of ViT-B/16"},
    )
    vision_pooling: str = field(
        default="cls",
        metadata={
            "help": "vector of the whole image: cls (class token), mean (of patches) or pooler (the encoder's)",
            "choices": POOLINGS,
        },
    )
    text_model: str | None = field(
        default=None,
        metadata={"help": "BERT or RoBERTa to start from: folder, Hub id, or minilm (of its package); null: random"},
    )
    text_config: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "fields of AlbefTextConfig; {}: those of text_model, else of BERT base"},
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "folder or Hub id; left out, that of `text_model`, or without one `wordpiece`, BERT's English "
            "vocabulary from the package of that name"
        },
    )
    image_size: int = field(default=256, metadata={"help": "height and width of the input picture, pixels"})
    projection_dim: int = field(default=256, metadata={"help": "width of the contrastive space"})
    queue_size: int = field(
        default=65536, metadata={"help": "keys kept per modality; 0: contrast within the batch only"}
    )
    momentum: float = field(default=0.995, metadata={"help": "weight of the old value in the momentum copies, 0 to 1"})
    temperature: float = field(default=0.07, metadata={"help": "initial value of the learned temperature"})
    temperature_minimum: float = field(default=0.001, metadata={"help": "lower bound of the learned temperature"})
    alpha: float = field(default=0.4, metadata={"help": "weight of the soft targets, 0 to 1; 0: no distillation"})
    alpha_ramp_epochs: float = field(
        default=1.0, metadata={"help": "epochs in which alpha grows linearly from 0; 0: no ramp"}
    )
    same_image: str = field(
        default="negative",
        metadata={
            "help": "how another pair with the same image is treated: negative (published), mask or positive",
            "choices": SAME_ID_POLICIES,
        },
    )
    same_caption: str = field(
        default="negative",
        metadata={
            "help": "how another pair with the same caption is treated: negative (published), mask or positive",
            "choices": SAME_ID_POLICIES,
        },
    )
    gather_negatives: bool = field(
        default=False,
        metadata={"help": "negatives come from the batches of all ranks; false (published): of each rank"},
    )
    published_defects: bool = field(
        default=False, metadata={"help": "reproduce known defects of the published fine-tuning code"}
    )
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "compute activations again in the backward pass: less memory, more time"}
    )
    allow_missing_weights: bool = field(
        default=False, metadata={"help": "start even if weights of the encoders do not fit: these stay random"}
    )


@dataclass
class TrainingArguments:
    """How it is trained, and what is written."""

    published_recipe: str | None = field(
        default=None,
        metadata={
            "help": "the model card says what this published recipe reached, and lists what the run does otherwise",
            "choices": (None, *PUBLISHED),
        },
    )
    output_dir: str = field(default="runs/albef", metadata={"help": "folder of the run"})
    seed: int = field(default=42, metadata={"help": "seed of weights, samples and dropout"})
    epochs: float = field(default=30, metadata={"help": "passes over the training data"})
    max_steps: int = field(default=0, metadata={"help": "optimizer steps, instead of epochs; 0: epochs counts"})
    batch_size: int = field(default=64, metadata={"help": "samples per device and micro-batch"})
    accumulation: int = field(default=1, metadata={"help": "micro-batches per optimizer step"})
    learning_rate: float = field(default=1e-4, metadata={"help": "highest learning rate"})
    learning_rate_per: int = field(
        default=0, metadata={"help": "batch size the rates are quoted for (linear scaling); 0: no scaling"}
    )
    minimum_learning_rate: float = field(
        default=1e-5, metadata={"help": "learning rate that the cosine schedules fall to"}
    )
    warmup_learning_rate: float = field(default=1e-5, metadata={"help": "learning rate at the start of the warm-up"})
    warmup_steps: int = field(default=2000, metadata={"help": "optimizer steps of linear warm-up; 0: none"})
    warmup_epochs: float = field(
        default=0.0,
        metadata={"help": "length of the warm-up in epochs, instead of warmup_steps; 0: warmup_steps counts"},
    )
    warmup_every: int = field(
        default=100, metadata={"help": "optimizer steps between changes of the learning rate during warm-up"}
    )
    schedule: str = field(
        default="cosine_per_epoch",
        metadata={
            "help": "learning rate after the warm-up: cosine_per_epoch, cosine_per_step or steps",
            "choices": SCHEDULES,
        },
    )
    milestones: list[float] = field(
        default_factory=list,
        metadata={"help": "for schedule steps: epochs after which the learning rate falls to a tenth"},
    )
    optimizer: str = field(
        default="adamw", metadata={"help": "adamw, or sgd or lars with momentum 0.9", "choices": OPTIMIZERS}
    )
    bias_learning_rate: float = field(
        default=0.0, metadata={"help": "highest learning rate of vectors (biases, norms); 0: learning_rate"}
    )
    decay_vectors: bool = field(
        default=False,
        metadata={"help": "apply weight_decay to vectors (biases, norms) too; lars then adapts them too"},
    )
    weight_decay: float = field(
        default=0.02, metadata={"help": "weight decay of everything but vectors (biases, norms); 0: none"}
    )
    max_gradient_norm: float = field(
        default=0.0, metadata={"help": "larger gradients are scaled down to this norm; 0: no clipping, as published"}
    )
    mixed_precision: str | None = field(
        default=None,
        metadata={"help": "no (float32), bf16 or fp16; null: as `accelerate launch` is set, which is no by itself"},
    )
    sharding: str | None = field(
        default=None,
        metadata={
            "help": "fsdp2: each rank holds a part of weights, copies and optimizer state; null: all of them",
            "choices": (None, "fsdp2"),
        },
    )
    deterministic: bool = field(
        default=False,
        metadata={"help": "on a GPU: only kernels that give the same bits every time, which are slower"},
    )
    threads: int = field(
        default=0, metadata={"help": "CPU threads of a process; 0: as `accelerate launch` sets them, which is 1"}
    )
    log_every: int = field(default=50, metadata={"help": "optimizer steps between rows of the log"})
    save_every: int = field(default=1000, metadata={"help": "optimizer steps between checkpoints"})
    evaluate_every: int = field(
        default=0, metadata={"help": "optimizer steps between evaluations; 0: evaluate at the end only"}
    )
    evaluate_epochs: float = field(
        default=0.0,
        metadata={"help": "epochs between evaluations, instead of evaluate_every; 0: evaluate_every counts"},
    )
    keep_checkpoints: int = field(default=2, metadata={"help": "newest checkpoints to keep; at least 1 is kept"})
    keep_every: int = field(
        default=0, metadata={"help": "also keep every checkpoint whose step is a multiple of this; 0: none"}
    )
    spike_deviations: float = field(
        default=10.0,
        metadata={
            "help": "skip a step whose loss or gradient norm is this many standard deviations, and more than its "
            "size, above the mean of the last 128 steps; 0: never"
        },
    )
    max_skipped_steps: int = field(
        default=25,
        metadata={"help": "after this many skipped steps in a row go back to the last checkpoint, with other samples"},
    )
    resume: bool | str = field(
        default=False,
        metadata={
            "help": "go on from the newest valid checkpoint in output_dir; auto: start a new run if there is none",
            "choices": (False, True, "auto"),
        },
    )
    overwrite: bool = field(
        default=False, metadata={"help": "start anew in a used output_dir; what it holds is moved into a folder there"}
    )
    dry_run: bool = field(
        default=False, metadata={"help": "print sizes and a memory estimate, draw the first batch, and stop"}
    )
    report_to: str = field(
        default="tensorboard", metadata={"help": "tracker of Accelerate, e.g. tensorboard; none: log.jsonl only"}
    )
    rerank: int = field(
        default=0,
        metadata={"help": "candidates of each query to re-rank by matching (pre-training: at the end only); 0: none"},
    )


GROUPS = (ModelArguments, DataArguments, TrainingArguments)

# Former names of keys and flags -> their names now.
RENAMED = {"published": "published_defects"}


_QUOTES = ": YAML reads no, off, yes and on as false and true, so put the word in quotes"


def _convert(name: str, value: Any, argument: dataclasses.Field) -> Any:
    """Convert a YAML value, or the text of a flag, to the type of its field."""
    wanted, choices = argument.type, argument.metadata.get("choices")
    if choices:
        if isinstance(value, str) and value not in choices:
            with contextlib.suppress(yaml.YAMLError):
                value = parse_yaml(value)
        if not any(value is choice or isinstance(value, str) and value == choice for choice in choices):
            listed = ", ".join(yaml.safe_dump(choice).split("\n")[0] for choice in choices)
            raise ValueError(f"{name} must be one of {listed}, not {value!r}")
        return value
    kinds = [kind for kind in get_args(wanted) if kind is not NoneType]
    if NoneType in get_args(wanted):
        if value in (None, "none", "null", ""):
            return None
        (wanted,) = kinds
    if value == "" and argument.default not in ("", dataclasses.MISSING):
        raise ValueError(f"{name} is empty; leave it out for its default, {argument.default}")
    accepted: dict[Any, Any] = {int: int, float: (int, float), bool: bool, str: str, list: list, dict: dict}
    base = get_origin(wanted) or wanted
    if isinstance(value, str) and base is not str:
        try:
            value = parse_yaml(value)
            value = float(value) if base is float and isinstance(value, str) else value
        except (ValueError, yaml.YAMLError):
            pass
    if base is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, accepted[base]) or (base is not bool and isinstance(value, bool)):
        hint = _QUOTES if base is str and isinstance(value, bool) else ""
        raise ValueError(f"{name} must be {base.__name__}, not {value!r}{hint}")
    if base is list:
        (kind,) = get_args(wanted)
        wrong = [each for each in value if not isinstance(each, accepted.get(kind, object)) or isinstance(each, bool)]
        if wrong and kind in accepted:
            hint = _QUOTES if kind is str and isinstance(wrong[0], bool) else ""
            raise ValueError(f"{name} must be a list of {kind.__name__}, not with {wrong[0]!r} in it{hint}")
    return value


def parse_arguments(
    argv: list[str] | None = None,
    groups: tuple[Any, ...] = GROUPS,
    script: argparse.ArgumentParser | None = None,
) -> tuple[Any, ...]:
    """`[CONFIG.yaml] [--key value ...]` -> the groups of arguments, by default those of pre-training.

    Args:
        script: further flags for --help, which the script has read before.

    Raises:
        ValueError: the file does not exist, there is an unknown key or a value of the wrong type, in the file or on
            the command line, or the command line is empty.
    """
    fields = {f.name: f for group in groups for f in dataclasses.fields(group)}
    parser = argparse.ArgumentParser(
        description=script.description if script else None,
        parents=[script] if script else [],
        usage="%(prog)s [CONFIG.yaml] [--key value ...]",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=34, width=110),
    )
    parser.add_argument("config", nargs="?", help="YAML file with any of the keys below")
    for group in groups:
        section = parser.add_argument_group(group.__name__)
        for f in dataclasses.fields(group):
            default = f.default if f.default is not dataclasses.MISSING else f.default_factory()
            shown = "null" if default is None else default
            text = f"{f.metadata['help']} (default: {shown})".replace("%", "%%")
            flag: dict[str, Any] = {"nargs": "?", "const": "true"} if isinstance(f.default, bool) else {}
            section.add_argument(f"--{f.name}", default=None, metavar="X", help=text, **flag)
            for old in (old for old, new in RENAMED.items() if new == f.name):
                section.add_argument(f"--{old}", dest=f.name, default=None, help=argparse.SUPPRESS, **flag)
    if argv is None and not sys.argv[1:]:
        raise ValueError("no configuration is given: name one of configs/, or see --help")
    parsed, unknown = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    for item in unknown:
        if item.startswith("--"):
            name = item[2:].split("=")[0]
            raise ValueError(f"unknown flag --{name}; {nearest_hint(name, fields, 'see --help')}")
        raise ValueError(f"unexpected argument {item!r}")
    values: dict[str, Any] = {}
    if parsed.config is not None:
        path = Path(parsed.config)
        if not path.is_file():
            beside = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
            raise ValueError(f"no such file: {path}; {nearest_hint(path.name, beside)}")
        loaded = current_names(read_settings(path), RENAMED, str(path))
        for name in loaded:
            if name not in fields:
                raise ValueError(f"{path}: unknown key {name!r}; {nearest_hint(str(name), fields, 'see --help')}")
        values |= loaded
    values |= {name: value for name, value in vars(parsed).items() if name in fields and value is not None}
    converted = {name: _convert(name, value, fields[name]) for name, value in values.items()}
    for name, value in converted.items():
        check_limits(name, value)
        if f"'{REDACTED}'" in repr(value):
            raise ValueError(f"{name} holds {REDACTED} in place of a secret that was not written down: give it anew")
    return tuple(
        group(**{f.name: converted[f.name] for f in dataclasses.fields(group) if f.name in converted})
        for group in groups
    )


def resolved(*groups: Any) -> str:
    """All arguments of a run as YAML, which `parse_arguments` reads back. Secrets are not written: see `redact`."""
    values = {k: v for group in groups for k, v in dataclasses.asdict(group).items()}
    return to_yaml(redact(json.loads(json.dumps(values))))
