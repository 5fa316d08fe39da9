"""The two towers: their configuration, and any backbone as the image encoder."""

import pytest
from helpers import tiny_batch, tiny_config, tiny_model
from torch import nn

from albef_hf import AlbefModel
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
