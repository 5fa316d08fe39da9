"""Published ALBEF checkpoints -> ours. So far the pre-training layout."""

import re
from collections.abc import Mapping

import torch
from transformers import ViTConfig

from .configuration_albef import AlbefConfig, AlbefTextConfig
from .modeling_albef_pretraining import AlbefForPreTraining

_VISION = (
    (r"cls_token", "embeddings.cls_token"),
    (r"pos_embed", "embeddings.position_embeddings"),
    (r"patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"blocks\.(\d+)\.norm1\.", r"encoder.layer.\1.layernorm_before."),
    (r"blocks\.(\d+)\.norm2\.", r"encoder.layer.\1.layernorm_after."),
    (r"blocks\.(\d+)\.attn\.proj\.", r"encoder.layer.\1.attention.output.dense."),
    (r"blocks\.(\d+)\.mlp\.fc1\.", r"encoder.layer.\1.intermediate.dense."),
    (r"blocks\.(\d+)\.mlp\.fc2\.", r"encoder.layer.\1.output.dense."),
    (r"norm\.", "layernorm."),
)
_FUSED_QKV = re.compile(r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)")


def _convert_vision(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """One timm ViT tensor -> the names of a saved transformers ViT folder."""
    fused = _FUSED_QKV.fullmatch(name)
    if fused:
        layer, kind = fused.groups()
        prefix = f"encoder.layer.{layer}.attention.attention."
        return {
            f"{prefix}{part}.{kind}": chunk.clone()
            for part, chunk in zip(("query", "key", "value"), tensor.chunk(3), strict=True)
        }
    for pattern, replacement in _VISION:
        converted, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return {converted: tensor}
    raise KeyError(name)


def convert_pretraining_state(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Published names -> the names of a saved `AlbefForPreTraining` folder.

    Returns: the converted state, and the published names left out: `position_ids` buffers and the decoder, which is
    tied to the word embeddings (and its bias to `cls.predictions.bias`).

    Raises:
        ValueError: a name that is not part of the pre-training layout.
    """
    converted: dict[str, torch.Tensor] = {}
    dropped = []
    for name, tensor in state.items():
        head, _, rest = name.partition(".")
        online = not head.endswith("_m")
        part = head.removesuffix("_m")
        towers = "albef." if online else "momentum_copy."
        if part == "visual_encoder":
            try:
                for key, value in _convert_vision(rest, tensor).items():
                    converted[f"{towers}vision_model.backbone.{key}"] = value
            except KeyError:
                raise ValueError(f"{name!r} is not part of the published image encoder") from None
        elif part == "text_encoder":
            if rest.endswith("position_ids") or rest.startswith("cls.predictions.decoder."):
                dropped.append(name)
            elif rest.startswith("cls."):
                converted[rest if online else f"momentum_copy.{rest}"] = tensor
            elif rest.startswith("bert."):
                converted[f"{towers}text_model.{rest.removeprefix('bert.')}"] = tensor
            else:
                raise ValueError(f"{name!r} is not part of the published pre-training layout")
        elif part in ("vision_proj", "text_proj"):
            converted[f"{towers}{part.removesuffix('_proj')}_projection.{rest}"] = tensor
        elif part == "itm_head" and online:
            converted[name] = tensor
        elif name == "temp":
            converted["albef.temperature"] = tensor
        elif name in ("image_queue", "text_queue"):
            converted[f"{name}.features"] = tensor.T.contiguous()
        elif name == "queue_ptr":
            converted["image_queue.cursor"] = tensor
            converted["text_queue.cursor"] = tensor.clone()
        else:
            raise ValueError(f"{name!r} is not part of the published pre-training layout")
    return converted, dropped


def infer_config(state: Mapping[str, torch.Tensor], **options: int) -> AlbefConfig:
    """Sizes read from the shapes of a published pre-training checkpoint.

    Args:
        options: what shapes do not tell: `vision_heads`, `text_heads` (hidden size / 64 where left out).
    """
    depth = 1 + max(int(n.split(".")[2]) for n in state if n.startswith("visual_encoder.blocks."))
    layers = [n for n in state if n.startswith("text_encoder.bert.encoder.layer.")]
    patch = state["visual_encoder.patch_embed.proj.weight"]
    embeddings = state["text_encoder.bert.embeddings.word_embeddings.weight"]
    vision_width, text_width = patch.shape[0], embeddings.shape[1]
    grid = round((state["visual_encoder.pos_embed"].shape[1] - 1) ** 0.5)
    queue = state.get("image_queue")
    return AlbefConfig(
        vision_config=ViTConfig(
            hidden_size=vision_width,
            num_hidden_layers=depth,
            num_attention_heads=options.get("vision_heads", vision_width // 64),
            intermediate_size=state["visual_encoder.blocks.0.mlp.fc1.weight"].shape[0],
            image_size=grid * patch.shape[-1],
            patch_size=patch.shape[-1],
            num_channels=patch.shape[1],
            layer_norm_eps=1e-6,
        ),
        text_config=AlbefTextConfig(
            vocab_size=embeddings.shape[0],
            hidden_size=text_width,
            num_hidden_layers=1 + max(int(n.split(".")[5 - 1]) for n in layers),
            num_attention_heads=options.get("text_heads", text_width // 64),
            intermediate_size=state["text_encoder.bert.encoder.layer.0.intermediate.dense.weight"].shape[0],
            max_position_embeddings=state["text_encoder.bert.embeddings.position_embeddings.weight"].shape[0],
            type_vocab_size=state["text_encoder.bert.embeddings.token_type_embeddings.weight"].shape[0],
            fusion_layer=min(int(n.split(".")[4]) for n in layers if ".crossattention." in n),
            encoder_hidden_size=vision_width,
        ),
        projection_dim=state["vision_proj.weight"].shape[0],
        queue_size=65536 if queue is None else queue.shape[1],
    )


def load_original_checkpoint(
    state_dict: Mapping[str, torch.Tensor], config: AlbefConfig | None = None
) -> AlbefForPreTraining:
    """A published pre-training state as `AlbefForPreTraining`.

    Args:
        state_dict: names and tensors as published.
        config: read from the shapes where left out (heads are then assumed to be 64 wide).

    Raises:
        ValueError: a name outside the published layout, or a weight the model needs that is not there.
    """
    config = config or infer_config(state_dict)
    converted, _ = convert_pretraining_state(state_dict)
    dtype = state_dict["temp"].dtype if "temp" in state_dict else torch.float32
    model, report = AlbefForPreTraining.from_pretrained(
        None, config=config, state_dict=converted, output_loading_info=True, dtype=dtype
    )
    problems = {kind: sorted(report[kind]) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if any(problems.values()):
        raise ValueError(f"the checkpoint does not fit the configuration: {problems}")
    return model


__all__ = ["convert_pretraining_state", "infer_config", "load_original_checkpoint"]
