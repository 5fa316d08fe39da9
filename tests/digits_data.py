"""The digits as batches of two views, augmented as tensors: fast enough to train ten models in the tests."""

import math

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import nn

from albef_hf.data.builtin.small_images import load_digits
from albef_hf.data.images import decode_image
from albef_hf.evaluation.probes import knn_accuracy
from ssl_methods.augment import augment_tensors, draw_view, to_unit_range, view_recipes

MEAN, STD = 0.45, 0.25


def load(part):
    corpus = load_digits()[part]
    return torch.stack([to_unit_range(decode_image(row)) for row in corpus["image"]]), torch.tensor(corpus["label"])


def crop(pixels, recipe, generator):
    """Cut a random box from each picture and resize it to the size of the picture."""
    draws = torch.rand(len(pixels), 4, generator=generator)
    low, high = recipe.scale
    side = (low + (high - low) * draws[:, 0]).sqrt()
    ratio = torch.exp((2 * draws[:, 1] - 1) * math.log(4 / 3) / 2)
    boxes = torch.zeros(len(pixels), 2, 3)
    for axis, extent in enumerate(((side * ratio).clamp(max=1), (side / ratio).clamp(max=1))):
        boxes[:, axis, axis] = extent
        boxes[:, axis, 2] = (1 - extent) * (2 * draws[:, 2 + axis] - 1)
    grid = nn.functional.affine_grid(boxes, list(pixels.shape), align_corners=False)
    return nn.functional.grid_sample(pixels, grid, align_corners=False, padding_mode="border")


class DigitBatches:
    """In place of `TrainingData`; with labels, for a supervised run.

    The recipe does not mirror. It permutes color channels and makes half of the views gray, so that colors do not
    help: otherwise a network without convolutions would tell pictures apart by color for hundreds of steps.
    """

    def __init__(self, pixels, seed, batch_size=128, labels=None):
        self.pixels, self.seed, self.batch_size, self.labels = pixels, seed, batch_size, labels
        self.rows = len(pixels)
        self.steps_per_epoch = self.rows // batch_size
        colors = {"jitter": [0.4, 0.4, 0.4, 0.0], "gray": 0.5, "solarize": 0.0, "blur": 0.0, "flip": 0.0}
        self.recipe = view_recipes("barlow_twins", scale=[0.8, 1.0], **colors)[0]

    def view(self, pixels, own, generator):
        numbers = torch.from_numpy(np.stack([draw_view(self.recipe, own) for _ in pixels])).float()
        view = augment_tensors(crop(pixels, self.recipe, generator), numbers)
        channels = torch.rand(len(view), 3, generator=generator).argsort(1)
        return view.gather(1, channels[:, :, None, None].expand_as(view))

    def batches(self, start=0):
        step = start
        while True:
            epoch, batch = divmod(step, self.steps_per_epoch)
            order = np.random.default_rng([self.seed, 0, epoch]).permutation(self.rows)
            rows = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            own = np.random.default_rng([self.seed, 1, step])
            generator = torch.Generator().manual_seed(int(own.integers(2**62)))
            views = [self.view(self.pixels[rows], own, generator) for _ in range(2)]
            batch = {"views": (torch.stack(views, 1) - MEAN) / STD, "rejected": []}
            batch["shuffle_draws"] = torch.rand(len(rows), generator=generator)
            yield batch if self.labels is None else batch | {"labels": self.labels[rows]}
            step += 1

    def to_device(self, batch, device):
        return send_to_device(batch, device)


@torch.no_grad()
def nearest_neighbors(backbone, parts):
    """Accuracy (k 20, temperature 0.07) of the online encoder, in percent."""
    training, device = backbone.training, next(backbone.parameters()).device
    backbone.eval()
    features = []
    for pixels, _ in parts:
        normalized = ((pixels - MEAN) / STD).to(device)
        features.append(torch.cat([backbone(some).pooled.cpu() for some in normalized.split(512)]))
    backbone.train(training)
    return 100 * knn_accuracy(features[0], parts[0][1], features[1], parts[1][1], (20,), 0.07)[20]
