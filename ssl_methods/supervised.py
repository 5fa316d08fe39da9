"""A supervised run of the same backbone: the ceiling that a table of unsupervised results is read against."""

import math

import torch
from torch import nn
from tqdm import tqdm

from albef_hf.data.corpora import random_generator
from albef_hf.vision_backbone import VisionBackbone

from .augment import ViewRecipe, crop_view, draw_view, normalize_pixels, to_unit_range
from .bands import read_picture
from .pictures import Pictures


def train_supervised(
    backbone: VisionBackbone,
    pictures: Pictures,
    recipe: ViewRecipe,
    *,
    epochs: int = 20,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> VisionBackbone:
    """Train a backbone and a linear layer with labels, by AdamW and a cosine; crops and flips of `recipe` only.

    Returns: the backbone, trained in place.
    """
    torch.manual_seed(seed)
    classes = int(pictures.labels.max()) + 1
    layer = nn.Linear(backbone.width, classes)
    parameters = [p for p in (*backbone.parameters(), *layer.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.05)
    batches = len(pictures) // batch_size
    backbone.train()
    for step in tqdm(range(epochs * batches), desc="supervised", unit="step"):
        epoch, place = divmod(step, batches)
        order = random_generator(seed, epoch).permutation(len(pictures))
        rows = order[place * batch_size : (place + 1) * batch_size].tolist()
        pixels = []
        for position, picture in enumerate(pictures[rows]):
            generator = random_generator(seed, epoch, place, position)
            image = read_picture(picture, pictures.channels)
            crop = to_unit_range(crop_view(image, pictures.size, recipe, generator))
            pixels.append(crop.flip(2) if draw_view(recipe, generator)[0] else crop)
        logits = layer(backbone(normalize_pixels(torch.stack(pixels), pictures.mean, pictures.std)).pooled)
        loss = nn.functional.cross_entropy(logits, pictures.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        warm = min(1.0, (step + 1) / 50)
        falling = 0.5 * (1 + math.cos(math.pi * step / (epochs * batches)))
        optimizer.param_groups[0]["lr"] = learning_rate * warm * falling
        optimizer.step()
    return backbone.eval()
