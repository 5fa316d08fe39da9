"""Small image-only methods, their options and recipes, the views they are shown, and what augmentation does.

Every method has a row in `OPTIONS` and in `RECIPES`, every operation of augmentation one in `OPERATIONS`.
"""

import numpy as np
import torch
from transformers import ResNetConfig, ViTConfig

from albef_hf.vision_backbone import VisionBackbone
from ssl_methods import METHODS, augment

BATCH = 6


def tiny_backbone(kind="resnet", seed=0, channels=3):
    torch.manual_seed(seed)
    if kind == "resnet":
        config = ResNetConfig(
            num_channels=channels, embedding_size=6, hidden_sizes=[6, 8], depths=[1, 1], layer_type="basic"
        )
        return VisionBackbone(config, "mean")
    config = ViTConfig(
        num_channels=channels, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=16, patch_size=8,
    )  # fmt: skip
    return VisionBackbone(config, "cls")


OPTIONS = {
    "moco_v1": {"queue_size": 14, "dim": 5, "momentum": 0.9},
    "moco_v2": {"queue_size": 14, "dim": 5, "momentum": 0.9},
    "moco_v3": {"hidden_dim": 12, "dim": 5, "momentum": 0.9},
    "byol": {"hidden_dim": 12, "dim": 5, "momentum": 0.9},
    "barlow_twins": {"projector_dims": [12, 12, 7]},
}
# One recipe a method: optimizer, warm-up and decay as its publication has them.
RECIPES = {
    "moco_v1": {"optimizer": "sgd", "decay_vectors": True, "weight_decay": 0.01, "learning_rate": 0.03},
    "moco_v2": {"optimizer": "sgd", "decay_vectors": True, "weight_decay": 0.01, "learning_rate": 0.03},
    "moco_v3": {"optimizer": "adamw", "decay_vectors": True, "weight_decay": 0.1, "learning_rate": 1e-2},
    "byol": {"optimizer": "lars", "weight_decay": 0.01, "learning_rate": 0.5},
    "barlow_twins": {"optimizer": "lars", "weight_decay": 0.01, "learning_rate": 0.2, "bias_learning_rate": 0.0048},
}
# Operations of augmentation: the column of a view's numbers, and a value that changes a picture.
OPERATIONS = [
    (augment.FLIP, 1),
    (augment.GRAY_BEFORE, 1),
    (augment.BRIGHTNESS, 1.4),
    (augment.CONTRAST, 0.6),
    (augment.SATURATION, 1.4),
    (augment.HUE, 0.1),
    (augment.HUE, -0.4),
    (augment.GRAY_AFTER, 1),
    (augment.SIGMA, 1.7),
    (augment.SOLARIZE, 1),
]


def unchanged_numbers():
    """The numbers of a view that leave a picture as it is."""
    numbers = np.zeros(augment.NUMBERS)
    numbers[[augment.BRIGHTNESS, augment.CONTRAST, augment.SATURATION]] = 1
    numbers[augment.ORDER] = range(4)
    return numbers


def tiny_method(name, kind="resnet", seed=0, **changes):
    backbone = tiny_backbone(kind, seed)
    torch.manual_seed(seed + 1)
    return METHODS[name](backbone, **{**OPTIONS[name], **changes})


def views_of(step, batch=BATCH, size=16):
    generator = torch.Generator().manual_seed(step)
    views = torch.randn(batch, 2, 3, size, size, generator=generator, dtype=torch.float64)
    return views, torch.rand(batch, generator=generator)
