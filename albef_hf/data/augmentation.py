"""Augmentation of pictures for pre-training. Every random choice comes from the generator that is passed in."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from .hints import current_names, nearest_hint

Augmentation = Callable[[Image.Image, np.random.Generator], torch.Tensor]
# Every option of an augmentation and its usual value, and what each augmentation has in place of it.
OPTIONS: dict[str, Any] = {
    "scale": (0.2, 1.0),  # smallest and largest share of the area; None: the whole picture instead of a crop
    "flip": 0.5,  # probability
    "operations": 0,  # how many of `random_operation`, each applied with probability 0.5
    "magnitude": 7,  # of these operations
    "colors": 0.0,  # strength of `random_colors`; 0: none
}
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "albef": {"operations": 2},
    "crop": {},
    "gentle": {"scale": (0.6, 1.0)},
    "none": {},
}
FORMER_OPTIONS = {"colours": "colors"}
FILL = (128, 128, 128)
GRAY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R 601


def check_probability(name: str, value: Any) -> None:
    """Raises: ValueError where it is not within 0 .. 1."""
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"augmentation_options: {name} is a probability within 0 .. 1, not {value!r}")


def check_range(name: str, value: Any, highest: float = math.inf) -> None:
    """Raises: ValueError where it is not two numbers, the smaller first, above 0 and up to `highest`."""
    pair = value if isinstance(value, (list, tuple)) else ()
    numbers = len(pair) == 2 and all(isinstance(each, int | float) for each in pair)
    if not numbers or not 0 < pair[0] <= pair[1] <= highest:
        limit = "" if highest == math.inf else f" and up to {highest:g}"
        raise ValueError(
            f"augmentation_options: {name} must be two numbers above 0{limit}, the smaller first, not {value!r}"
        )


def _affine(image: Image.Image, matrix: Sequence[float], fill: tuple[int, int, int] = FILL) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=fill)


def _sharpen(image: Image.Image, factor: float) -> Image.Image:
    smooth = image.filter(ImageFilter.Kernel((3, 3), (1, 1, 1, 1, 5, 1, 1, 1, 1)))
    return Image.blend(smooth, image, factor)


def random_operation(image: Image.Image, generator: np.random.Generator, magnitude: int = 7) -> Image.Image:
    """One of the ten published operations, each equally likely. None of them changes colors much.

    At magnitude m of 10: brightness and sharpness by the factor 0.1 + 1.8 m / 10 (1.36 at 7), shear 0.3 m / 10 (0.21),
    translation by m pixels (7), rotation by 30 m / 10 degrees (21). Shear, translation and rotation go to either side
    with equal chances, and uncovered parts become gray. Pillow interpolates here and OpenCV in the publication, so
    rounding differs.
    """
    operation = int(generator.integers(10))
    sign = 1 if generator.random() < 0.5 else -1
    factor, shear, shift, angle = 0.1 + 0.18 * magnitude, 0.03 * magnitude, float(magnitude), 3.0 * magnitude
    if operation == 0:
        return image
    if operation == 1:
        return ImageOps.autocontrast(image)
    if operation == 2:
        return ImageOps.equalize(image)
    if operation == 3:
        return ImageEnhance.Brightness(image).enhance(factor)
    if operation == 4:
        return _sharpen(image, factor)
    if operation == 5:
        return _affine(image, (1, sign * shear, 0, 0, 1, 0))
    if operation == 6:
        return _affine(image, (1, 0, 0, sign * shear, 1, 0))
    if operation == 7:
        return _affine(image, (1, 0, sign * shift, 0, 1, 0))
    if operation == 8:
        return _affine(image, (1, 0, 0, 0, 1, sign * shift))
    return image.rotate(sign * angle, Image.Resampling.BILINEAR, fillcolor=FILL)


def random_colors(pixels: torch.Tensor, strength: float, generator: np.random.Generator) -> torch.Tensor:
    """The same drawing in other colors: pixels (3, h, w) in 0 .. 1 -> the same shape and range.

    The hue is rotated by up to 63 degrees about the gray axis, saturation changes by up to 60 %, contrast (about the
    picture's mean) and brightness by up to 40 %, all of it times `strength`. The published operations leave colors
    alone, since captions name them; but drawings of one thing by different designers differ in little else.
    """
    hue, saturation, contrast, brightness = strength * generator.uniform(-1, 1, 4)
    angle = hue * 0.35 * np.pi
    around, axis = 1 / 3, np.sqrt(1 / 3)  # Rodrigues' rotation about (1, 1, 1)
    turn = np.cos(angle) * np.eye(3) + (1 - np.cos(angle)) * around
    turn += np.sin(angle) * axis * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    luma = np.full((3, 3), GRAY_WEIGHTS)  # every row gives a pixel's brightness
    matrix = torch.from_numpy(luma + (1 + 0.6 * saturation) * turn @ (np.eye(3) - luma)).to(pixels.dtype)
    pixels = torch.einsum("ij,jhw->ihw", matrix, pixels)
    mean = pixels.mean()
    return (((pixels - mean) * (1 + 0.4 * contrast) + mean) * (1 + 0.4 * brightness)).clamp(0, 1)


def random_crop(
    image: Image.Image,
    size: int,
    scale: Sequence[float],
    generator: np.random.Generator,
    attempts: int = 10,
    interpolation: str = "bicubic",
    cut_to_fit: bool = False,
) -> Image.Image:
    """A random box of the picture, resized to `size` x `size` pixels.

    The box has a random share of the area within `scale` and a random aspect ratio within 3/4 .. 4/3. If none of
    `attempts` boxes fits into the picture, the largest box in the middle with such an aspect ratio is taken.
    cut_to_fit: cut a box that does not fit to the picture instead; its place stays random.
    """
    width, height = image.size
    for _ in range(attempts):
        area = width * height * generator.uniform(scale[0], scale[1])
        ratio = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if cut_to_fit:
            w, h = min(w, width), min(h, height)
        if 0 < w <= width and 0 < h <= height:
            left, top = int(generator.integers(width - w + 1)), int(generator.integers(height - h + 1))
            break
    else:
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - w) // 2, (height - h) // 2
    box = (left, top, left + w, top + h)
    return image.resize((size, size), Image.Resampling[interpolation.upper()], box=box)


def build_augmentation(
    name: str, image_size: int, image_mean: Sequence[float], image_std: Sequence[float], **options: Any
) -> Augmentation:
    """A function from an RGB picture and a generator to a normalized tensor (3, image_size, image_size).

    Args:
        name: `albef` (published: a crop of 0.2 .. 1 of the area, a flip, and two random operations, each applied with
            probability 0.5), `crop` (crop and flip), `gentle` (a small rotation on a white ground, a crop of 0.6 .. 1,
            a flip: for drawings), or `none` (the whole picture, resized to a square).
        options: values of `OPTIONS` in place of the augmentation's own; former names of options are still read.

    Raises:
        ValueError: an unknown name or option; names the nearest.
    """
    if name not in AUGMENTATIONS:
        raise ValueError(f"unknown augmentation {name!r}; {nearest_hint(name, AUGMENTATIONS)}")
    options = current_names(options, FORMER_OPTIONS, "augmentation_options")
    for key in options:
        if key not in OPTIONS:
            raise ValueError(f"unknown augmentation_options {key!r}; {nearest_hint(key, OPTIONS)}")
    chosen = OPTIONS | AUGMENTATIONS[name] | options
    check_probability("flip", chosen["flip"])
    if chosen["scale"] is not None:
        check_range("scale", chosen["scale"], 1.0)
    mean, std = torch.tensor(image_mean)[:, None, None], torch.tensor(image_std)[:, None, None]

    def augment(image: Image.Image, generator: np.random.Generator) -> torch.Tensor:
        if name == "none":
            image = image.resize((image_size, image_size), Image.Resampling.BICUBIC)
        else:
            if name == "gentle":
                angle = generator.uniform(-12, 12)
                image = image.rotate(angle, Image.Resampling.BILINEAR, fillcolor=(255, 255, 255))
            if chosen["scale"] is None:
                image = image.resize((image_size, image_size), Image.Resampling.BICUBIC)
            else:
                image = random_crop(image, image_size, chosen["scale"], generator)
            if generator.random() < chosen["flip"]:
                image = ImageOps.mirror(image)
            for _ in range(chosen["operations"]):
                if generator.random() < 0.5:
                    image = random_operation(image, generator, chosen["magnitude"])
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        if chosen["colors"]:
            pixels = random_colors(pixels, chosen["colors"], generator)
        return (pixels - mean) / std

    return augment
