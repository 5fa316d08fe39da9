"""A run is dataclasses: a YAML file sets them, flags override it, and an unknown key is an error."""

import argparse
import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin

import yaml

from ..data.arguments import DataArguments
from ..data.hints import current_names, nearest_hint
from ..reporting.card_facts import DESCRIPTIONS


@dataclass
class ModelArguments:
    method: str = field(default="albef", metadata={"help": f"one of {', '.join(DESCRIPTIONS)}"})
    method_options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "arguments of an image-only method, e.g. {queue_size: 4096}"}
    )
    model_path: str | None = field(default=None, metadata={"help": "folder or Hub id of a model to start from"})
    vision_model: str | None = field(default=None, metadata={"help": "image encoder to start from: folder or Hub id"})
    vision_config: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "configuration of the image encoder, with its model_type"}
    )
    vision_pooling: str = field(default="cls", metadata={"help": "cls, mean or pooler"})
    text_model: str | None = field(
        default=None, metadata={"help": "BERT to start from: folder, Hub id, or `minilm` of its package"}
    )
    text_config: dict[str, Any] = field(default_factory=dict, metadata={"help": "fields of AlbefTextConfig"})
    tokenizer: str = field(default="wordpiece", metadata={"help": "folder, Hub id, or `wordpiece` of its package"})
    image_size: int = field(default=256, metadata={"help": "side of the square picture, pixels"})
    projection_dim: int = field(default=256, metadata={"help": "width of the contrastive space"})
    queue_size: int = field(default=65536, metadata={"help": "keys kept per modality"})
    momentum: float = field(default=0.995, metadata={"help": "weight of the old value in the momentum copies"})
    temperature: float = field(default=0.07, metadata={"help": "start of the learned temperature"})
    temperature_minimum: float = field(default=0.001, metadata={"help": "its lower bound"})
    alpha: float = field(default=0.4, metadata={"help": "weight of the soft targets"})
    alpha_ramp_epochs: float = field(default=1.0, metadata={"help": "epochs in which alpha grows from 0"})
    same_image: str = field(default="negative", metadata={"help": "negative (published), mask or positive"})
    same_caption: str = field(default="negative", metadata={"help": "negative (published), mask or positive"})
    gather_negatives: bool = field(default=False, metadata={"help": "draw negatives over all ranks"})
    published_defects: bool = field(
        default=False, metadata={"help": "do as the published code where it has a known defect"}
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "trade time for memory"})
    allow_missing_weights: bool = field(default=False, metadata={"help": "start encoders that fit only in part"})


@dataclass
class TrainingArguments:
    output_dir: str = field(default="runs/albef", metadata={"help": "the run folder"})
    seed: int = field(default=42, metadata={"help": "of weights, samples and dropout"})
    epochs: float = field(default=30, metadata={"help": "passes over the corpus"})
    max_steps: int = field(default=0, metadata={"help": "optimizer steps; 0: as many as the epochs have"})
    batch_size: int = field(default=64, metadata={"help": "pairs per device and micro-batch"})
    accumulation: int = field(default=1, metadata={"help": "micro-batches per optimizer step"})
    learning_rate: float = field(default=1e-4, metadata={"help": "highest learning rate"})
    learning_rate_per: int = field(
        default=0, metadata={"help": "batch size the rates are quoted for (linear scaling); 0: no scaling"}
    )
    minimum_learning_rate: float = field(default=1e-5, metadata={"help": "lowest learning rate"})
    warmup_learning_rate: float = field(default=1e-5, metadata={"help": "learning rate at the first step"})
    warmup_steps: int = field(default=2000, metadata={"help": "steps of linear warm-up"})
    warmup_epochs: float = field(default=0.0, metadata={"help": "in place of warmup_steps"})
    warmup_every: int = field(default=100, metadata={"help": "the warm-up moves once in so many steps"})
    schedule: str = field(default="cosine_per_epoch", metadata={"help": "cosine_per_epoch, cosine_per_step or steps"})
    milestones: list[float] = field(
        default_factory=list, metadata={"help": "epochs after which the rate falls to a tenth (schedule: steps)"}
    )
    optimizer: str = field(default="adamw", metadata={"help": "adamw, sgd or lars, the last two with momentum 0.9"})
    bias_learning_rate: float = field(
        default=0.0, metadata={"help": "highest learning rate of vectors (biases, norms); 0: as the others"}
    )
    decay_vectors: bool = field(default=False, metadata={"help": "decay biases and norms too"})
    weight_decay: float = field(default=0.02, metadata={"help": "of matrices and the temperature, as published"})
    max_gradient_norm: float = field(default=0.0, metadata={"help": "0: no clipping, as published"})
    mixed_precision: str = field(default="no", metadata={"help": "no, bf16 or fp16"})
    threads: int = field(default=0, metadata={"help": "CPU threads; 0: as `accelerate launch` sets them, which is 1"})
    log_every: int = field(default=50, metadata={"help": "steps"})
    save_every: int = field(default=1000, metadata={"help": "steps"})
    evaluate_every: int = field(default=0, metadata={"help": "steps; 0: at the end only"})
    evaluate_epochs: float = field(default=0.0, metadata={"help": "in place of evaluate_every"})
    keep_checkpoints: int = field(default=2, metadata={"help": "older ones are removed"})
    resume: bool = field(default=False, metadata={"help": "go on from the newest checkpoint of the run folder"})
    dry_run: bool = field(default=False, metadata={"help": "print sizes and the first batch, and stop"})
    report_to: str = field(default="tensorboard", metadata={"help": "a tracker of Accelerate; none: only log.jsonl"})
    rerank: int = field(
        default=0, metadata={"help": "candidates re-ranked by matching; in pre-training, in the last evaluation only"}
    )


GROUPS = (ModelArguments, DataArguments, TrainingArguments)

# Names of earlier releases, in files and as flags, and what they are called now.
RENAMED = {"published": "published_defects"}


def _convert(name: str, value: Any, wanted: Any) -> Any:
    """A YAML value or the text of a flag as the type of its field."""
    optional = "None" in str(wanted)
    if optional and value in (None, "none", "null", ""):
        return None
    kinds: dict[Any, Any] = {int: int, float: (int, float), bool: bool, str: str, list: list, dict: dict}
    base = str if optional else get_origin(wanted) or wanted
    if isinstance(value, str) and base is not str:
        try:
            value = yaml.safe_load(value)
            # YAML 1.1 reads 1e-4 as text.
            value = float(value) if base is float and isinstance(value, str) else value
        except (ValueError, yaml.YAMLError):
            pass
    if base is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    expected = kinds[base]
    if not isinstance(value, expected) or (base is not bool and isinstance(value, bool)):
        raise ValueError(f"{name} must be {base.__name__}, not {value!r}")
    return value


def parse_arguments(argv: list[str] | None = None, groups: tuple[Any, ...] = GROUPS) -> tuple[Any, ...]:
    """`[CONFIG.yaml] [--key value ...]` -> the groups of arguments, by default those of pre-training.

    Raises:
        ValueError: an unknown key or a value of the wrong type, in the file or on the command line.
    """
    fields = {f.name: f for group in groups for f in dataclasses.fields(group)}
    parser = argparse.ArgumentParser(
        allow_abbrev=False, formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=110)
    )
    parser.add_argument("config", nargs="?", help="YAML file with any of the keys below")
    for group in groups:
        section = parser.add_argument_group(group.__name__)
        for f in dataclasses.fields(group):
            default = f.default if f.default is not dataclasses.MISSING else f.default_factory()
            text = f"{f.metadata['help']} (default: {default})".replace("%", "%%")
            flag: dict[str, Any] = {"nargs": "?", "const": "true"} if f.type is bool else {}
            section.add_argument(f"--{f.name}", default=None, metavar="X", help=text, **flag)
            for old in (old for old, new in RENAMED.items() if new == f.name):
                section.add_argument(f"--{old}", dest=f.name, default=None, help=argparse.SUPPRESS, **flag)
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
        loaded = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        loaded = current_names(loaded, RENAMED, str(path))
        for name in loaded:
            if name not in fields:
                raise ValueError(f"{path}: unknown key {name!r}; {nearest_hint(str(name), fields, 'see --help')}")
        values |= loaded
    values |= {name: value for name, value in vars(parsed).items() if name in fields and value is not None}
    converted = {name: _convert(name, value, fields[name].type) for name, value in values.items()}
    return tuple(
        group(**{f.name: converted[f.name] for f in dataclasses.fields(group) if f.name in converted})
        for group in groups
    )


def resolved(*groups: Any) -> str:
    """All values of a run as YAML that `parse_arguments` reads back."""
    values = {k: v for group in groups for k, v in dataclasses.asdict(group).items()}
    return yaml.safe_dump(json.loads(json.dumps(values)), sort_keys=False)
