"""Published recipes of the image-only methods."""

from .published import Published

_RESNET = {"architecture": "resnet50"}
_ONES = {**_RESNET, "model_args": {"zero_init_last": False}}  # torchvision's start of residual norms
_IMAGENET = "ImageNet-1k, 1.28 million pictures"
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
_SMALL = {
    "model_type": "small_resnet",
    "hidden_sizes": [64, 128, 256, 512],
    "depths": [2, 2, 2, 2],
    "layer_type": "basic",
}
_CIFAR_DATA = "CIFAR-10, 50,000 pictures"
_CIFAR = {
    "vision_config": _SMALL,
    "image_size": 32,
    "augmentation_options": {"scale": [0.08, 1.0], "blur": 0.0},
    "knn_protocol": "instdisc-knn",
    "epochs": 200,
    "optimizer": "sgd",
    "weight_decay": 5e-4,
    "decay_vectors": True,
    "schedule": "cosine_per_epoch",
    "minimum_learning_rate": 0.0,
    "warmup_steps": 0,
    "warmup_epochs": 0.0,
    "mixed_precision": "no",
}
_CIFAR_MOCO = {"queue_size": 4096, "momentum": 0.99, "temperature": 0.1, "dim": 128, "batch_norm_splits": 8}
_LIGHTLY = {**_CIFAR, "image_mean": None, "image_std": None, "learning_rate": 0.06, "learning_rate_per": 128}
_LIGHTLY_SOURCE = "lightly's CIFAR-10 benchmark, its table for 200 epochs and 128 samples a step"
_LIGHTLY_REMAINS = "The figure is the best of all epochs on the test part; runs here report the last epoch."
_LIGHTLY_COLORS = "Color changes of that benchmark differ between its versions; here they are those of MoCo v2."
_NETTE = {
    **_LIGHTLY,
    "vision_config": {"architecture": "resnet18", "model_args": {"zero_init_last": False}},
    "image_size": 128,
    "augmentation": "moco_v2",
    "augmentation_options": {"scale": [0.08, 1.0]},
    "epochs": 800,
    "learning_rate_per": 256,
}
_NETTE_DATA = "Imagenette, 9,469 pictures"
_NETTE_SOURCE = "lightly's Imagenette benchmark, its table for 800 epochs"
_BIASES = (
    "There the last layers of projector and predictor have a bias and the first have none; here it is the other way "
    "around, as in BYOL's release."
)
_DIRECTIONS = "That loss is the mean of both directions; here the first view is the query and the second the key."

IMAGES = {
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
    "cifar10_moco_v1": Published(
        "MoCo's CIFAR-10 demonstration (notebook of the release)",
        "82.6 % on CIFAR-10 by nearest neighbors (k 200, temperature 0.1)",
        "one V100, 20 s an epoch",
        _CIFAR_DATA,
        512,
        {
            **_CIFAR,
            "method": "moco_v1",
            "augmentation": "moco_v2",
            "image_mean": [0.4914, 0.4822, 0.4465],
            "image_std": [0.2023, 0.1994, 0.2010],
            "method_options": _CIFAR_MOCO,
            "learning_rate": 0.06,
            "learning_rate_per": 512,
        },
        ("The figure is of the projections, 128 numbers; neighbors here are those of the encoder's 512 features.",),
    ),
    "cifar10_moco_v2": Published(
        _LIGHTLY_SOURCE,
        "83.8 % on CIFAR-10 by nearest neighbors (k 200, temperature 0.1)",
        "one RTX A6000, 129 minutes",
        _CIFAR_DATA,
        128,
        {
            **_LIGHTLY,
            "method": "moco_v2",
            "method_options": _CIFAR_MOCO,
        },
        (
            _DIRECTIONS,
            _LIGHTLY_COLORS,
            _LIGHTLY_REMAINS,
        ),
    ),
    "cifar10_byol": Published(
        _LIGHTLY_SOURCE,
        "86.9 % on CIFAR-10 by nearest neighbors (k 200, temperature 0.1)",
        "one RTX A6000, 122 minutes",
        _CIFAR_DATA,
        128,
        {
            **_LIGHTLY,
            "method": "byol",
            "method_options": {
                "momentum": 0.99,
                "momentum_schedule": "constant",
                "hidden_dim": 1024,
                "dim": 256,
                "loss_scale": 0.25,
            },
        },
        (
            _BIASES,
            _LIGHTLY_COLORS,
            _LIGHTLY_REMAINS,
        ),
    ),
    "cifar10_barlow_twins": Published(
        _LIGHTLY_SOURCE,
        "84.2 % on CIFAR-10 by nearest neighbors (k 200, temperature 0.1)",
        "one RTX A6000, 376 minutes",
        _CIFAR_DATA,
        128,
        {
            **_LIGHTLY,
            "method": "barlow_twins",
            "method_options": {"projector_dims": [2048, 2048], "redundancy_weight": 0.005, "loss_scale": 1.0},
        },
        (_LIGHTLY_COLORS, _LIGHTLY_REMAINS),
    ),
    "cifar10_moco_v3": Published(
        "solo-learn's CIFAR-10 configuration and table",
        "93.1 % on CIFAR-10 by a linear probe trained beside the encoder",
        "one GPU",
        _CIFAR_DATA,
        256,
        {
            **_COSINE,
            **_LARS,
            "method": "moco_v3",
            "vision_config": _SMALL,
            "image_size": 32,
            "augmentation": "barlow_twins",
            "augmentation_options": {"scale": [0.08, 1.0], "blur": 0.0},
            "method_options": {"momentum": 0.99, "temperature": 0.2, "hidden_dim": 4096, "dim": 256},
            "epochs": 1000,
            "learning_rate": 0.3,
            "warmup_epochs": 10,
            "mixed_precision": "fp16",
        },
        (
            "That LARS has a trust coefficient of 0.02 and clips what it makes of the rate; here it is 0.001, "
            "unclipped, as published for MoCo v3.",
            "That stem pads by 2, so that its maps have 34 x 34 places; here by 1, 32 x 32.",
        ),
    ),
    "imagenette_moco_v2": Published(
        _NETTE_SOURCE,
        "87.4 % on Imagenette by nearest neighbors (k 200, temperature 0.1)",
        "one GPU, 232 minutes",
        _NETTE_DATA,
        256,
        {**_NETTE, "method": "moco_v2", "method_options": {**_CIFAR_MOCO, "batch_norm_splits": 1}},
        (
            "That projector has 2048 hidden units; here as many as the encoder's features, 512.",
            _DIRECTIONS,
            _LIGHTLY_COLORS,
            _LIGHTLY_REMAINS,
        ),
    ),
    "imagenette_byol": Published(
        _NETTE_SOURCE,
        "88.7 % on Imagenette by nearest neighbors (k 200, temperature 0.1)",
        "one GPU, 215 minutes",
        _NETTE_DATA,
        256,
        {
            **_NETTE,
            "method": "byol",
            "method_options": {
                "momentum": 0.99,
                "momentum_schedule": "constant",
                "hidden_dim": 4096,
                "dim": 256,
                "loss_scale": 0.25,
            },
        },
        (_BIASES, _LIGHTLY_COLORS, _LIGHTLY_REMAINS),
    ),
    "imagenette_barlow_twins": Published(
        _NETTE_SOURCE,
        "85.2 % on Imagenette by nearest neighbors (k 200, temperature 0.1)",
        "one GPU, 299 minutes",
        _NETTE_DATA,
        256,
        {
            **_NETTE,
            "method": "barlow_twins",
            "method_options": {"projector_dims": [2048, 2048, 2048], "redundancy_weight": 0.005, "loss_scale": 1.0},
        },
        (_LIGHTLY_COLORS, _LIGHTLY_REMAINS),
    ),
}
