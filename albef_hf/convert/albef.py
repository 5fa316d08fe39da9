"""Published ALBEF checkpoints -> our models, and back. The names are in `layouts.py`."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import ViTConfig
from transformers.core_model_loading import revert_weight_conversion

from ..configuration_albef import AlbefConfig, AlbefTextConfig
from ..modeling_albef_loading import AlbefPreTrainedModel
from ..vision_backbone import resize_positions
from .files import check_image_size, read_state, shape_of
from .layouts import LAYOUTS
from .state import (
    KeyReport,
    check_task,
    convert_state,
    fusion_layers,
    restore_state,
    sniff_task,
    text_layers,
)
from .torchmultimodal import from_torchmultimodal, is_torchmultimodal

# Task -> module of albef_hf and class, which are imported when they are needed.
MODELS = {
    "pretraining": ("modeling_albef_pretraining", "AlbefForPreTraining"),
    "retrieval": ("modeling_albef_retrieval", "AlbefForImageTextRetrieval"),
    "question_answering": ("modeling_albef_question_answering", "AlbefForQuestionAnswering"),
    "visual_reasoning": ("modeling_albef_classification", "AlbefForVisualReasoning"),
    "text_assignment": ("modeling_albef_assignment", "AlbefForTextAssignment"),
    "visual_entailment": ("modeling_albef_classification", "AlbefForVisualEntailment"),
}
OPTIONS = ("vision_heads", "text_heads", "image_size")

# Parts that published fine-tuned weights lack, by the beginning of their names, and how they start.
_STARTS = {
    "momentum_copy.": "equal to the weights they follow: the file has no momentum copies",
    "image_queue.": "from random rows: the file has no queues",
    "text_queue.": "from random rows: the file has no queues",
}


def model_class(task: str) -> type[AlbefPreTrainedModel]:
    """The class of a task's model.

    Raises:
        ValueError: the task is unknown, or has no class.
    """
    if task not in MODELS:
        raise ValueError(f"task must be one of {', '.join(MODELS)}, not {task!r}")
    module, name = MODELS[task]
    try:
        return getattr(importlib.import_module(f"albef_hf.{module}"), name)
    except (ModuleNotFoundError, AttributeError):
        raise ValueError(f"this is a {task} checkpoint, but {name} is not part of this version of albef_hf") from None


def infer_config(state: Mapping[str, torch.Tensor], *, task: str | None = None, **options: int) -> AlbefConfig:
    """The configuration of a published checkpoint of any task, from the shapes of its weights.

    Args:
        task: one of `layouts.TASKS`; recognized from the names where left out.
        options: what shapes do not tell: `vision_heads` and `text_heads` (width / 64 where left out), and
            `image_size`, to use the model at another image size than it was trained at.

    Raises:
        ValueError: an option is unknown, or weights are missing from which sizes are read.
    """
    task = sniff_task(state) if task is None else check_task(task)
    unknown = set(options) - set(OPTIONS)
    if unknown:
        raise ValueError(f"unknown option {sorted(unknown)[0]!r}; there are {', '.join(OPTIONS)}")
    text = "text_encoder.bert." if any(name.startswith("text_encoder.bert.") for name in state) else "text_encoder."

    def shape(name: str) -> torch.Size:
        return shape_of(state, name)

    vision_width, channels, _, patch = shape("visual_encoder.patch_embed.proj.weight")
    vocabulary, text_width = shape(f"{text}embeddings.word_embeddings.weight")
    grid = round((shape("visual_encoder.pos_embed")[1] - 1) ** 0.5)
    check_image_size(options.get("image_size"), patch)
    fc1 = shape("visual_encoder.blocks.0.mlp.fc1.weight")
    shape("visual_encoder.cls_token")
    fusing = fusion_layers(state)
    if not fusing:
        raise ValueError("the checkpoint has no layer with cross-attention, so it is unknown where fusion begins")
    projections: dict[str, Any] = {}
    if "vision_proj.weight" in state:
        projections["projection_dim"] = state["vision_proj.weight"].shape[0]
    if "image_queue" in state:
        projections["queue_size"] = state["image_queue"].shape[1]
    return AlbefConfig(
        vision_config=ViTConfig(
            hidden_size=vision_width,
            num_hidden_layers=1 + max(int(n.split(".")[2]) for n in state if n.startswith("visual_encoder.blocks.")),
            num_attention_heads=_heads(options, "vision_heads", vision_width),
            intermediate_size=fc1[0],
            image_size=options.get("image_size", grid * patch),
            patch_size=patch,
            num_channels=channels,
            layer_norm_eps=1e-6,
        ),
        text_config=AlbefTextConfig(
            vocab_size=vocabulary,
            hidden_size=text_width,
            num_hidden_layers=text_layers(state),
            num_attention_heads=_heads(options, "text_heads", text_width),
            intermediate_size=shape(f"{text}encoder.layer.0.intermediate.dense.weight")[0],
            max_position_embeddings=shape(f"{text}embeddings.position_embeddings.weight")[0],
            type_vocab_size=shape(f"{text}embeddings.token_type_embeddings.weight")[0],
            fusion_layer=fusing[0],
            encoder_hidden_size=vision_width,
            images_per_text=2 if LAYOUTS[task].pairs else 1,
        ),
        **projections,
    )


def _heads(options: Mapping[str, Any], name: str, width: int) -> int:
    """How many heads share a width: as given, or heads of 64. Raises: ValueError: that does not come out even."""
    heads = options.get(name, width // 64)
    if heads < 1 or width % heads or (name not in options and width % 64):
        raise ValueError(f"{heads} heads do not share a width of {width}, and shapes do not tell: give {name}")
    return heads


def _resize_tables(converted: dict[str, torch.Tensor], config: AlbefConfig, report: KeyReport) -> None:
    """Resize the position tables of the image encoders, if the configuration has another image size. Bicubic."""
    vision = config.vision_config
    if not isinstance(vision.image_size, int):
        return
    side = vision.image_size // vision.patch_size
    for name in converted:
        if not name.endswith("backbone.embeddings.position_embeddings"):
            continue
        tokens = converted[name].shape[1]
        if tokens != side * side + 1:
            converted[name] = resize_positions(converted[name], side * side + 1)
            report.changed[name] = f"from {tokens} to {side * side + 1} positions, for {vision.image_size} pixels"


def _memory(tensor: torch.Tensor) -> tuple[int, torch.Size]:
    """The same for tensors that the model ties."""
    return tensor.data_ptr(), tensor.shape


def _account(model: AlbefPreTrainedModel, converted: Mapping[str, torch.Tensor], report: KeyReport) -> None:
    """Report what the model has and the checkpoint lacks: `started` by design, or `missing`."""
    state = saved_state(model)
    # Of tensors that the model ties, only one comes from the checkpoint.
    loaded = {_memory(tensor) for name, tensor in state.items() if name in converted and tensor.numel()}
    for name, tensor in state.items():
        if name in converted or _memory(tensor) in loaded:
            continue
        part = next((prefix for prefix in _STARTS if name.startswith(prefix)), None)
        if name.endswith((".updates", ".ids")):
            report.started[name] = "from nothing: the publication does not keep it"
        elif part is None or any(other.startswith(part) for other in converted):
            report.missing.append(name)  # a part may be absent as a whole; where some of it came, the rest got lost
        else:
            report.started[name] = _STARTS[part]


def saved_state(model: AlbefPreTrainedModel) -> dict[str, torch.Tensor]:
    """The state dict under the names of a saved folder. For a ViT they differ from the names in the live module."""
    return revert_weight_conversion(model, model.state_dict())


def convert_checkpoint(
    source: str | Path | Mapping[str, Any],
    config: AlbefConfig | None = None,
    *,
    task: str | None = None,
    ignore: Sequence[str] = (),
    **options: int,
) -> tuple[AlbefPreTrainedModel, KeyReport]:
    """`load_original_checkpoint`, which also returns the report of what became of each name."""
    state = read_state(source)
    if is_torchmultimodal(state):
        state = from_torchmultimodal(state)
    ignored = {name: "as asked" for name in state if ignore and name.startswith(tuple(ignore))}
    state = {name: tensor for name, tensor in state.items() if name not in ignored}
    task = task or sniff_task(state)
    model_type = model_class(task)
    if config is None:
        config = infer_config(state, task=task, **options)
    elif options:
        raise ValueError(f"{', '.join(options)} belong into the configuration that is given")
    converted, report = convert_state(state, task)
    report.dropped |= ignored
    where = source if isinstance(source, (str, Path)) else "the state dict"
    if report.unexpected:
        raise ValueError(f"{where} has names outside the published {task} layout:\n{report}")
    if isinstance(source, Mapping):
        # Loading keeps the tensors themselves, and training the model must not change those of the caller.
        converted = {name: tensor.clone() for name, tensor in converted.items()}
    _resize_tables(converted, config, report)
    model, loading = model_type.from_pretrained(
        None,
        config=config,
        state_dict=converted,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are reported below
        dtype=state["visual_encoder.cls_token"].dtype,
    )
    wrong = [
        f"{name}: {tuple(found)} in the checkpoint, {tuple(expected)} in the model"
        for name, found, expected in loading["mismatched_keys"]
    ]
    if wrong:
        raise ValueError(f"{where} does not fit the configuration: " + "; ".join(sorted(wrong)[:5]))
    report.unexpected += sorted(loading["unexpected_keys"])
    _account(model, converted, report)
    if not report.explained:
        raise ValueError(f"{where} does not fit {model_type.__name__}:\n{report}")
    return model, report


def load_original_checkpoint(
    path_or_state_dict: str | Path | Mapping[str, Any],
    config: AlbefConfig | None = None,
    *,
    task: str | None = None,
    ignore: Sequence[str] = (),
    **options: int,
) -> AlbefPreTrainedModel:
    """Load a published ALBEF checkpoint as one of our models.

    Its task may be pre-training, retrieval, question answering, visual reasoning (NLVR2), text assignment, or visual
    entailment. Momentum copies and queues are kept where the file has them.

    Args:
        path_or_state_dict: a `.pth`, `.pt` or `.safetensors` file, or its content. The weights may be the whole
            content or under `model` or `state_dict`, and `module.` may precede their names. Nothing in the file is
            executed.
        config: read from the shapes of the weights where left out.
        task: one of `layouts.TASKS`; recognized from the names where left out.
        ignore: names that begin with one of these are left out.
        options: see `infer_config`.

    Raises:
        ValueError: the file cannot be read safely, a name is not in the published layout, a weight that the model
            needs is missing, or a weight does not fit the configuration.
    """
    return convert_checkpoint(path_or_state_dict, config, task=task, ignore=ignore, **options)[0]


def export_original_checkpoint(model: AlbefPreTrainedModel, momentum: bool = True) -> dict[str, torch.Tensor]:
    """The weights of one of our models under the published names, for use with the published code.

    Args:
        momentum: include momentum copies and queues, as the published training scripts save them. The published
            fine-tuned weights do not have them.

    Returns: a state dict. The published scripts read it from a file made by `torch.save({"model": state}, path)`.

    Raises:
        ValueError: the model has no published layout, or its image encoder is not a ViT.
    """
    tasks = [task for task, (_, name) in MODELS.items() if name == type(model).__name__]
    if not tasks:
        raise ValueError(
            f"{type(model).__name__} has no published layout; {', '.join(n for _, n in MODELS.values())} do"
        )
    state = saved_state(model)
    if not momentum:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(tuple(_STARTS))}
    return restore_state(state, tasks[0])


__all__ = [
    "MODELS",
    "convert_checkpoint",
    "convert_state",
    "export_original_checkpoint",
    "infer_config",
    "load_original_checkpoint",
    "model_class",
    "saved_state",
    "sniff_task",
]
