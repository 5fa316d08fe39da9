"""Published recipes: their settings, what they reached and on what. A card lists what a run does otherwise."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Published:
    """A published recipe.

    Args:
        source: the publication, and where in it.
        reached: its figures, each with its protocol.
        hardware: what it was trained on.
        data: what it was trained on, in words.
        samples_per_step: samples of an optimizer step, over all devices.
        settings: arguments of a run -> their values; dictionaries are compared key by key.
        remains: what no argument makes equal.
    """

    source: str
    reached: str
    hardware: str
    data: str
    samples_per_step: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    remains: tuple[str, ...] = ()


_RESNET = {"architecture": "resnet50"}
_ONES = {**_RESNET, "model_args": {"zero_init_last": False}}  # torchvision's start of residual norms
_IMAGENET = "ImageNet-1k, 1.28 million pictures"
_ALBEF_DATA = "COCO, Visual Genome, Conceptual Captions (training and validation), SBU"
_COSINE = {"schedule": "cosine_per_step", "minimum_learning_rate": 0.0, "warmup_learning_rate": 0.0, "warmup_every": 1}
_LARS = {"optimizer": "lars", "learning_rate_per": 256, "weight_decay": 1e-6, "decay_vectors": False}
_MOCO = {
    "vision_config": _ONES,
    "image_size": 224,
    "epochs": 200,
    "optimizer": "sgd",
    "learning_rate": 0.03,
    "learning_rate_per": 256,
    "weight_decay": 1e-4,
    "decay_vectors": True,
    "warmup_steps": 0,
    "warmup_epochs": 0.0,
    "mixed_precision": "no",
}
_ALBEF = {
    "image_size": 256,
    "max_caption_tokens": 25,
    "mlm_probability": 0.15,
    "augmentation": "albef",
    "vision_config": {"layer_norm_eps": 1e-6},
    "projection_dim": 256,
    "queue_size": 65536,
    "momentum": 0.995,
    "temperature": 0.07,
    "alpha": 0.4,
    "alpha_ramp_epochs": 1.0,
    "epochs": 30,
    "optimizer": "adamw",
    "learning_rate": 1e-4,
    "weight_decay": 0.02,
    "max_gradient_norm": 0.0,
    "schedule": "cosine_per_epoch",
    "minimum_learning_rate": 1e-5,
    "warmup_learning_rate": 1e-5,
    "warmup_steps": 2000,
    "warmup_every": 100,
    "mixed_precision": "no",
}
_TASK = {
    "image_size": 384,
    "optimizer": "adamw",
    "weight_decay": 0.02,
    "max_gradient_norm": 0.0,
    "schedule": "cosine_per_epoch",
    "minimum_learning_rate": 1e-6,
    "momentum": 0.995,
    "alpha": 0.4,
    "alpha_ramp_epochs": 1.0,
    "mixed_precision": "no",
}
_WARM = {"learning_rate": 2e-5, "warmup_learning_rate": 1e-5, "warmup_steps": 100, "warmup_every": 100}
_RETRIEVAL = {**_TASK, "queue_size": 65536, "learning_rate": 1e-5, "warmup_steps": 0}

PUBLISHED = {
    "albef_4m": Published(
        "Li et al. 2021, sections 3.5 and 4, and the released Pretrain.yaml",
        "after fine-tuning, COCO R@1 73.1 % (text) and 56.8 % (image), VQA test-std 74.70 %, NLVR2 test-P 80.50 %",
        "8 A100",
        f"4.0 million pictures: {_ALBEF_DATA}",
        512,
        _ALBEF,
    ),
    "albef_14m": Published(
        "Li et al. 2021, sections 3.5 and 4, and the released Pretrain.yaml",
        "after fine-tuning, COCO R@1 77.6 % (text) and 60.7 % (image), VQA test-std 76.04 %, NLVR2 test-P 83.14 %",
        "8 A100",
        f"14.1 million pictures: {_ALBEF_DATA}, Conceptual 12M",
        512,
        _ALBEF,
    ),
    "retrieval_coco": Published(
        "Li et al. 2021, section 6.2, and the released Retrieval_coco.yaml",
        "from 14 million pictures, R@1 77.6 % (text) and 60.7 % (image) on the 5,000 test pictures",
        "8 GPUs",
        "COCO, Karpathy's split",
        256,
        {**_RETRIEVAL, "epochs": 5, "rerank": 256},
    ),
    "retrieval_flickr30k": Published(
        "Li et al. 2021, section 6.2, and the released Retrieval_flickr.yaml",
        "from 14 million pictures, R@1 95.9 % (text) and 85.6 % (image) on the 1,000 test pictures",
        "8 GPUs",
        "Flickr30K, Karpathy's split",
        256,
        {**_RETRIEVAL, "epochs": 10, "rerank": 128},
    ),
    "vqa": Published(
        "Li et al. 2021, section 6.1, and the released VQA.yaml",
        "from 14 million pictures, test-dev 75.84 % and test-std 76.04 %",
        "8 GPUs",
        "VQA v2 (training and validation) and Visual Genome",
        256,
        {**_TASK, **_WARM, "warmup_steps": 400, "epochs": 8, "ranked_answers": 128},
    ),
    "nlvr2": Published(
        "Li et al. 2021, section 6.1, and the released NLVR.yaml",
        "from 14 million pictures and text assignment, dev 82.55 % and test-P 83.14 %",
        "8 GPUs",
        "NLVR2",
        128,
        {**_TASK, **_WARM, "epochs": 10},
        ("The release starts its teacher at random weights; here it starts equal to the model.",),
    ),
    "nlvr2_text_assignment": Published(
        "Li et al. 2021, section 5, and the released NLVR_pretrain.yaml",
        "no figure of its own: see nlvr2",
        "8 GPUs",
        f"4.0 million pictures: {_ALBEF_DATA}",
        512,
        {
            "image_size": 256,
            "epochs": 1,
            "optimizer": "adamw",
            "weight_decay": 0.02,
            "minimum_learning_rate": 1e-5,
            "mixed_precision": "no",
            **_WARM,
        },
    ),
    "snli_ve": Published(
        "Li et al. 2021, section 6.1, and the released VE.yaml",
        "from 14 million pictures, validation 80.80 % and test 80.91 %",
        "8 GPUs",
        "SNLI-VE",
        256,
        {**_TASK, **_WARM, "epochs": 5, "alpha_ramp_epochs": 0},
    ),
    "refcoco_plus": Published(
        "Li et al. 2021, section 6.4, and the released Grounding.yaml",
        "from 14 million pictures, by heat maps of matching, val 58.46 %, testA 65.89 % and testB 46.25 %",
        "8 GPUs",
        "RefCOCO+, without boxes",
        256,
        {**_RETRIEVAL, "epochs": 5},
    ),
    "moco_v1": Published(
        "He et al. 2020 (arXiv 1911.05722), section 4, and its release",
        "60.6 % on ImageNet by a linear probe",
        "8 V100, 53 hours",
        _IMAGENET,
        256,
        {
            **_MOCO,
            "method": "moco_v1",
            "augmentation": "moco_v1",
            "method_options": {"queue_size": 65536, "momentum": 0.999, "temperature": 0.07, "dim": 128},
            "schedule": "steps",
            "milestones": [120, 160],
        },
    ),
    "moco_v2": Published(
        "Chen et al. 2020 (arXiv 2003.04297), table 1, and its release",
        "67.5 % on ImageNet by a linear probe; after 800 epochs 71.1 %",
        "8 V100, 53 hours",
        _IMAGENET,
        256,
        {
            **_MOCO,
            "method": "moco_v2",
            "augmentation": "moco_v2",
            "method_options": {"queue_size": 65536, "momentum": 0.999, "temperature": 0.2, "dim": 128},
            "schedule": "cosine_per_epoch",
            "minimum_learning_rate": 0.0,
        },
    ),
    "moco_v3_resnet50": Published(
        "Chen, Xie and He 2021 (arXiv 2104.02057), supplement",
        "72.8 % on ImageNet by a linear probe",
        "16 V100",
        _IMAGENET,
        4096,
        {
            **_COSINE,
            **_LARS,
            "method": "moco_v3",
            "augmentation": "moco_v3",
            "vision_config": _RESNET,
            "image_size": 224,
            "method_options": {"momentum": 0.99, "momentum_schedule": "cosine", "temperature": 1.0},
            "epochs": 300,
            "learning_rate": 0.3,
            "warmup_epochs": 10,
            "mixed_precision": "fp16",
        },
    ),
    "moco_v3_vit_small": Published(
        "Chen, Xie and He 2021 (arXiv 2104.02057), sections 4 and 5",
        "73.2 % on ImageNet by a linear probe; ViT-B 76.7 %",
        "16 V100",
        _IMAGENET,
        4096,
        {
            **_COSINE,
            "method": "moco_v3",
            "augmentation": "moco_v3",
            "augmentation_options": {"scale": [0.08, 1.0]},
            "vision_config": {
                "hidden_size": 384,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "intermediate_size": 1536,
                "patch_size": 16,
            },
            "vision_pooling": "cls",
            "image_size": 224,
            "method_options": {
                "momentum": 0.99,
                "momentum_schedule": "cosine",
                "temperature": 0.2,
                "freeze_patch_projection": True,
            },
            "epochs": 300,
            "optimizer": "adamw",
            "learning_rate": 1.5e-4,
            "learning_rate_per": 256,
            "weight_decay": 0.1,
            "decay_vectors": True,
            "warmup_epochs": 40,
            "mixed_precision": "fp16",
        },
    ),
    "byol": Published(
        "Grill et al. 2020 (arXiv 2006.07733), section 3.3 and its appendix, and its release",
        "72.5 % on ImageNet by a linear probe",
        "512 TPU v3 cores",
        _IMAGENET,
        4096,
        {
            **_COSINE,
            **_LARS,
            "method": "byol",
            "augmentation": "byol",
            "vision_config": _RESNET,
            "image_size": 224,
            "method_options": {"momentum": 0.99, "momentum_schedule": "cosine", "hidden_dim": 4096, "dim": 256},
            "epochs": 300,
            "learning_rate": 0.3,
            "warmup_epochs": 10,
            "mixed_precision": "no",
        },
        (
            "Pillow's bicubic interpolation averages where it makes pictures smaller; the release's does not.",
            "The release starts convolutions from a truncated normal distribution; here they start as in torchvision.",
        ),
    ),
    "barlow_twins": Published(
        "Zbontar et al. 2021 (arXiv 2103.03230), section 3, and its release",
        "73.2 % on ImageNet by a linear probe",
        "16 V100, about 7 days",
        _IMAGENET,
        2048,
        {
            **_COSINE,
            **_LARS,
            "method": "barlow_twins",
            "augmentation": "barlow_twins",
            "vision_config": _RESNET,
            "image_size": 224,
            "method_options": {"projector_dims": [8192, 8192, 8192], "redundancy_weight": 0.0051},
            "epochs": 1000,
            "learning_rate": 0.2,
            "bias_learning_rate": 0.0048,
            "minimum_learning_rate": 2e-4,
            "warmup_epochs": 10,
            "mixed_precision": "fp16",
        },
        (
            "The release's gradients are too small by the number of ranks, since its sum over ranks has none; here "
            "they are whole, and bias_learning_rate is smaller by as much; see published_gradient.",
        ),
    ),
}


def deviations(recipe: Published, config: Mapping[str, Any], samples_per_step: int) -> list[tuple[str, Any, Any]]:
    """What a run does otherwise than a published recipe: (setting, published, here); None: not set.

    Args:
        config: all arguments of the run.
        samples_per_step: of the run, over all ranks and micro-batches.
    """
    found: list[tuple[str, Any, Any]] = []
    if samples_per_step != recipe.samples_per_step:
        found.append(("samples of an optimizer step", recipe.samples_per_step, samples_per_step))
    for name, published in recipe.settings.items():
        here = config.get(name)
        if isinstance(published, Mapping):
            parts = here if isinstance(here, Mapping) else {}
            pairs = [(f"{name}.{key}", value, parts.get(key)) for key, value in published.items()]
        else:
            pairs = [(name, published, here)]
        found += [(setting, value, own) for setting, value, own in pairs if own != value]
    return found
