"""Loading a model of one task from a checkpoint of another, and saying in words what that did."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError
from transformers.utils import logging

from .configuration_albef import AlbefConfig
from .model_folder import check_model_folder

logger = logging.get_logger(__name__)

_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


class LoadsFromOtherTasks:
    """For `PreTrainedModel`s: `from_pretrained` takes a checkpoint of any ALBEF class.

    Attributes:
        loading_report: what the last loading did, in words: what was new, what was copied from what, what the
            checkpoint held beside.
    """

    loading_report = "built from its configuration: every weight is new"

    # Parts a checkpoint may lack that do not start at random: a pattern of their names, and how they start.
    starts: ClassVar[dict[str, str]] = {}

    @classmethod
    def renamed_keys(cls, checkpoint_config: AlbefConfig | None) -> dict[str, str]:
        """Patterns of names in a checkpoint of *another* class, and what they are called here; none by default.

        checkpoint_config: of the checkpoint's folder, or the one given beside a state.
        """
        return {}

    def freeze(self) -> None:
        """Freeze what this class does not train. Loading makes every parameter trainable."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, from a checkpoint of any ALBEF class and from safetensors only: nothing is unpickled.

        `loading_report` of the model then says what was new.

        Raises:
            ValueError: a file that is damaged, missing, outside its folder, or of another model; names it.
        """
        name = pretrained_model_name_or_path
        kind: Any = cls
        folder = Path(str(name), kwargs.get("subfolder") or "")
        if name is not None and folder.is_dir() and kwargs.get("config") is None:
            check_model_folder(folder, kind.config_class.model_type)
        kwargs.setdefault("use_safetensors", True)
        with_report = kwargs.pop("output_loading_info", False)
        checkpoint_config: Any = kwargs.get("config")
        if name is not None and issubclass(kind.config_class, AlbefConfig):
            places = {key: kwargs[key] for key in _HUB_ARGUMENTS if key in kwargs}
            try:
                checkpoint_config = kind.config_class.from_pretrained(name, **places)
            except OSError:
                if checkpoint_config is None:  # weights alone are enough where a configuration is given
                    raise
        renamed = cls.renamed_keys(checkpoint_config)
        if renamed:
            kwargs["key_mapping"] = {**renamed, **(kwargs.get("key_mapping") or {})}
        parent: Any = super()
        try:
            model, report = parent.from_pretrained(name, *args, output_loading_info=True, **kwargs)
        except SafetensorError as error:
            raise ValueError(f"weights of {name} cannot be read: {error}") from error
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):
                raise
            raise ValueError(f"weights of {name} do not fit its config.json: {error}") from error
        # Renaming is for checkpoints of another class: what is saved keeps our names.
        model._weight_conversions = [
            rule for rule in model._weight_conversions if not renamed.keys() & set(rule.source_patterns)
        ]
        model.tie_weights()  # also within the momentum copies, which transformers does not look into
        model.freeze()
        model.loading_report = _in_words(report, cls.starts)
        logger.info("%s from %s: %s", cls.__name__, name, model.loading_report)
        return (model, report) if with_report else model


def _in_words(report: Mapping[str, Iterable[Any]], starts: Mapping[str, str]) -> str:
    """A loading report of transformers in words."""
    parts: dict[str, list[str]] = {}
    for name in report["missing_keys"]:
        how = next((how for part, how in starts.items() if re.search(part, name)), "new, random")
        parts.setdefault(how, []).append(_part(name))
    for name, *_ in report["mismatched_keys"]:
        parts.setdefault("new, random (of another shape in the checkpoint)", []).append(_part(name))
    for name in report["unexpected_keys"]:
        parts.setdefault("in the checkpoint but not used", []).append(_part(name))
    texts = [f"{how}: {', '.join(sorted(set(names)))}" for how, names in sorted(parts.items())]
    return "; ".join(texts) or "every weight was in the checkpoint"


def _part(name: str) -> str:
    """The part of a model a weight belongs to: `decoder.encoder`, `classifier.dense`, `itm_head`."""
    return ".".join(re.sub(r"\.(weight|bias)$", "", name).split(".")[:2])


__all__ = ["LoadsFromOtherTasks"]
