"""Decoding of pictures from any source to RGB. What cannot be decoded is refused with the reason."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # a JPEG file may turn out to be MPO
MAX_PIXELS = 89_478_485  # from here on Pillow warns of a decompression bomb


class BadImage(ValueError):
    """A picture that cannot be used. `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _open(value: Any) -> Image.Image:
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise BadImage("no image")
    if isinstance(value, bytes):
        if not value:
            raise BadImage("empty file")
        value = io.BytesIO(value)
    elif not Path(value).is_file():
        raise BadImage(f"no such file: {value}")
    return Image.open(value, formats=FORMATS)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "I;16", "I;16B", "I;16L", "F"):
        values = np.asarray(image, dtype=np.float64)
        # 16-bit gray values reach 65535; Pillow's own conversion would clip them at 255.
        scale = 255 / 65535 if values.max(initial=0) > 255 else 1.0
        image = Image.fromarray((values * scale).clip(0, 255).round().astype(np.uint8))
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
        canvas.alpha_composite(image)
        image = canvas
    return image.convert("RGB")


def decode_image(value: Any, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture to RGB.

    The EXIF orientation is applied, transparent parts become white, and of an animation the first frame is taken.

    Args:
        value: bytes, a path, a PIL image, or the undecoded form of a `datasets` image, {"bytes": ..., "path": ...}.
        max_pixels: a picture that is larger, by its header, is not decoded.

    Raises:
        BadImage: the picture is missing, empty, truncated, too large or of an unknown format.
    """
    try:
        image = _open(value)
        width, height = image.size
        if width * height > max_pixels:
            raise BadImage(f"{width} x {height} pixels are more than {max_pixels}")
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(str(error)) from error
    except Exception as error:  # decoders raise errors of any type for broken bytes
        raise BadImage(f"unreadable: {type(error).__name__}: {error}") from error
