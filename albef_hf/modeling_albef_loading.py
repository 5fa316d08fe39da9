"""Loading a model of one task from a checkpoint of another, and saying in words what that did."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from transformers.utils import logging

from .configuration_albef import AlbefConfig

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
        """As in transformers, from a checkpoint of any ALBEF class; `loading_report` then says what was new."""
        with_report = kwargs.pop("output_loading_info", False)
        kind: Any = cls
        checkpoint_config: Any = kwargs.get("config")
        if pretrained_model_name_or_path is not None and issubclass(kind.config_class, AlbefConfig):
            places = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
            try:
                checkpoint_config = kind.config_class.from_pretrained(pretrained_model_name_or_path, **places)
            except OSError:
                if checkpoint_config is None:  # weights alone are enough where a configuration is given
                    raise
        renamed = cls.renamed_keys(checkpoint_config)
        if renamed:
            kwargs["key_mapping"] = {**renamed, **(kwargs.get("key_mapping") or {})}
        parent: Any = super()
        model, report = parent.from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        # Renaming is for checkpoints of another class: what is saved keeps our names.
        model._weight_conversions = [
            rule for rule in model._weight_conversions if not renamed.keys() & set(rule.source_patterns)
        ]
        model.tie_weights()  # also within the momentum copies, which transformers does not look into
        model.freeze()
        model.loading_report = _in_words(report, cls.starts)
        logger.info("%s from %s: %s", cls.__name__, pretrained_model_name_or_path, model.loading_report)
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
