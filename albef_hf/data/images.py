"""Decoding of pictures from any source to RGB. What cannot be decoded is refused with the reason."""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..image_conversion import DEEP, is_turned, to_rgb

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # a JPEG file may turn out to be MPO
MAX_PIXELS = 89_478_485  # from here on Pillow warns of a decompression bomb
_NUMPY = b"\x93NUMPY"  # how .npy files begin
_ONE_BAND = ("1", "L", "P", *DEEP)


class BadImage(ValueError):
    """A picture that cannot be used. `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@contextmanager
def refusing() -> Iterator[None]:
    """In this context every error of a decoder becomes `BadImage`."""
    try:
        yield
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(str(error)) from error
    except Exception as error:  # decoders raise errors of any type for broken bytes
        raise BadImage(f"unreadable: {type(error).__name__}: {error}") from error


def open_image(value: Any, max_pixels: int = MAX_PIXELS) -> Image.Image | np.ndarray:
    """Open a picture: a `PIL` image that is not decoded yet, or the array of a .npy file.

    Args:
        value: bytes, a path, a PIL image, an array, or the undecoded form of a `datasets` image, {"bytes": ...,
            "path": ...}.
        max_pixels: a picture that is larger, by its header, is not read.

    Raises:
        BadImage: it is missing, empty, too large or of an unknown format.
    """
    if isinstance(value, Image.Image | np.ndarray):
        return _small_enough(value, max_pixels)
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise BadImage("no image")
    if isinstance(value, bytes):
        if not value:
            raise BadImage("empty file")
        value = io.BytesIO(value)
    elif not isinstance(value, str | Path):
        raise BadImage(f"{type(value).__name__} {str(value)[:80]!r} is no picture")
    elif not Path(value).is_file():
        raise BadImage(f"no such file: {value}")
    if _is_array(value):
        return _read_array(value, max_pixels)
    return _small_enough(Image.open(value, formats=FORMATS), max_pixels)


def _small_enough(image: Any, max_pixels: int) -> Any:
    """The picture, if it has no more pixels than `max_pixels`. Arrays are checked before they are read."""
    if isinstance(image, Image.Image) and image.width * image.height > max_pixels:
        raise BadImage(f"{image.width} x {image.height} pixels are more than {max_pixels}")
    return image


def _is_array(value: Any) -> bool:
    if isinstance(value, io.BytesIO):
        return value.getbuffer()[:6].tobytes() == _NUMPY
    with Path(value).open("rb") as handle:
        return handle.read(6) == _NUMPY


def _read_array(value: Any, max_pixels: int) -> np.ndarray:
    """The array of a .npy file. No pickled objects are read."""
    handle = value if isinstance(value, io.BytesIO) else io.BytesIO(Path(value).read_bytes())
    version = np.lib.format.read_magic(handle)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(handle)
    if len(shape) not in (2, 3) or kind.kind not in "uif" or 0 in shape:
        raise BadImage(f"an array of shape {shape} and type {kind} is no picture")
    pixels = math.prod(shape) // (min(shape[0], shape[2]) if len(shape) == 3 else 1)
    if pixels > max_pixels:
        raise BadImage(f"an array of shape {shape}: {pixels} pixels are more than {max_pixels}")
    handle.seek(0)
    return np.load(handle, allow_pickle=False)


def _three_channels(image: Image.Image | np.ndarray) -> Image.Image:
    """The picture as Pillow has it, if it can be seen in color or gray."""
    if isinstance(image, np.ndarray):
        channels = 1 if image.ndim == 2 else image.shape[2]
        if image.dtype != np.uint8 and not (image.dtype == np.uint16 and image.ndim == 2) or channels not in (1, 3, 4):
            raise BadImage(
                f"an array of shape {image.shape} and type {image.dtype}; 8 bits (height, width, 3) are needed"
            )
        return Image.fromarray(image[:, :, 0] if image.ndim == 3 and channels == 1 else image)
    if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1 and image.mode in _ONE_BAND:
        first = image.size
        image.seek(1)
        second = image.size
        image.seek(0)
        if first == second:
            frames = image.n_frames  # type: ignore[attr-defined]
            raise BadImage(f"a TIFF file of {frames} pages with one channel each; 3 channels are needed")
    return image


def decode_image(value: Any, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture to RGB.

    The EXIF orientation is applied, transparent parts become white, and of an animation the first frame is taken.

    Args:
        value: as in `open_image`.
        max_pixels: a picture that is larger, by its header, is not decoded.

    Raises:
        BadImage: the picture is missing, empty, truncated, too large, of an unknown format, or has other channels than
            color, gray and transparency.
    """
    with refusing():
        image = _three_channels(open_image(value, max_pixels))
        image.load()
        return to_rgb(image)


def picture_size(value: Any) -> tuple[int, int]:
    """Width and height that `decode_image` would return, by the picture's header.

    Raises:
        BadImage: it is missing, empty or of an unknown format.
    """
    with refusing():
        image = open_image(value)
        if isinstance(image, np.ndarray):
            return image.shape[1], image.shape[0]
        return (image.height, image.width) if is_turned(image) else image.size
