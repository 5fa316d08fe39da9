"""State dicts from the published names to ours and back, with a report of what became of each name."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

import torch

from .layouts import IMAGE_ENCODER, LAYOUTS, OURS_ALONE, TASKS, Rule, copied


@dataclass
class KeyReport:
    """What became of each name.

    Args:
        task: one of `TASKS`, or the name of another layout.
        matched: published name -> our names.
        tied: published name -> the published name that holds the same values and is kept instead.
        dropped: published name -> why it is left out.
        unexpected: published names that are not in the layout.
        started: our names that the checkpoint may lack and does lack -> how they start.
        missing: our names that the checkpoint must have and lacks.
        changed: our names whose values were changed -> how.
    """

    task: str
    matched: dict[str, tuple[str, ...]] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    started: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    changed: dict[str, str] = field(default_factory=dict)

    @property
    def explained(self) -> bool:
        """Whether no name is unexpected or missing."""
        return not (self.unexpected or self.missing)

    def __str__(self) -> str:
        lines = [f"{self.task}: {len(self.matched)} names matched"]
        for title, names in (("tied", self.tied), ("dropped", self.dropped), ("started", self.started)):
            reasons: dict[str, list[str]] = {}
            for name, reason in names.items():
                reasons.setdefault("the tensor they share is kept" if names is self.tied else reason, []).append(name)
            lines += [f"{title}: {_some(group)} ({reason})" for reason, group in reasons.items()]
        lines += [f"changed: {name} ({how})" for name, how in self.changed.items()]
        lines += [
            f"{title}: {_some(names)}"
            for title, names in (("MISSING", self.missing), ("UNEXPECTED", self.unexpected))
            if names
        ]
        return "\n".join(lines)


def _some(names: list[str], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{len(names)}: {', '.join(names[:shown])}{more}"


# -- reading and writing ----------------------------------------------------------------------------------------------


_IMAGE_ENCODER_ALONE = "image encoder"


@cache
def _patterns(task: str, direction: str) -> list[tuple[re.Pattern[str], Rule, int]]:
    """Patterns of all names of a layout, `published` or `ours`, each with its rule and its index in the rule."""
    patterns = []
    for rule in IMAGE_ENCODER if task == _IMAGE_ENCODER_ALONE else LAYOUTS[task].rules:
        for index, name in enumerate((rule.published,) if direction == "published" else rule.ours):
            pattern = re.escape(name).replace(r"\#", r"(?P<number>\d+)").replace(r"\*", "(?P<kind>weight|bias)")
            patterns.append((re.compile(pattern), rule, index))
    return patterns


def _filled(template: str, blanks: Mapping[str, str]) -> str:
    """A name of a rule with its blanks `#` and `*` filled."""
    return template.replace("#", blanks.get("number", "")).replace("*", blanks.get("kind", ""))


def _find(name: str, task: str, direction: str) -> tuple[Rule, int, dict[str, str]] | None:
    """The rule of a name, the name's index in the rule, and the values of its blanks."""
    for pattern, rule, index in _patterns(task, direction):
        match = pattern.fullmatch(name)
        if match:
            return rule, index, match.groupdict()
    return None


def check_task(task: str) -> str:
    """The task. Raises ValueError if it is unknown."""
    if task not in LAYOUTS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, not {task!r}")
    return task


def fusion_layers(names: Iterable[str]) -> list[int]:
    """Numbers of the text encoder's layers with cross-attention, in order. names: published."""
    pattern = re.compile(r"text_encoder\.(?:bert\.)?encoder\.layer\.(\d+)\.crossattention\.")
    return sorted({int(found.group(1)) for found in map(pattern.match, names) if found})


def text_layers(names: Iterable[str]) -> int:
    """How many layers the text encoder has. names: published."""
    pattern = re.compile(r"text_encoder\.(?:bert\.)?encoder\.layer\.(\d+)\.")
    return 1 + max((int(found.group(1)) for found in map(pattern.match, names) if found), default=-1)


def sniff_task(state: Mapping[str, torch.Tensor]) -> str:
    """The task whose model a published state dict belongs to, one of `TASKS`, recognized from its names.

    Raises:
        ValueError: it belongs to no task.
    """
    modules = {name.partition(".")[0] for name in state}
    if not {"visual_encoder", "text_encoder"} <= modules:
        shown = ", ".join(sorted(modules)[:8]) or "nothing"
        raise ValueError(f"not an ALBEF checkpoint: it has no 'visual_encoder' and 'text_encoder', but {shown}")
    if "text_decoder" in modules:
        return "question_answering"
    if any(name.startswith("text_encoder.cls.") for name in state):
        return "pretraining"
    if "ta_head" in modules:
        return "text_assignment"
    if "cls_head" in modules:
        fusing = fusion_layers(state)
        doubled = bool(fusing) and text_layers(state) == 3 * fusing[0]  # 6 text layers, then twice 6 fusion layers
        rows = state["cls_head.2.bias"].shape[0] if "cls_head.2.bias" in state else 0
        return "visual_reasoning" if doubled and rows == 2 else "visual_entailment"
    if "itm_head" in modules:
        return "retrieval"
    raise ValueError(
        f"an ALBEF checkpoint of no known task: beside the encoders it has {', '.join(sorted(modules)[:8])}; "
        f"name the task, one of {', '.join(TASKS)}"
    )


def tied_names(names: Iterable[str], task: str) -> dict[str, str]:
    """Published names that hold the tensor of another published name -> that name. names: all of a state dict."""
    layout = LAYOUTS[task]
    tied = {}
    if layout.vocabulary_head is not None:
        head, body = layout.vocabulary_head
        tied[f"{head}decoder.weight"] = f"{body}embeddings.word_embeddings.weight"
        tied[f"{head}decoder.bias"] = f"{head}bias"
    if layout.pairs:
        layers = fusion_layers(names)
        for first, second in zip(layers[::2], layers[1::2], strict=False):
            for part in ("key.weight", "key.bias", "value.weight", "value.bias"):
                name = f"text_encoder.encoder.layer.{{}}.crossattention.self.{part}"
                tied[name.format(second)] = name.format(first)
    if layout.has_copies:
        tied |= {copied(name): copied(source) for name, source in tied.items()}
    return tied


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and (one.is_meta or other.is_meta or torch.equal(one, other))


def convert_state(
    state: Mapping[str, torch.Tensor], task: str | None = None
) -> tuple[dict[str, torch.Tensor], KeyReport]:
    """Published names -> the names in a folder of ours. Parts of the state dict may be missing.

    Args:
        task: one of `TASKS`; recognized from the names where left out.

    Returns: the converted state dict, and what became of each published name.

    Raises:
        ValueError: the task is unknown, or two tensors that the publication ties are not equal.
    """
    task = sniff_task(state) if task is None else check_task(task)
    if task != "pretraining":  # published fine-tuned weights lack this prefix, but not all of them could be checked
        state = {re.sub(r"^(text_encoder(?:_m)?)\.bert\.", r"\1.", name): tensor for name, tensor in state.items()}
    tied = tied_names(state, task)
    positions = {f"{text}embeddings.position_ids" for text in LAYOUTS[task].with_copies(LAYOUTS[task].texts)}
    report = KeyReport(task)
    converted: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if name in positions:
            report.dropped[name] = "positions count from 0: nothing to store"
            continue
        source = tied.get(name)
        if source is not None and source in state:
            if not _same(tensor, state[source]):
                raise ValueError(f"{name!r} differs from {source!r}: the publication ties them, and so do we")
            report.tied[name] = source
            continue
        found = _find(source or name, task, "published")
        if found is None:
            report.unexpected.append(name)
            continue
        rule, _, blanks = found
        ours = tuple(_filled(template, blanks) for template in rule.ours)
        converted |= zip(ours, rule.read(tensor), strict=True)
        report.matched[name] = ours
    return converted, report


def convert_image_encoder(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The weights of a timm ViT -> those of a saved transformers ViT, and the names that do not belong to a ViT."""
    converted: dict[str, torch.Tensor] = {}
    unexpected = []
    for name, tensor in state.items():
        found = _find(name, _IMAGE_ENCODER_ALONE, "published")
        if found is None:
            unexpected.append(name)
            continue
        rule, _, blanks = found
        converted |= zip((_filled(template, blanks) for template in rule.ours), rule.read(tensor), strict=True)
    return converted, unexpected


def restore_state(state: Mapping[str, torch.Tensor], task: str) -> dict[str, torch.Tensor]:
    """The names in a folder of ours -> published names. What `convert_state` leaves out is added again.

    Raises:
        ValueError: the published layout has no place for a name, or a part of a published tensor is missing.
    """
    layout = LAYOUTS[check_task(task)]
    parts: dict[str, tuple[Rule, dict[int, torch.Tensor]]] = {}
    unplaced = []
    for name, tensor in state.items():
        found = _find(name, task, "ours")
        if found is not None:
            rule, index, blanks = found
            parts.setdefault(_filled(rule.published, blanks), (rule, {}))[1][index] = tensor
        elif name not in OURS_ALONE:
            unplaced.append(name)
    incomplete = [name for name, (rule, found) in parts.items() if len(found) < len(rule.ours)]
    if unplaced or incomplete:
        raise ValueError(
            f"the published {task} layout has no place for {unplaced[:5]}"
            + (f", and lacks a part of {incomplete[:5]}" if incomplete else "")
        )
    published = {name: rule.write(*(found[i] for i in range(len(rule.ours)))) for name, (rule, found) in parts.items()}
    for text in layout.with_copies(layout.texts):
        table = published.get(f"{text}embeddings.position_embeddings.weight")
        if table is not None:
            published[f"{text}embeddings.position_ids"] = torch.arange(table.shape[0], device=table.device)[None]
    for name, source in tied_names(published, task).items():
        if source in published:
            published[name] = published[source]
    return published


__all__ = [
    "KeyReport",
    "check_task",
    "convert_image_encoder",
    "convert_state",
    "fusion_layers",
    "restore_state",
    "sniff_task",
    "text_layers",
    "tied_names",
]
