"""Pictures of any kind to RGB. Training, evaluation and the processor see the same pixels."""

from typing import Any

import numpy as np
from PIL import Image, ImageOps

WHITE = (255, 255, 255, 255)
_ORIENTATION = 0x0112  # of EXIF
_STRIP = 1 << 20  # pixels that are converted together, so that large pictures are not held twice
DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")


def is_turned(image: Image.Image) -> bool:
    """Whether width and height are exchanged when the EXIF orientation is applied."""
    return image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture as people see it, in RGB.

    The EXIF orientation is applied, transparent parts become white, and gray values above 255 are taken for 16 bits.
    Conversion takes little more memory than the picture and its result.

    Raises:
        ValueError: gray values that are negative, not finite, or larger than 65,535.
    """
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in DEEP:
        return _deep_gray(image)
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        return _on_white(image)
    return image.convert("RGB")


def _strips(image: Image.Image) -> Any:
    height = max(1, _STRIP // max(1, image.width))
    return ((0, top, image.width, min(top + height, image.height)) for top in range(0, image.height, height))


def _deep_gray(image: Image.Image) -> Image.Image:
    made = Image.new("RGB", image.size)
    transparent = image.info.get("transparency")  # a gray value
    boxes = list(_strips(image))
    most = 0.0
    for box in boxes:
        values = np.asarray(image.crop(box))
        if not np.isfinite(values).all() or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise ValueError("its gray values are not all within 0 .. 65535")
        most = max(most, float(values.max(initial=0)))
    scale = 255 / 65535 if most > 255 else 255.0 if image.mode == "F" and most <= 1 else 1.0
    for box in boxes:
        values = np.asarray(image.crop(box))
        gray = (values.astype(np.float32) * np.float32(scale)).round().astype(np.uint8)
        if isinstance(transparent, int):
            gray[values == transparent] = 255
        made.paste(Image.fromarray(gray).convert("RGB"), box)
    return made


def _on_white(image: Image.Image) -> Image.Image:
    made = Image.new("RGB", image.size)
    for box in _strips(image):
        strip = image.crop(box)
        if "transparency" in image.info:
            strip.info["transparency"] = image.info["transparency"]
        canvas = Image.new("RGBA", strip.size, WHITE)
        canvas.alpha_composite(strip.convert("RGBA"))
        made.paste(canvas.convert("RGB"), box)
    return made


__all__ = ["DEEP", "is_turned", "to_rgb"]
