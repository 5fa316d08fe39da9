"""All published recipes; those of ALBEF are written here."""

from .published import Published
from .published_images import IMAGES

_ALBEF_DATA = "COCO, Visual Genome, Conceptual Captions (training and validation), SBU"
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
        "Li et al. 2021, section 6.3 and its appendix, and the released VQA.yaml",
        "from 14 million pictures, test-dev 75.84 % and test-std 76.04 %",
        "8 GPUs",
        "VQA v2 (training and validation) and Visual Genome",
        256,
        {**_TASK, **_WARM, "warmup_steps": 400, "epochs": 8, "ranked_answers": 128},
    ),
    "nlvr2": Published(
        "Li et al. 2021, section 6.3 and its appendix, and the released NLVR.yaml",
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
        "Li et al. 2021, section 6.3 and its appendix, and the released VE.yaml",
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
    **IMAGES,
}
