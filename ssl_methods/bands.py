"""Pictures of any number of channels: from arrays, from TIFF files of several pages, and from pictures with bands."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from albef_hf.data.images import MAX_PIXELS, BadImage, decode_image, open_image, refusing

SEEN = (1, 3)  # channels that Pillow's pictures have in gray and in color


class Bands:
    """A picture as one plane of numbers a channel. It can be cropped and resized like a Pillow image.

    Args:
        planes: Pillow images of mode "F", all of one size; values of 0 .. 1 where they come from whole numbers.
    """

    def __init__(self, planes: Sequence[Image.Image]) -> None:
        self.planes = list(planes)
        self.size = self.planes[0].size

    def resize(self, size: tuple[int, int], resample: Any = None, box: Any = None) -> "Bands":
        """Like `PIL.Image.Image.resize`, channel by channel."""
        return Bands([plane.resize(size, resample, box=box) for plane in self.planes])

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        """(height, width, channels), 32-bit floating point numbers."""
        return np.stack([np.asarray(plane, dtype=np.float32) for plane in self.planes], axis=-1)


def read_picture(value: Any, channels: int, max_pixels: int = MAX_PIXELS) -> Image.Image | Bands:
    """Decode a picture to a number of channels.

    Gray and color come from any picture, by `decode_image`. Other numbers come from what has exactly so many: a .npy
    array (height, width, channels) or (channels, height, width), a TIFF file with a page for each channel, or a
    picture with so many bands, such as RGBA. Whole numbers are divided by the largest number of their type; floating
    point numbers are within 0 .. 1 already.

    Raises:
        BadImage: it cannot be read, or has another number of channels.
    """
    with refusing():
        opened = open_image(value, max_pixels)
        if isinstance(opened, np.ndarray):
            return _from_array(opened, channels)
        pages = getattr(opened, "n_frames", 1) if opened.format == "TIFF" else 1
        if channels > 1 and pages == channels:
            return Bands([plane for page in range(pages) for plane in _planes(opened, page)])
        if channels in SEEN:
            image = decode_image(opened, max_pixels)
            return image.convert("L") if channels == 1 else image
        opened.load()
        if len(opened.getbands()) != channels:
            raise BadImage(f"{len(opened.getbands())} channels ({opened.mode}), but the model takes {channels}")
        return Bands([_unit_plane(np.asarray(band)) for band in opened.split()])


def _planes(image: Image.Image, page: int) -> list[Image.Image]:
    image.seek(page)
    if len(image.getbands()) != 1:
        raise BadImage(f"page {page} of a TIFF file has {len(image.getbands())} channels; pages of one are needed")
    return [_unit_plane(np.asarray(image))]


def _from_array(array: np.ndarray, channels: int) -> Bands:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.shape[2] != channels and array.shape[0] == channels:
        array = np.moveaxis(array, 0, 2)
    if array.shape[2] != channels:
        raise BadImage(f"an array of shape {array.shape}, but the model takes {channels} channels")
    return Bands([_unit_plane(array[:, :, channel]) for channel in range(channels)])


def _unit_plane(values: np.ndarray) -> Image.Image:
    if values.dtype == bool:
        values = values.astype(np.float32)
    elif values.dtype.kind in "ui":
        if values.min(initial=0) < 0:
            raise BadImage(f"values from {values.min()}; they must not be negative")
        values = values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
    values = np.ascontiguousarray(values, dtype=np.float32)
    low, high = values.min(initial=0), values.max(initial=0)
    if not (low >= 0 and high <= 1):
        raise BadImage(f"values from {low} to {high}; floating point numbers must be within 0 .. 1, so scale them")
    return Image.fromarray(values)


def displayed(picture: Image.Image | Bands) -> np.ndarray:
    """What to show of a picture: (height, width, 3) or (height, width) of 8 bits; of many channels the first three,
    each from its smallest to its largest value."""
    if not isinstance(picture, Bands):
        return np.asarray(picture)
    values = np.asarray(picture)[:, :, : 3 if len(picture.planes) >= 3 else 1]
    low, high = values.min((0, 1)), values.max((0, 1))
    return (255 * (values - low) / np.maximum(high - low, 1e-12)).astype(np.uint8)
