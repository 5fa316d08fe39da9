"""The two towers: their configuration, and any backbone as the image encoder."""

import pytest
import torch
from helpers import tiny_batch, tiny_config, tiny_model
from torch import nn
from transformers import CONFIG_MAPPING, CLIPConfig, CLIPModel, TimmWrapperConfig

from albef_hf import AlbefModel
from albef_hf.training.arguments import ModelArguments
from albef_hf.training.initialization import build_vision_backbone
from albef_hf.vision_backbone import VisionBackbone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"projection_dimm": 3}, "did you mean 'projection_dim'"),
        ({"same_image": "ignore"}, "same_image must be one of"),
        ({"vision_pooling": "max"}, "vision_pooling must be one of"),
        ({"momentum": 1.5}, "momentum must lie between"),
        ({"temperature": 0.9}, "temperature 0.9 must lie between"),
        ({"text_config": {"fusion_layer": 9}}, "fusion_layer must lie between"),
        ({"text_config": {"fusion_layr": 2}}, "did you mean 'fusion_layer'"),
        ({"vision_config": {"hidden_size": 24}}, "vision_config needs a model_type"),
    ],
)
def test_a_wrong_configuration_names_the_field(change, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**change)


def test_a_wrong_width_between_towers_is_named():
    with pytest.raises(ValueError, match="encoder_hidden_size is 99, but tokens .* have width 24"):
        AlbefModel(tiny_config(text_config={"encoder_hidden_size": 99}))


def test_the_linear_layers_of_the_projections_start_like_torch():
    projection = AlbefModel(tiny_config()).vision_projection
    bound = 24**-0.5
    assert projection.weight.abs().max() <= bound and projection.weight.std() > bound / 3
    assert isinstance(projection, nn.Linear) and (projection.bias != 0).all()


# -- backbones --------------------------------------------------------------------------------------------------------

SMALL = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
BACKBONES = {
    "vit": ({"model_type": "vit", "intermediate_size": 32, **SMALL}, "cls", 5),
    "deit": ({"model_type": "deit", "intermediate_size": 32, **SMALL}, "cls", 6),
    "dinov2": ({"model_type": "dinov2", **SMALL}, "mean", 5),
    "siglip": ({"model_type": "siglip_vision_model", "intermediate_size": 32, **SMALL}, "mean", 4),
    "resnet": (
        {
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "layer_type": "basic",
        },
        "pooler",
        16,
    ),
    "timm resnet": ({"model_type": "timm_wrapper", "architecture": "test_resnet"}, "mean", 1),
    "timm vit": ({"model_type": "timm_wrapper", "architecture": "test_vit2"}, "cls", None),
}


@pytest.mark.parametrize("name", list(BACKBONES))
def test_any_backbone_serves(name):
    vision_config, pooling, tokens = BACKBONES[name]
    model = tiny_model(vision_config=vision_config, vision_pooling=pooling)
    size = 64 if name == "timm vit" else 32
    batch = tiny_batch(image_size=size)
    seen = model.get_image_features(batch["pixel_values"]).last_hidden_state
    assert tokens is None or seen.shape[1] == tokens
    output = model(**batch)
    output.loss.backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


def test_another_image_size_interpolates_the_position_table():
    model = tiny_model().eval()
    batch = tiny_batch(image_size=48)
    assert model.get_image_features(batch["pixel_values"]).last_hidden_state.shape == (4, 10, 24)


def test_a_backbone_without_class_token_refuses_cls_pooling():
    with pytest.raises(ValueError, match="no class token"):
        VisionBackbone(tiny_config(vision_config=BACKBONES["resnet"][0]).vision_config, "cls")


VIT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SQUARE = {"image_size": 32, "patch_size": 8}
SWIN = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, "image_size": 32, "patch_size": 4}
HIERA = {"image_size": [64, 64], "patch_stride": [4, 4], "patch_size": [7, 7], "patch_padding": [3, 3]}
PVT = {"hidden_sizes": [8, 16, 16, 24], "depths": [1] * 4, "num_attention_heads": [1, 1, 2, 2]}
FAMILIES = {
    "beit": {**VIT, **SQUARE},
    "clip_vision_model": {**VIT, **SQUARE},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "convnextv2": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "deit": {**VIT, **SQUARE},
    "dinov2": {**VIT, **SQUARE},
    "dinov2_with_registers": {**VIT, **SQUARE, "num_register_tokens": 2},
    "dinov3_vit": {**VIT, **SQUARE, "num_register_tokens": 2},
    "hiera": {**HIERA, "embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 2, 4, 8]},
    "ijepa": {**VIT, **SQUARE},
    "mlcd_vision_model": {**VIT, **SQUARE},
    "pvt": {**PVT, "image_size": 64},
    "regnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 8},
    "segformer": PVT,
    "siglip_vision_model": {**VIT, **SQUARE},
    "swin": SWIN,
    "vit_mae": {**VIT, **SQUARE, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1},
}
TIMM = ("test_vit", "test_resnet", "test_convnext")


def family_config(name: str):
    if name in TIMM:
        return TimmWrapperConfig(architecture=name)
    return CONFIG_MAPPING[name](**FAMILIES[name])


@pytest.mark.parametrize("name", [*FAMILIES, *TIMM])
def test_every_family_gives_tokens_trains_whole_and_has_no_randomness_in_evaluation(name):
    size = FAMILIES.get(name, {}).get("image_size", 64)
    size = size if isinstance(size, int) else size[0]
    torch.manual_seed(0)
    backbone = VisionBackbone(family_config(name), "mean")
    pixels = torch.randn(2, 3, size, size)
    output = backbone(pixels)
    assert output.tokens.shape[0] == 2 and output.tokens.shape[2] == backbone.width == output.pooled.shape[1]
    torch.testing.assert_close(output.pooled, output.tokens[:, backbone.prefix_tokens :].mean(1))
    weights = torch.randn(output.tokens.shape)
    ((output.tokens * weights).sum() + (output.pooled**2).sum()).backward()
    assert [key for key, value in backbone.named_parameters() if value.requires_grad and value.grad is None] == []
    backbone.eval()
    with torch.no_grad():
        first, again, alone = backbone(pixels), backbone(pixels), backbone(pixels[:1])
    assert torch.isfinite(first.tokens).all() and torch.equal(first.tokens, again.tokens)
    torch.testing.assert_close(alone.tokens[0], first.tokens[0], atol=1e-4, rtol=1e-4)
    if name == "vit_mae":
        assert first.tokens.shape[1] == 1 + 16  # all patches


def test_a_folder_for_images_and_texts_gives_its_image_encoder(tmp_path):
    torch.manual_seed(0)
    text = {**VIT, "vocab_size": 20}
    clip = CLIPModel(CLIPConfig(vision_config={**VIT, **SQUARE}, text_config=text, projection_dim=8)).eval()
    clip.save_pretrained(tmp_path)
    arguments = ModelArguments(vision_model=str(tmp_path), image_size=32)
    backbone = build_vision_backbone(arguments).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = clip.vision_model(pixels).last_hidden_state
        torch.testing.assert_close(backbone(pixels).tokens, expected)
