"""torchmultimodal's names of ALBEF's weights -> the published names, from where `state.py` goes on.

torchmultimodal has the models of retrieval and question answering. Its image encoder is torchvision's, its text
encoder ends where fusion begins, and its vocabulary head has its own decoder.
"""

import re
from collections.abc import Mapping

import torch

_VISION = (
    (r"encoder\.class_token", "cls_token"),
    (r"encoder\.conv_proj\.", "patch_embed.proj."),
    (r"encoder\.encoder\.pos_embedding", "pos_embed"),
    (r"encoder\.encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.", r"blocks.\1.norm\2."),
    (r"encoder\.encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_", r"blocks.\1.attn.qkv."),
    (r"encoder\.encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.", r"blocks.\1.attn.proj."),
    (r"encoder\.encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.", r"blocks.\1.mlp.fc1."),
    (r"encoder\.encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.", r"blocks.\1.mlp.fc2."),
    (r"encoder\.encoder\.ln\.", "norm."),
)
_LAYER = (
    (r"attention\.(query|key|value)\.", r"attention.self.\1."),
    (r"attention\.(?:output|output_proj)\.", "attention.output.dense."),
    (r"attention_layernorm\.", "attention.output.LayerNorm."),
    (r"cross_attention\.(query|key|value)\.", r"crossattention.self.\1."),
    (r"cross_attention\.output\.", "crossattention.output.dense."),
    (r"cross_attention_layernorm\.", "crossattention.output.LayerNorm."),
    (r"feedforward\.model\.0\.", "intermediate.dense."),
    (r"feedforward\.model\.[1-9]\.", "output.dense."),
    (r"feedforward_layernorm\.", "output.LayerNorm."),
)
_HEAD = (
    (r"dense\.", "transform.dense."),
    (r"layer_norm\.", "transform.LayerNorm."),
    (r"decoder\.", "decoder."),
)
_FUSED = re.compile(r"attention\.input_proj\.(weight|bias)")
_MODULE = re.compile(
    r"(?:model_with_similarity\.albef_model|model_with_similarity\.model|model)\."
    r"(vision_encoder|text_encoder|multimodal_encoder)(_m)?\.(.+)"
)
_ANSWERS = re.compile(r"answer_decoder(_m)?\.(text_embeddings|multimodal_encoder|prediction_head)\.(.+)")


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str | None:
    """The name by the first rule that fits; None where none does."""
    for pattern, replacement in rules:
        renamed, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return renamed
    return None


def _bert(name: str, tensor: torch.Tensor, prefix: str, first_layer: int) -> dict[str, torch.Tensor] | None:
    """A tensor of a text encoder under its published names; None for an unknown name.

    first_layer: the published number of the encoder's layer 0.
    """
    if name.startswith("embeddings."):
        return {prefix + name.replace("layer_norm.", "LayerNorm."): tensor}
    layer = re.fullmatch(r"(?:encoder\.)?layer\.(\d+)\.(.+)", name)
    if layer is None:
        return None
    start = f"{prefix}encoder.layer.{first_layer + int(layer[1])}."
    fused = _FUSED.fullmatch(layer[2])
    if fused:
        parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
        return {f"{start}attention.self.{part}.{fused[1]}": chunk.clone() for part, chunk in parts}
    renamed = _renamed(layer[2], _LAYER)
    return None if renamed is None else {start + renamed: tensor}


def is_torchmultimodal(state: Mapping[str, torch.Tensor]) -> bool:
    return any(_MODULE.fullmatch(name) for name in state)


def from_torchmultimodal(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """torchmultimodal's names -> published names. Other names stay, and are later reported as unexpected."""
    text_layers = {
        int(found[1])
        for found in (re.search(r"\.text_encoder\.encoder\.layer\.(\d+)\.", name) for name in state)
        if found
    }
    published: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        module, answers = _MODULE.fullmatch(name), _ANSWERS.fullmatch(name)
        found: dict[str, torch.Tensor] | None = None
        if module:
            found = _encoder(module, tensor, len(text_layers))
        elif answers:
            found = _answer_decoder(answers, tensor)
        elif name.startswith("model_with_similarity."):
            found = {name.removeprefix("model_with_similarity."): tensor}
        published |= found or {name: tensor}
    return published


def _encoder(module: re.Match[str], tensor: torch.Tensor, text_layers: int) -> dict[str, torch.Tensor] | None:
    """A tensor of one of the encoders; the layers of the multimodal encoder follow those of the text encoder."""
    encoder, copy, rest = module[1], module[2] or "", module[3]
    if encoder == "vision_encoder":
        renamed = _renamed(rest, _VISION)
        return None if renamed is None else {f"visual_encoder{copy}.{renamed}": tensor}
    return _bert(rest, tensor, f"text_encoder{copy}.", 0 if encoder == "text_encoder" else text_layers)


def _answer_decoder(answers: re.Match[str], tensor: torch.Tensor) -> dict[str, torch.Tensor] | None:
    """A tensor of the decoder of answers. The bias of the vocabulary head has two published names."""
    prefix, rest = f"text_decoder{answers[1] or ''}.", answers[3]
    if answers[2] == "text_embeddings":
        return _bert(f"embeddings.{rest}", tensor, f"{prefix}bert.", 0)
    if answers[2] == "multimodal_encoder":
        return _bert(rest, tensor, f"{prefix}bert.", 0)
    renamed = _renamed(rest, _HEAD)
    found = {} if renamed is None else {f"{prefix}cls.predictions.{renamed}": tensor}
    if rest == "decoder.bias":
        found[f"{prefix}cls.predictions.bias"] = tensor
    return found or None


__all__ = ["from_torchmultimodal", "is_torchmultimodal"]
