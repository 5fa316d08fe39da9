"""Files of settings, and the numbers that settings may have."""

import math
import re
from pathlib import Path
from typing import Any

import yaml

# Setting -> the smallest and the largest number that means something; None: no limit.
LIMITS: dict[str, tuple[float, float | None]] = {
    **dict.fromkeys(
        (
            "image_size", "projection_dim", "batch_size", "accumulation", "warmup_every", "log_every", "save_every",
            "max_skipped_steps", "max_caption_tokens", "max_image_pixels", "streaming_window", "evaluation_resize",
            "evaluation_batch_size", "ranked_answers",
        ),
        (1, None),
    ),
    **dict.fromkeys(
        (
            "queue_size", "epochs", "max_steps", "learning_rate", "learning_rate_per", "minimum_learning_rate",
            "warmup_learning_rate", "warmup_steps", "warmup_epochs", "bias_learning_rate", "weight_decay",
            "max_gradient_norm", "threads", "evaluate_every", "evaluate_epochs", "keep_checkpoints", "keep_every",
            "spike_deviations", "rerank", "streaming_rows", "workers", "alpha_ramp_epochs", "temperature",
            "temperature_minimum", "seed",
        ),
        (0, None),
    ),
    **dict.fromkeys(("momentum", "alpha", "mlm_probability", "max_rejected_fraction"), (0, 1)),
}  # fmt: skip


def check_limits(name: str, value: Any) -> None:
    """Check a number, or the numbers of a list.

    Raises:
        ValueError: it is no number (NaN), infinite, or beyond its limits.
    """
    numbers = value if isinstance(value, list) else [value]
    for number in numbers:
        if not isinstance(number, int | float) or isinstance(number, bool):
            continue
        if not math.isfinite(number):
            raise ValueError(f"{name} must be a finite number, not {number}")
        low, high = LIMITS.get(name, (-math.inf, None))
        if number < low or (high is not None and number > high):
            allowed = f"{low} or more" if high is None else f"within {low} .. {high}"
            raise ValueError(f"{name} must be {allowed}, not {number}")


_EXPONENT = ("tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))


class _Loader(yaml.SafeLoader):
    """A key that stands twice is an error, of which PyYAML would silently take the second value; and 1e-6 is a number,
    as in YAML 1.2, which PyYAML would take for text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                mark = node.value[number][0].start_mark
                raise ValueError(f"line {mark.line + 1}: {key!r} stands there twice; keep one")
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Puts in quotes what `_Loader` would take for a number."""


_Loader.add_implicit_resolver(*_EXPONENT)
_Dumper.add_implicit_resolver(*_EXPONENT)


def parse_yaml(text: str) -> Any:
    """What a text says in YAML, in a file of settings or in a flag.

    Raises:
        ValueError: a key stands twice.
        yaml.YAMLError: it is no YAML.
    """
    return _Loader(text).get_single_data()


def to_yaml(settings: Any) -> str:
    """Settings as YAML, which `parse_yaml` reads back."""
    return yaml.dump(settings, Dumper=_Dumper, sort_keys=False)


def read_settings(path: Path) -> dict[str, Any]:
    """Settings of a YAML file: key -> value.

    Raises:
        ValueError: the file is empty, not UTF-8, not YAML, holds no keys, or one of them twice; names file and line.
    """
    try:
        loaded = parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict):
        what = "is empty" if loaded is None else f"holds a {type(loaded).__name__}"
        raise ValueError(f"{path} {what}, not settings: write a line `key: value` for each (see configs/)")
    return loaded
