"""A toy retrieval model, and noise to retrieve from."""

import random
from types import SimpleNamespace

import datasets
import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from albef_hf.data.retrieval import RetrievalData

WIDTH = 6


class ToyModel(nn.Module):
    """Two linear encoders, and a cross-attention whose matching scores are unrelated to their cosine similarity."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.patch = nn.Linear(3 * 16 * 16, WIDTH)
        self.embedding = nn.Embedding(60, WIDTH)
        self.key, self.value, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)
        self.dropout = nn.Dropout(0.5)
        self.calls = SimpleNamespace(images=0, texts=0, projected=0, pairs=0)

    def get_image_features(self, pixel_values):
        self.calls.images += len(pixel_values)
        patches = pixel_values.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        tokens = self.dropout(self.patch(patches))
        return BaseModelOutputWithPooling(tokens, nn.functional.normalize(tokens.mean(1), dim=-1))

    def get_text_features(self, input_ids, attention_mask):
        self.calls.texts += len(input_ids)
        states = self.dropout(self.embedding(input_ids))
        pooled = (states * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True)
        return BaseModelOutputWithPooling(states, nn.functional.normalize(pooled, dim=-1))

    def project_image_tokens(self, image_tokens):
        self.calls.projected += len(image_tokens)
        return [(self.key(image_tokens)[:, None], self.value(image_tokens)[:, None])]

    def matching_logits(self, text_states, attention_mask, image_keys_values):
        self.calls.pairs += len(text_states)
        ((keys, values),) = image_keys_values
        attended = (text_states @ keys[:, 0].transpose(1, 2)).softmax(-1) @ values[:, 0]
        return self.head((attended * attention_mask[..., None]).sum(1))


def make_data(images: int = 9, texts: int = 23, seed: int = 0) -> RetrievalData:
    """Noise pictures; every image has texts, some have more, and the texts differ in length."""
    generator = random.Random(seed)
    pixels = np.random.default_rng(seed).integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
    pictures = [Image.fromarray(each) for each in pixels]
    text_groups = [position % images for position in range(texts)]
    generator.shuffle(text_groups)
    return RetrievalData(
        images=datasets.Dataset.from_dict(
            {"image": pictures, "group": list(range(images))},
            features=datasets.Features({"image": datasets.Image(), "group": datasets.Value("int64")}),
        ),
        texts=["".join(generator.choices("abcdefghijklm", k=generator.randint(1, 12))) for _ in range(texts)],
        image_groups=list(range(images)),
        text_groups=text_groups,
        name="noise",
    )
