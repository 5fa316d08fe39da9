"""From pictures to batches of two views."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from albef_hf.data.arguments import DataArguments
from albef_hf.data.batches import Collator, Samples, TrainingData
from albef_hf.data.corpora import Corpora
from albef_hf.data.images import BadImage
from albef_hf.data.loading import assemble

from .augment import (
    ViewRecipe,
    augment_pillow,
    augment_tensors,
    crop_view,
    draw_view,
    normalize_pixels,
    view_recipes,
)
from .bands import SEEN, Bands, read_picture


class TwoViewSamples(Samples):
    """Pictures, decoded once and cropped twice. Labels are never looked at."""

    def __init__(
        self,
        corpus: Corpora,
        recipes: tuple[ViewRecipe, ViewRecipe],
        size: int,
        channels: int,
        pillow: bool,
        arguments: DataArguments,
        seed: int,
    ) -> None:
        super().__init__(corpus, arguments, seed)
        self.recipes, self.size, self.channels, self.pillow = recipes, size, channels, pillow

    def prepare(self, row: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        image = read_picture(row["image"], self.channels, self.arguments.max_image_pixels)
        if self.pillow and isinstance(image, Bands):
            raise BadImage("Pillow cannot change the colors of arrays: set augmentation_device to tensors")
        views, numbers = [], []
        for recipe in self.recipes:
            view = crop_view(image, self.size, recipe, generator)
            drawn = draw_view(recipe, generator)
            views.append(np.asarray(augment_pillow(view, drawn) if self.pillow else view))
            numbers.append(drawn)
        return {"views": views, "numbers": numbers, "shuffle_draw": generator.random()}


class TwoViewCollator(Collator):
    """Crops -> `views` (batch, 2, channels, h, w) and `shuffle_draws` (batch,). Crops of 8 bits travel to the device,
    arrays as they are; colors are changed there, unless Pillow has done it."""

    def __init__(
        self,
        recipes: tuple[ViewRecipe, ViewRecipe],
        mean: Sequence[float],
        std: Sequence[float],
        pillow: bool,
    ) -> None:
        self.recipes, self.mean, self.std, self.pillow = recipes, mean, std, pillow

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        views = [view if view.ndim == 3 else view[:, :, None] for sample in samples for view in sample["views"]]
        if not all(view.dtype == np.uint8 for view in views):
            views = [view / np.float32(255) if view.dtype == np.uint8 else view for view in views]
        crops = torch.from_numpy(np.stack(views)).unflatten(0, (len(samples), 2))
        return {
            "crops": crops.permute(0, 1, 4, 2, 3).contiguous(),
            "numbers": torch.from_numpy(np.stack([np.stack(sample["numbers"]) for sample in samples])).float(),
            "shuffle_draws": torch.tensor([sample["shuffle_draw"] for sample in samples], dtype=torch.float64),
            "rejected": [entry for sample in samples for entry in sample["rejected"]],
        }

    def to_device(self, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
        pixels = batch["crops"].to(device, non_blocking=True)
        pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        if not self.pillow:
            numbers = batch["numbers"].unbind(1)
            views = zip(pixels.unbind(1), numbers, self.recipes, strict=True)
            pixels = torch.stack([augment_tensors(view, own, recipe.additive) for view, own, recipe in views], dim=1)
        # Order is all that counts, and 32 bits hold it on every device.
        ranks = batch["shuffle_draws"].float().to(device, non_blocking=True)
        return {"views": normalize_pixels(pixels, self.mean, self.std), "shuffle_draws": ranks}


def build_two_view_data(
    arguments: DataArguments,
    *,
    image_size: int,
    channels: int,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    accumulation: int = 1,
) -> TrainingData:
    """Training batches of an image-only method, as configured.

    Raises:
        ValueError: an unknown recipe or option, or Pillow asked for where a recipe has no Pillow form.
    """
    if arguments.augmentation_device not in ("tensors", "pillow"):
        raise ValueError(f"augmentation_device must be tensors or pillow, not {arguments.augmentation_device!r}")
    recipes = view_recipes(arguments.augmentation, **arguments.augmentation_options)
    pillow = arguments.augmentation_device == "pillow"
    if pillow and any(recipe.additive for recipe in recipes):
        raise ValueError("BYOL's colors are defined on numbers, not pictures: set augmentation_device to tensors")
    if pillow and channels not in SEEN:
        raise ValueError(f"Pillow cannot change the colors of {channels} channels: set augmentation_device to tensors")
    return assemble(
        arguments,
        lambda corpus: TwoViewSamples(corpus, recipes, image_size, channels, pillow, arguments, seed),
        TwoViewCollator(recipes, mean, std, pillow),
        (batch_size, seed, rank, world_size),
        captions=False,
        accumulation=accumulation,
    )
