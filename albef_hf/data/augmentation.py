"""Pre-training augmentation. Every random choice comes from the generator passed in."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

Augmentation = Callable[[Image.Image, np.random.Generator], torch.Tensor]
AUGMENTATIONS = ("albef", "crop", "gentle", "none")
FILL = (128, 128, 128)
GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R 601


def _affine(image: Image.Image, matrix: Sequence[float], fill: tuple[int, int, int] = FILL) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=fill)


def _sharpen(image: Image.Image, factor: float) -> Image.Image:
    smooth = image.filter(ImageFilter.Kernel((3, 3), (1, 1, 1, 1, 5, 1, 1, 1, 1)))
    return Image.blend(smooth, image, factor)


def random_operation(image: Image.Image, generator: np.random.Generator, magnitude: int = 7) -> Image.Image:
    """One of the ten published operations, drawn with equal chances; none changes colours much.

    At magnitude m of 10: brightness and sharpness factor 0.1 + 1.8 m / 10 (1.36 at 7), shear 0.3 m / 10 (0.21),
    translation m pixels (7), rotation 30 m / 10 degrees (21); the last three to either side, on a grey ground. Pillow
    interpolates where the publication's OpenCV does, with other rounding.
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


def random_colours(pixels: torch.Tensor, strength: float, generator: np.random.Generator) -> torch.Tensor:
    """Other colours for the same drawing: pixels (3, h, w) in 0 .. 1 -> the same.

    Hue is turned by up to 63 degrees about the grey axis, saturation changed by up to 60 %, contrast (about the
    picture's mean) and brightness by up to 40 %, all times `strength`. The published operations leave colours alone,
    since captions name them; drawings of one thing by other hands differ in little else.
    """
    hue, saturation, contrast, brightness = strength * generator.uniform(-1, 1, 4)
    angle = hue * 0.35 * np.pi
    around, axis = 1 / 3, np.sqrt(1 / 3)  # Rodrigues' rotation about (1, 1, 1)
    turn = np.cos(angle) * np.eye(3) + (1 - np.cos(angle)) * around
    turn += np.sin(angle) * axis * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    luma = np.full((3, 3), GREY_WEIGHTS)  # every row gives a pixel's brightness
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
) -> Image.Image:
    """A box of a random share of the area and a random aspect ratio in 3/4 .. 4/3, resized.

    After so many `attempts` that do not fit, the largest box of such an aspect ratio in the middle.
    """
    width, height = image.size
    for _ in range(attempts):
        area = width * height * generator.uniform(scale[0], scale[1])
        ratio = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(generator.integers(width - w + 1)), int(generator.integers(height - h + 1))
            break
    else:  # a picture too long for any such box: its middle
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - w) // 2, (height - h) // 2
    box = (left, top, left + w, top + h)
    return image.resize((size, size), Image.Resampling[interpolation.upper()], box=box)


def build_augmentation(
    name: str, image_size: int, image_mean: Sequence[float], image_std: Sequence[float], **options: Any
) -> Augmentation:
    """What turns an RGB picture into a tensor (3, image_size, image_size).

    Args:
        name: `albef` (published: crop of 0.2 .. 1 of the area, flip, two random operations each applied with
            p = 0.5), `crop` (crop and flip), `gentle` (crop of 0.6 .. 1, a small rotation on white, flip: for
            drawings), `none` (squashed).
        options: `scale` (two shares of the area; None: the whole picture instead of a crop), `flip` (probability),
            `operations` (their number), `magnitude`, `colours` (strength of `random_colours`, 0 for none).

    Raises:
        ValueError: unknown name or option.
    """
    if name not in AUGMENTATIONS:
        nearest = difflib.get_close_matches(name, AUGMENTATIONS, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"augmentation must be one of {', '.join(AUGMENTATIONS)}, not {name!r}{hint}")
    defaults: dict[str, Any] = {
        "scale": (0.6, 1.0) if name == "gentle" else (0.2, 1.0),
        "flip": 0.5,
        "operations": 2 if name == "albef" else 0,
        "magnitude": 7,
        "colours": 0.0,
    }
    unknown = set(options) - set(defaults)
    if unknown:
        raise ValueError(f"unknown augmentation_options {sorted(unknown)}; known: {', '.join(defaults)}")
    chosen = defaults | options
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
        if chosen["colours"]:
            pixels = random_colours(pixels, chosen["colours"], generator)
        return (pixels - mean) / std

    return augment
