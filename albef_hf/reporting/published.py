"""Published recipes: their settings, what they reached and on what. A card lists what a run does otherwise."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Published:
    """A published recipe.

    Args:
        source: the publication, and where in it.
        reached: its figures, each with its protocol.
        hardware: what it was trained on.
        data: what it was trained on, in words.
        samples_per_step: samples of an optimizer step, over all devices.
        settings: arguments of a run -> their values; dictionaries are compared key by key.
        remains: what no argument makes equal.
    """

    source: str
    reached: str
    hardware: str
    data: str
    samples_per_step: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    remains: tuple[str, ...] = ()


def deviations(recipe: Published, config: Mapping[str, Any], samples_per_step: int) -> list[tuple[str, Any, Any]]:
    """What a run does otherwise than a published recipe: (setting, published, here); None: not set.

    Args:
        config: all arguments of the run.
        samples_per_step: of the run, over all ranks and micro-batches.
    """
    found: list[tuple[str, Any, Any]] = []
    if samples_per_step != recipe.samples_per_step:
        found.append(("samples of an optimizer step", recipe.samples_per_step, samples_per_step))
    for name, published in recipe.settings.items():
        here = config.get(name)
        if isinstance(published, Mapping):
            parts = here if isinstance(here, Mapping) else {}
            pairs = [(f"{name}.{key}", value, parts.get(key)) for key, value in published.items()]
        else:
            pairs = [(name, published, here)]
        found += [(setting, value, own) for setting, value, own in pairs if own != value]
    return found
