"""Image encoders in small, and what is found out about each. `python tests/backbone_cases.py` writes the tables of
docs/backbones.md; tests/test_backbones.py compares them with its own run."""

import functools
import re
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from transformers import CONFIG_MAPPING

from albef_hf.training.arguments import ModelArguments
from albef_hf.training.initialization import build_vision_backbone
from albef_hf.vision_backbone import VisionBackbone

PAGE = Path(__file__).parent.parent / "docs" / "backbones.md"
SIZE, LARGER = 64, 96

VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 16}
PLAIN = {name: value for name, value in VIT.items() if name != "intermediate_size"}
SWIN = {"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "patch_size": 4}
TWO = {"hidden_sizes": [8, 16], "depths": [1, 1]}
FOUR = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
PYRAMID = {**FOUR, "num_attention_heads": [1, 1, 2, 2], "mlp_ratios": [2, 2, 2, 2]}
STAGES = {"num_encoder_blocks": 2, "patch_sizes": [7, 3], "strides": [4, 2]}
SEGFORMER = {**TWO, **STAGES, "sr_ratios": [2, 1], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2]}
SHRINK = [["Subsample", 4, 4, 4, 2, 2], ["Subsample", 4, 6, 4, 2, 2]]
HIERA = {"embed_dim": 12, "depths": [1, 1, 1], "num_heads": [1, 2, 2], "num_query_pool": 2}
MASK_UNITS = {"masked_unit_size": [4, 4], "masked_unit_attention": [True, True, False]}
HGNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "stem_channels": [3, 8, 8]}
LEVIT = {"hidden_sizes": [16, 24, 32], "num_attention_heads": [2] * 3, "depths": [1] * 3, "key_dim": [4] * 3}
MOBILEVIT = {"hidden_sizes": [8, 12, 16], "neck_hidden_sizes": [8, 8, 8, 8, 12, 12, 16], "num_attention_heads": 2}

FAMILIES = {
    "aimv2_vision_model": VIT,
    "beit": VIT,
    "bit": {**TWO, "embedding_size": 8, "num_groups": 4},
    "chinese_clip_vision_model": VIT,
    "clip_vision_model": VIT,
    "convnext": {**TWO, "num_stages": 2},
    "convnextv2": {**TWO, "num_stages": 2},
    "cvt": {"embed_dim": [8, 8, 16], "num_heads": [1, 2, 2], "depth": [1, 2, 3]},
    "data2vec-vision": VIT,
    "deit": VIT,
    "dinov2": PLAIN,
    "dinov2_with_registers": PLAIN,
    "dinov3_convnext": FOUR,
    "dinov3_vit": {**VIT, "num_register_tokens": 2},
    "donut-swin": SWIN,
    "efficientnet": {"width_coefficient": 0.1, "depth_coefficient": 0.1, "hidden_dim": 128, "batch_norm_eps": 1e-6},
    "focalnet": {"embed_dim": 8, "depths": [1, 1], "focal_levels": [1, 1], "focal_windows": [3, 3], "patch_size": 4},
    "glpn": {**SEGFORMER, "decoder_hidden_size": 8},
    "hiera": {**HIERA, **MASK_UNITS},
    "ijepa": VIT,
    "internvl_vision": {**VIT, "patch_size": [16, 16]},
    "levit": {**LEVIT, "down_ops": SHRINK, "attention_ratio": [2] * 3, "mlp_ratio": [2] * 3},
    "maskformer-swin": SWIN,
    "mlcd_vision_model": VIT,
    "mobilenet_v1": {"depth_multiplier": 0.25},
    "mobilenet_v2": {"depth_multiplier": 0.25},
    "mobilevit": MOBILEVIT,
    "mobilevitv2": {"width_multiplier": 0.25},
    "pixio": PLAIN,
    "poolformer": {**TWO, **STAGES, "padding": [2, 1]},
    "pvt": {**PYRAMID, "sequence_reduction_ratios": [4, 2, 1, 1]},
    "pvt_v2": {**PYRAMID, "sr_ratios": [4, 2, 1, 1]},
    "radio": PLAIN,
    "regnet": {**FOUR, "embedding_size": 8, "groups_width": 4},
    "resnet": {**TWO, "embedding_size": 8, "layer_type": "basic"},
    "sam_vision_model": {**PLAIN, "output_channels": 16, "num_pos_feats": 8, "global_attn_indexes": [1]},
    "sapiens2": VIT,
    "segformer": SEGFORMER,
    "siglip_vision_model": VIT,
    "small_resnet": {**TWO, "embedding_size": 8, "layer_type": "basic"},
    "swiftformer": {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    "swin": SWIN,
    "swinv2": SWIN,
    "tipsv2_vision_model": PLAIN,
    "vit": VIT,
    "vit_mae": VIT,
    "vit_msn": VIT,
    "vitdet": PLAIN,
}

# Families that cannot serve -> why, as the error says it or in other words.
REFUSED = {
    "idefics3_vision": (VIT, "it looks at the numbers to decide what to compute"),
    "pixtral": ({**VIT, "head_dim": 12}, "it joins the pictures of a batch into one sequence"),
    "siglip2_vision_model": (VIT, "needs pixel_attention_mask, spatial_shapes beside"),
    "swin2sr": (SWIN, "cannot serve"),
    "timesformer": (VIT, "it reads videos"),
    "timm_backbone": ({"backbone": "resnet10t"}, "its folders cannot be loaded: use timm_wrapper"),
    "videomae": (VIT, "it reads videos"),
    "vivit": ({name: value for name, value in VIT.items() if name != "patch_size"}, "it reads videos"),
    "yolos": (VIT, "tokens are not 1 prefix tokens and a square grid"),
}
IN_OTHER_WORDS = {
    "siglip2_vision_model": "it takes patches, with pixel_attention_mask and spatial_shapes",
    "swin2sr": "it enlarges pictures (super-resolution)",
    "yolos": "it is a detector, with tokens for boxes",
}

TOWER = {"embed_dim": 24, "depth": 1, "num_heads": 2}
WINDOWS = {"window_size": 4, "embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2]}
TIMM = {
    "beit_base_patch16_224": TOWER,
    "cait_xxs24_224": TOWER,
    "convnext_tiny": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]},
    "deit3_small_patch16_224": TOWER,
    "deit_tiny_distilled_patch16_224": TOWER,
    "densenet121": {"growth_rate": 4, "block_config": [1, 1]},
    "eva02_base_patch16_clip_224": {**TOWER, "num_heads": 2},
    "mobilenetv3_small_050": {},
    "pvt_v2_b0": {"depths": [1] * 4, "embed_dims": [8, 8, 16, 16], "num_heads": [1, 1, 2, 2]},
    "resnet18": {"channels": [8, 8, 16, 16]},
    "swin_tiny_patch4_window7_224": WINDOWS,
    "swinv2_tiny_window8_256": WINDOWS,
    "vit_base_patch16_clip_224": TOWER,
    "vit_base_patch16_siglip_224": TOWER,
    "vit_small_patch16_dinov3": TOWER,
    "xcit_nano_12_p16_224": TOWER,
}


def fields_of(name: str) -> dict:
    if name in TIMM:
        return {"model_type": "timm_wrapper", "architecture": name, "model_args": dict(TIMM[name])}
    return {"model_type": name, **FAMILIES.get(name, REFUSED.get(name, ({},))[0])}


def is_installed(name: str) -> bool:
    if name in TIMM:
        import timm

        return timm.is_model(name)
    return name in CONFIG_MAPPING


def build(name: str, pooling: str = "mean", size: int = SIZE, folder: str | None = None) -> VisionBackbone:
    torch.manual_seed(0)
    config = {"vision_config": fields_of(name)} if folder is None else {"vision_model": folder}
    backbone = build_vision_backbone(ModelArguments(image_size=size, vision_pooling=pooling, **config))
    if folder is None:
        with torch.no_grad():
            for parameter in backbone.parameters():  # what starts as a constant would hide faults
                if not parameter.requires_grad:
                    continue
                if (parameter == parameter.flatten()[0]).all():
                    parameter += 0.1 * torch.randn_like(parameter)
                elif parameter.dim() == 4:  # in deep networks of small filters nothing would come through
                    parameter.normal_(std=(2 * len(parameter) / parameter.numel()) ** 0.5)
            fill_statistics(backbone)
    return backbone


def fill_statistics(backbone: VisionBackbone) -> None:
    """Batch norms get the statistics of a batch: with those that they start with, little would come through."""
    norms = [module for module in backbone.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    if norms:
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        backbone.train()(pictures(8, backbone.size[0] if backbone.takes_one_size else SIZE))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def pictures(count: int = 3, size: int = SIZE) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(size))


def without_gradient(backbone: VisionBackbone) -> list[str]:
    """Parameters to train that get no gradient from the pooled vector, and frozen ones that would get one."""
    backbone.zero_grad()
    backbone.train()(pictures(4)).pooled.square().sum().backward()
    return [name for name, p in backbone.named_parameters() if p.requires_grad != (p.grad is not None)]


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


@functools.cache
def built(name: str) -> dict[str, VisionBackbone]:
    """A backbone of a family for each pooling that it can be built with."""
    found = {}
    for pooling in ("cls", "mean", "pooler"):
        try:
            found[pooling] = build(name, pooling)
        except ValueError as error:
            assert "no class token" in str(error) or "pooler" in str(error), error
    return found


def other_size(backbone: VisionBackbone) -> bool:
    """Whether a backbone for small pictures takes larger ones too."""
    try:
        tokens = backbone(pictures(1, LARGER)).tokens
    except ValueError as error:
        assert f"takes pictures of {SIZE} x {SIZE} pixels only, not of {LARGER} x {LARGER}" in str(error)
        return False
    assert tokens.shape[1] - backbone.prefix_tokens > 1
    return True


def other_checkpoint(name: str, folder: str) -> bool:
    """Whether the weights of a backbone for small pictures start one for larger pictures."""
    try:
        backbone = build(name, size=LARGER, folder=folder).eval()
    except ValueError as error:
        assert "do not fit" in str(error), error
        return False
    assert torch.isfinite(backbone(pictures(1, LARGER)).pooled).all()
    return True


@torch.no_grad()
def shown(name: str) -> str:
    """The row of a family: its tokens, its poolings, sizes, and what is frozen. A fault is an AssertionError."""
    backbone = built(name)["mean"].eval()
    output, again, alone = backbone(pictures()), backbone(pictures()), backbone(pictures()[1:2])
    side = round((output.tokens.shape[1] - backbone.prefix_tokens) ** 0.5)
    assert output.tokens.shape == (3, backbone.prefix_tokens + side * side, backbone.width)
    assert output.pooled.shape == (3, backbone.width)
    assert difference(output.pooled, output.tokens[:, backbone.prefix_tokens :].mean(1)) < 1e-4, "another mean"
    assert torch.equal(output.tokens, again.tokens), "random in evaluation"
    scale = float(output.tokens.abs().max())
    assert 0 < scale < 1e4 and difference(alone.tokens, output.tokens[1:2]) < 1e-4 * max(scale, 1), "mixes pictures"
    assert difference(output.pooled[0], output.pooled[1]) > 1e-6, "blind"
    with tempfile.TemporaryDirectory() as folder:
        backbone.backbone.save_pretrained(folder)
        loaded = build(name, folder=folder).eval()
        assert torch.equal(loaded(pictures()).tokens, output.tokens), "not as saved"
        assert {n for n, p in loaded.named_parameters() if not p.requires_grad} == {
            n for n, p in backbone.named_parameters() if not p.requires_grad
        }
        checkpoint = other_checkpoint(name, folder)
    frozen = sorted({re.sub(r"^(timm_model|embeddings)\.", "", each).split(".")[0] for each in backbone.unused})
    grid = f"{backbone.prefix_tokens} + " if backbone.prefix_tokens else ""
    sizes = "yes" if other_size(backbone) else "no"
    return (
        f"| `{name}` | {', '.join(built(name))} | {grid}{side} x {side} | {sizes} | "
        f"{'yes' if checkpoint else 'no'} | {', '.join(f'`{each}`' for each in frozen)} |"
    )


HEAD = (
    f"| model | poolings | tokens of {SIZE} pixels | other sizes | weights of another size | frozen |\n"
    "|---|---|---|---|---|---|"
)


def refused_row(name: str) -> str:
    reason = IN_OTHER_WORDS.get(name, REFUSED[name][1])
    return f"| `{name}` | {reason} |"


def tables() -> str:
    parts = [f"### transformers\n\n{HEAD}"]
    parts += [shown(name) for name in FAMILIES if is_installed(name)]
    parts += [f"\n### timm (`timm_wrapper` and its `architecture`)\n\n{HEAD}"]
    parts += [shown(name) for name in TIMM if is_installed(name)]
    parts += ["\n### Refused\n\n| model | because |\n|---|---|", *(refused_row(name) for name in REFUSED)]
    return "\n".join(parts)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    text = PAGE.read_text(encoding="utf-8")
    start = text.index("### transformers")
    PAGE.write_text(text[:start] + tables() + "\n", encoding="utf-8")
    sys.stdout.write(f"{PAGE} written\n")
