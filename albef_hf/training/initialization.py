"""Building a model and its processor from arguments. Weights that cannot be loaded are an error."""

import copy
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import CONFIG_MAPPING

from ..configuration_albef import AlbefConfig, AlbefTextConfig
from ..modeling_albef_loading import AlbefPreTrainedModel
from ..modeling_albef_pretraining import AlbefForPreTraining
from ..processing_albef import AlbefProcessor
from ..vision_backbone import VisionBackbone
from .arguments import ModelArguments
from .text_encoder import choose_tokenizer, load_text_encoder, text_encoder_fields
from .text_encoder import load_tokenizer as load_tokenizer
from .vision_weights import checked_fields, fit_positions, set_image_size, vision_fields

Model = TypeVar("Model", bound=AlbefPreTrainedModel)


def _load_by_name(
    target: nn.Module, source: dict[str, torch.Tensor], expected: tuple[str, ...], where: str, allow: bool
) -> list[str]:
    """Load weights by name, position tables resized. What is missing or left over is an error unless a part of its
    name is `expected`, or all is allowed.

    Returns: names that are missing or left over.
    """
    current = target.state_dict()
    source = {
        name: fit_positions(name, tensor, current[name].shape) if name in current else tensor
        for name, tensor in source.items()
    }
    fitting = {
        name: tensor for name, tensor in source.items() if name in current and current[name].shape == tensor.shape
    }
    missing = [name for name in current if name not in fitting and not any(part in name for part in expected)]
    left = [name for name in source if name not in fitting and not any(part in name for part in expected)]
    if (missing or left) and not allow:
        shapes = [f"{n}: {tuple(source[n].shape)}, here {tuple(current[n].shape)}" for n in left if n in current]
        other = f"; other shapes: {'; '.join(shapes[:3])}" if shapes else ""
        raise ValueError(
            f"weights of {where} do not fit: missing {missing[:5]}, unexpected {left[:5]}{other}; set "
            "allow_missing_weights to start all the same (in some models shapes depend on image_size)"
        )
    target.load_state_dict(fitting, strict=False)
    return missing + left


def _load_vision(target: VisionBackbone, source: dict[str, torch.Tensor], arguments: ModelArguments) -> list[str]:
    pooler = () if target.pooling == "pooler" else ("pooler.", "head.")
    unused = (*pooler, *target.unused, "mask_token", "num_batches_tracked")
    where = str(arguments.vision_model)
    return _load_by_name(target.backbone, source, unused, where, arguments.allow_missing_weights)


def build_vision_backbone(arguments: ModelArguments, trained: bool = True) -> VisionBackbone:
    """Build an image encoder by itself, for the image-only methods.

    Args:
        trained: with the weights of `vision_model`; otherwise its architecture with random weights.

    Raises:
        ValueError: an unknown model type, or weights that do not fit.
    """
    fields, source = vision_fields(arguments)
    model_type = fields.pop("model_type")
    backbone = VisionBackbone(CONFIG_MAPPING[model_type](**fields), arguments.vision_pooling)
    if source is not None and trained:
        _load_vision(backbone, source, arguments)
    return backbone


# Fields of AlbefConfig about training, for the arguments to set. The others describe the weights of a checkpoint.
RECIPE = [
    "queue_size",
    "momentum",
    "temperature_minimum",
    "alpha",
    "alpha_ramp_epochs",
    "same_image",
    "same_caption",
    "gather_negatives",
    "published_defects",
]


def _in_words(what: str, name: str, lacking: list[str]) -> str:
    more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
    return f"{what} from {name}: " + (f"new, random: {', '.join(lacking[:5])}{more}" if lacking else "every weight")


def build_albef(arguments: ModelArguments) -> tuple[AlbefForPreTraining, AlbefProcessor]:
    """Build ALBEF for pre-training, from `model_path` or from encoders, and its processor.

    Raises:
        ValueError: weights or the vocabulary do not fit, or an encoder cannot serve; says what can.
    """
    if arguments.model_path is not None:
        return build_task_model(AlbefForPreTraining, arguments)
    text_fields = dict(arguments.text_config)
    if arguments.text_model is not None:
        text_fields = text_encoder_fields(arguments.text_model) | text_fields
    tokenizer = choose_tokenizer(arguments.tokenizer, arguments.text_model)
    text_fields = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id} | text_fields
    text_fields.setdefault("pad_token_id", tokenizer.pad_token_id)
    vision, source = vision_fields(arguments)
    shared = (*RECIPE, "vision_pooling", "projection_dim", "temperature")
    with checked_fields("text_config"):
        text_config = AlbefTextConfig(**text_fields)
    config = AlbefConfig(
        vision_config=vision,
        text_config=text_config,
        **{name: getattr(arguments, name) for name in shared},
    )
    processor = AlbefProcessor.from_parts(tokenizer, arguments.image_size)
    processor.check_text_model(config.text_config)  # type: ignore[arg-type]
    model = AlbefForPreTraining(config)
    allow, report = arguments.allow_missing_weights, []
    if source is not None:
        lacking = _load_vision(model.albef.vision_model, source, arguments)
        report.append(_in_words("image encoder", str(arguments.vision_model), lacking))
    if arguments.text_model is not None:
        text = load_text_encoder(arguments.text_model)
        new = ("crossattention", "pooler.", "position_ids", "token_type_ids")
        lacking = _load_by_name(model.albef.text_model, text.body, new, arguments.text_model, allow)
        if text.head:  # a sentence encoder such as MiniLM has none, and ours stays random
            lacking += _load_by_name(model.cls, text.head, ("decoder.",), arguments.text_model, allow)
        report += [text.report, *([_in_words("text encoder", arguments.text_model, lacking)] if lacking else [])]
    if report:
        model.loading_report = "; ".join([*report, "what these lack is new"])
    model.reset_momentum()
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model, processor


def with_image_size(model: Model, size: int) -> Model:
    """The same model for pictures of another size. Position tables are interpolated, in momentum copies too."""
    config = copy.deepcopy(model.config)
    vision: Any = config.vision_config
    fields = vision.to_dict()
    set_image_size(fields, size)
    wanted_size = {name: fields[name] for name in ("image_size", "model_args") if name in fields}
    if all(getattr(vision, name, None) == value for name, value in wanted_size.items()):
        return model
    for name, value in wanted_size.items():
        setattr(vision, name, value)
    resized = type(model)(config)
    wanted, state = resized.state_dict(), model.state_dict()
    for name, tensor in state.items():
        if wanted[name].shape != tensor.shape:
            state[name] = fit_positions(name, tensor, wanted[name].shape)
            if wanted[name].shape != state[name].shape:
                raise ValueError(
                    f"{name} of a {vision.model_type!r} backbone cannot be resized to image_size {size}: it is "
                    f"{tuple(tensor.shape)} and would have to be {tuple(wanted[name].shape)}"
                )
    resized.load_state_dict(state)
    resized.loading_report = f"{model.loading_report}; position tables resized to pictures of {size} pixels"  # type: ignore[attr-defined]
    return resized


def build_task_model(
    model_class: type[Model], arguments: ModelArguments, classes: Sequence[str] | None = None
) -> tuple[Model, AlbefProcessor]:
    """Build the model of a task and its processor, from `model_path` or from encoders as in pre-training.

    The checkpoint decides the architecture; the arguments decide how to train (`queue_size`, `alpha` ...) and the size
    of pictures, to which position tables are resized. The model's `loading_report` says which weights are new.

    Args:
        classes: the names of the classes, for a model that has none of its own.

    Raises:
        ValueError: there is no such checkpoint, or it lacks weights of the encoders.
    """
    if arguments.model_path is None:
        start, processor = build_albef(arguments)
        copied = ("momentum_copy.", "image_queue.", "text_queue.")  # the new model makes its own
        state = {name: tensor for name, tensor in start.state_dict().items() if not name.startswith(copied)}
        _name_classes(start.config, classes)
        model = model_class.from_pretrained(None, config=start.config, state_dict=state)
        model.loading_report = f"{start.loading_report}; then {model.loading_report}"  # type: ignore[attr-defined]
    else:
        model, processor = _load_task_model(model_class, arguments.model_path, arguments, classes)
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model, processor


def _name_classes(config: Any, classes: Sequence[str] | None) -> None:
    if classes is not None:
        config.id2label = dict(enumerate(classes))
        config.label2id = {name: number for number, name in enumerate(classes)}


# What a model to start from has of its own.
_OF_THE_MODEL = ("vision_model", "vision_config", "text_model", "text_config", "tokenizer")


def _load_task_model(
    model_class: type[Model], path: str, arguments: ModelArguments, classes: Sequence[str] | None = None
) -> tuple[Model, AlbefProcessor]:
    given = [name for name in _OF_THE_MODEL if getattr(arguments, name)]
    if given:
        raise ValueError(
            f"{', '.join(given)} would have no effect: {path} has encoders and a tokenizer of its own. Leave "
            "them out, or leave out model_path"
        )
    try:
        config = AlbefConfig.from_pretrained(path)
        for name in RECIPE:
            setattr(config, name, getattr(arguments, name))
        _name_classes(config, classes)
        model, report = model_class.from_pretrained(path, config=config, output_loading_info=True)
        processor = AlbefProcessor.from_pretrained(path)
    except OSError as error:
        raise ValueError(f"{path!r} is neither a model folder nor found on the Hub: {error}") from error
    lacking = sorted(
        name
        for name in report["missing_keys"]
        if name.startswith("albef.") and not any(re.search(part, name) for part in model_class.starts)
    )
    if lacking and not arguments.allow_missing_weights:
        raise ValueError(
            f"{path} lacks weights of {model_class.__name__}: {', '.join(lacking[:5])}; "
            "set allow_missing_weights to start them at random"
        )
    processor.image_processor.size = {"height": arguments.image_size, "width": arguments.image_size}
    return with_image_size(model, arguments.image_size), processor


def load_trained_model(model_class: type[Model], path: str) -> tuple[Model, AlbefProcessor]:
    """Load the trained model of a task, and its processor.

    Raises:
        ValueError: there is no such model, or it lacks weights of this class.
    """
    try:
        model, report = model_class.from_pretrained(path, output_loading_info=True)
        processor = AlbefProcessor.from_pretrained(path)
    except OSError as error:
        raise ValueError(f"{path!r} is neither a model folder nor found on the Hub: {error}") from error
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise ValueError(f"{path} has not been trained as {model_class.__name__}: it lacks {', '.join(lacking[:5])}")
    return model, processor


__all__ = [
    "build_albef",
    "build_task_model",
    "build_vision_backbone",
    "load_tokenizer",
    "load_trained_model",
    "vision_fields",
    "with_image_size",
]
