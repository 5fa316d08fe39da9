"""Every method learns, and two broken ones do not: nearest neighbors among digits of random color and position.

The score after the last step is compared with that of the same network untrained, and of the same network trained with
labels; the loss is not used. This takes a few minutes.
"""

import functools
import json

import pytest
from accelerate.utils import set_seed
from digits_data import DigitBatches, load, nearest_neighbors
from helpers import built_once
from torch import nn
from transformers import PvtV2Config, ResNetConfig, ViTConfig
from transformers.modeling_outputs import ImageClassifierOutput

from albef_hf.trainable import Trainable
from albef_hf.training.arguments import TrainingArguments
from albef_hf.training.loop import train
from albef_hf.training.processes import build_accelerator
from albef_hf.vision_backbone import VisionBackbone
from ssl_methods import METHODS
from ssl_methods.vit import initialize_vit

GAIN = 20  # points above random initialization
CEILING = 40  # points that training with labels gains at least


@functools.cache
def parts():
    return [load(part) for part in ("train", "test")]


def backbone_of(kind):
    if kind == "resnet":
        config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 1, 1], layer_type="basic")
        return VisionBackbone(config, "mean")
    if kind == "vit":
        size = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192}
        backbone = VisionBackbone(ViTConfig(image_size=32, patch_size=8, layer_norm_eps=1e-6, **size), "mean")
        initialize_vit(backbone)  # random position embeddings would have to be learned first
        return backbone
    two_stages = {
        "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [32, 64], "strides": [4, 2],
        "patch_sizes": [7, 3], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "drop_path_rate": 0.0,
    }  # fmt: skip
    return VisionBackbone(PvtV2Config(image_size=32, **two_stages), "mean")


class Labeled(Trainable):
    """A backbone and a linear layer, trained with labels by the same loop."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.layer = backbone, nn.Linear(backbone.width, 10)

    def forward(self, views, shuffle_draws, labels):
        logits = self.layer(self.backbone(views[:, 0]).pooled)
        return ImageClassifierOutput(loss=nn.functional.cross_entropy(logits, labels))


def trained(folder, method, seed=0, batch_size=128, **arguments):
    """Scores before and after, and the warnings of a run."""
    pixels, labels = parts()[0]
    fields = {
        "output_dir": str(folder), "batch_size": batch_size, "seed": seed, "minimum_learning_rate": 0.0,
        "warmup_learning_rate": 0.0, "warmup_steps": 20, "warmup_every": 1, "schedule": "cosine_per_step",
        "log_every": 20, "save_every": 10**6, "report_to": "none",
    }  # fmt: skip
    run = TrainingArguments(**{**fields, **arguments})
    data = DigitBatches(pixels, seed, batch_size, labels if isinstance(method, Labeled) else None)
    before = nearest_neighbors(method.backbone, parts())
    train(method, data, run, build_accelerator(run))
    after = nearest_neighbors(method.backbone, parts())
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return before, after, [row["text"] for row in rows if row["kind"] == "warning"]


def pretrained(folder, name, kind, options, seed=0, **arguments):
    """Scores before and after a run of a method, and its warnings of a collapse."""
    set_seed(seed)
    method = METHODS[name](backbone_of(kind), **options)
    before, after, warnings = trained(folder, method, seed, **arguments)
    return before, after, [text for text in warnings if text.startswith("collapse")]


@pytest.fixture(scope="module")
def ceiling(tmp_path_factory):
    """kind -> scores of a network before and after training with labels."""

    def scores(kind):
        def build(folder):
            folder.mkdir()
            set_seed(0)
            return json.dumps(trained(folder, Labeled(backbone_of(kind)), **SUPERVISED[kind])[:2])

        return json.loads(built_once(tmp_path_factory, f"supervised_{kind}", build)[1])

    return scores


HEADS = {"hidden_dim": 256, "dim": 64}
QUEUE = {"queue_size": 1024, "temperature": 0.2}
SPLIT = {**QUEUE, "batch_norm_splits": 4}
TWINS = {"projector_dims": [256, 256, 256], "redundancy_weight": 0.01}
SGD = {"optimizer": "sgd", "weight_decay": 5e-4}
ADAMW = {"optimizer": "adamw", "weight_decay": 0.01, "learning_rate": 2e-3}
# Without negatives, weight decay keeps the heads small; small batches give more steps with the same pictures.
BYOL = {"optimizer": "adamw", "weight_decay": 0.1, "learning_rate": 3e-3, "batch_size": 64}
# Options of the method; fields of the run. The momentum averages over only a part of these short runs.
RUNS = {
    ("moco_v1", "resnet"): ({**SPLIT, "momentum": 0.97}, {**SGD, "epochs": 5, "learning_rate": 0.06}),
    ("moco_v2", "resnet"): ({**SPLIT, "momentum": 0.97}, {**SGD, "epochs": 5, "learning_rate": 0.06}),
    ("moco_v3", "resnet"): (
        {**HEADS, "momentum": 0.97, "temperature": 0.2}, {**SGD, "epochs": 6, "learning_rate": 0.1},
    ),
    ("byol", "resnet"): ({**HEADS, "momentum": 0.99}, {**BYOL, "epochs": 14}),
    ("barlow_twins", "resnet"): (TWINS, {**SGD, "epochs": 8, "learning_rate": 0.02}),
    ("moco_v1", "vit"): ({**QUEUE, "momentum": 0.99}, {**ADAMW, "epochs": 12}),
    ("moco_v2", "vit"): ({**QUEUE, "momentum": 0.99}, {**ADAMW, "epochs": 18}),
    ("moco_v3", "vit"): (
        {**HEADS, "momentum": 0.9, "temperature": 0.2, "projector_layers": 2},
        {**ADAMW, "epochs": 16, "learning_rate": 4e-3},
    ),
    ("byol", "pyramid"): ({**HEADS, "momentum": 0.99}, {**BYOL, "epochs": 16}),
    ("barlow_twins", "vit"): (TWINS, {**ADAMW, "epochs": 14, "learning_rate": 3e-3}),
}  # fmt: skip
SUPERVISED = {
    "resnet": {**SGD, "epochs": 5, "learning_rate": 0.1},
    "vit": {**ADAMW, "epochs": 12},
    "pyramid": {**ADAMW, "epochs": 8},
}


@pytest.mark.parametrize(("name", "kind"), list(RUNS))
def test_nearest_neighbors_gain_twenty_points(tmp_path, ceiling, name, kind):
    options, arguments = RUNS[name, kind]
    before, after, alarms = pretrained(tmp_path, name, kind, options, **arguments)
    lowest, highest = ceiling(kind)
    scores = f"{name} on a small {kind}: {before:.1f} -> {after:.1f} %, with labels {highest:.1f} %"
    print(scores)
    assert after > before + GAIN and alarms == [], scores
    assert highest > max(lowest + CEILING, after), scores


def test_the_alarm_catches_a_collapse(tmp_path):
    """BYOL without predictor, normalized heads and target network: its loss goes to 0, which is not a success."""
    options = {**HEADS, "momentum": 0.0, "momentum_schedule": "constant", "use_predictor": False, "head_norm": False}
    before, after, alarms = pretrained(tmp_path, "byol", "vit", options, **ADAMW, epochs=2)
    assert after < before + GAIN and alarms


def test_the_alarm_catches_moco_without_momentum(tmp_path):
    """Keys of the online encoder itself (He et al. 2020, section 4.1: momentum 0 fails)."""
    options = {**SPLIT, "momentum": 0.0}
    before, after, alarms = pretrained(tmp_path, "moco_v2", "resnet", options, **SGD, epochs=5, learning_rate=0.06)
    assert after < before + GAIN and alarms
