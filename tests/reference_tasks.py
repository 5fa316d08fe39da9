"""Recorded states of the retrieval layout as our model with two towers and a matching head."""

import torch
from helpers import reference_model

from albef_hf import AlbefForPreTraining


def retrieval_model(state: dict, sizes: dict, attention: str = "sdpa") -> AlbefForPreTraining:
    """In float64 and evaluation mode. The layout has no vocabulary head; what stands there is never used."""
    full = {}
    for name, tensor in state.items():
        if name.startswith(("text_encoder.embeddings.", "text_encoder.encoder.")):
            name = name.replace("text_encoder.", "text_encoder.bert.", 1)
        if not name.split(".")[0].endswith("_m") and name not in (
            "idx_queue",
            "image_queue",
            "text_queue",
            "queue_ptr",
        ):
            full[name] = tensor
    width, vocabulary = int(sizes["text_width"]), int(sizes["vocab"])
    head = "text_encoder.cls.predictions."
    full |= {
        f"{head}bias": torch.zeros(vocabulary),
        f"{head}transform.dense.weight": torch.zeros(width, width),
        f"{head}transform.dense.bias": torch.zeros(width),
        f"{head}transform.LayerNorm.weight": torch.ones(width),
        f"{head}transform.LayerNorm.bias": torch.zeros(width),
    }
    return reference_model(full, sizes, attention).eval()
