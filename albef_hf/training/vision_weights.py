"""Image encoders to start from: their configuration at the size of the pictures, and their weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import timm
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel

from ..data.hints import nearest_hint
from ..vision_backbone import resize_positions
from .arguments import ModelArguments
from .foreign import foreign_config, foreign_weights

# Parts of a folder for images and texts that encode images.
_VISION_PARTS = ("vision_config", "image_config")

_POSITIONS = ("position_embeddings", "position_embedding.weight", "position_embedding", "pos_embed")


def set_image_size(fields: dict[str, Any], size: int) -> None:
    """Set the size of pictures in the fields of an image encoder's configuration, where it has one."""
    if fields["model_type"] == "timm_wrapper":
        chosen = dict(fields.get("model_args") or {})
        known = timm.models.get_pretrained_cfg(fields.get("architecture") or "resnet50", allow_unregistered=True)
        fixed = known is not None and known.fixed_input_size and tuple(known.input_size[-2:]) != (size, size)
        if "img_size" in chosen or (fixed and not chosen.get("dynamic_img_size")):
            fields["model_args"] = {**chosen, "img_size": size}
        return
    default = fields.get("image_size", getattr(CONFIG_MAPPING[fields["model_type"]](), "image_size", None))
    if default is not None:
        fields["image_size"] = size if isinstance(default, int) else [size, size]


def vision_part(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the image encoder of a model for images and texts; another model is one itself."""
    parts = (getattr(config, name, None) for name in _VISION_PARTS)
    return next((part for part in parts if isinstance(part, PreTrainedConfig)), config)


def _vision_part(model: PreTrainedModel) -> tuple[str, PreTrainedModel]:
    """The image encoder of a model for images and texts, and its name there; another model is one itself."""
    part = vision_part(model.config)
    if part is model.config:
        return "", model
    for name, module in model.named_modules():
        if name and isinstance(module, PreTrainedModel) and type(module.config) is type(part):
            return f"{name}.", module
    raise ValueError(f"a {model.config.model_type!r} model has no image encoder by itself among its parts")


def _load_source(name: str) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
    """Configuration and weights of an image encoder; of a folder for images and texts, those of its image encoder.
    Weights that the folder lacks are left out."""
    try:
        config = foreign_config(name)
        model, report = foreign_weights(AutoModel, name, config=config, output_loading_info=True)
        prefix, part = _vision_part(model)
    except (OSError, KeyError) as error:
        raise ValueError(f"vision_model {name!r} is neither a model folder nor found on the Hub: {error}") from error
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"vision_model {name!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    missing = set(report["missing_keys"])
    return part.config, {key: value for key, value in part.state_dict().items() if prefix + key not in missing}


@contextmanager
def checked_fields(where: str) -> Iterator[None]:
    """Raises: ValueError where a configuration is made of values of the wrong type. where: the setting they are in."""
    try:
        yield
    except StrictDataclassError as error:
        raise ValueError(f"{where}: {' '.join(str(error).split())}") from error


def _check_fields(model_type: str, given: Mapping[str, Any]) -> None:
    """Check the names of fields. transformers would take any name, and change nothing."""
    example = CONFIG_MAPPING[model_type]()
    known = {*vars(example), *type(example).attribute_map, "model_type"}
    for name in given:
        if name not in known:
            hint = nearest_hint(name, sorted(known), f"see {type(example).__name__}")
            raise ValueError(f"vision_config: a {model_type!r} model has no field {name!r}; {hint}")


def vision_fields(arguments: ModelArguments) -> tuple[dict[str, Any], dict[str, torch.Tensor] | None]:
    """The fields of the image encoder's configuration, and the weights to start from, if there are any.

    Raises:
        ValueError: the fields have no `model_type`, or an unknown one; a field has a value of the wrong type; the
            folder cannot be loaded.
    """
    fields: dict[str, Any] | None = dict(arguments.vision_config) or None
    weights: dict[str, torch.Tensor] | None = None
    if arguments.vision_model is not None:
        config, weights = _load_source(arguments.vision_model)
        fields = config.to_dict() | (fields or {})
        for name in ("dtype", "torch_dtype"):  # weights in half precision are a way to store them
            fields.pop(name, None)
    elif fields is None:
        fields = {"model_type": "vit", "layer_norm_eps": 1e-6}
    model_type = fields.get("model_type")
    if model_type is None:
        raise ValueError(f"vision_config needs a model_type, for example vit, resnet or timm_wrapper: {fields}")
    if model_type not in CONFIG_MAPPING:
        raise ValueError(f"unknown model_type {model_type!r}; {nearest_hint(model_type, CONFIG_MAPPING)}")
    _check_fields(model_type, arguments.vision_config)
    set_image_size(fields, arguments.image_size)
    with checked_fields("vision_config"):
        CONFIG_MAPPING[model_type](**{name: value for name, value in fields.items() if name != "model_type"})
    return fields, weights


def fit_positions(name: str, table: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A position table resized to another shape, if the weight is one whose number of positions alone differs.

    Args:
        name: of the weight.
        table: (positions, width) or (1, positions, width).
        shape: that the model has.
    """
    tables = name.endswith(_POSITIONS) and table.dim() in (2, 3) and len(shape) == table.dim()
    if not tables or table.shape[-1] != shape[-1] or table.shape[-2] == shape[-2]:
        return table
    return resize_positions(table.reshape(1, *table.shape[-2:]), shape[-2]).reshape(shape)
