"""Two augmented views of a picture, with each paper's numbers.

`draw_view` first draws what happens to a view, as numbers, from the sample's own generator. Two implementations follow
these numbers: one with Pillow, picture by picture, as the publications do, and one with tensors, a batch at a time on
the training device. Both crop with Pillow: a picture is decoded once, and only its two crops go to the device.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import nn

from albef_hf.data.augmentation import GRAY_WEIGHTS, check_probability, check_range, random_crop
from albef_hf.data.hints import current_names, nearest_hint


@dataclass(frozen=True)
class ViewRecipe:
    """The distribution of one view.

    Args:
        scale: smallest and largest share of the picture's area that a crop has.
        jitter: greatest change of brightness, contrast, saturation and hue.
        jitter_probability: of changing these four.
        gray: probability that the view loses its color.
        gray_first: whether it does so before the four changes (MoCo v1) or after them.
        blur: probability of a Gaussian blur.
        blur_sigma: smallest and largest sigma of the blur, in pixels.
        solarize: probability of inverting the bright pixels.
        flip: probability of mirroring.
        additive: brightness is added, contrast is taken around each channel's mean, and blur has a kernel of 23 pixels
            and black beyond the edges, as in BYOL's code.
        attempts: boxes tried before the middle of the picture is taken.
        cut_to_fit: cut a box that is too wide or too high to the picture instead, as in BYOL's code.
        interpolation: of the crop.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_probability: float = 0.8
    gray: float = 0.2
    gray_first: bool = False
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    flip: float = 0.5
    additive: bool = False
    attempts: int = 10
    cut_to_fit: bool = False
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a probability beyond 0 .. 1, a range that is none, or an unknown interpolation.
        """
        for name in PROBABILITIES:
            check_probability(name, getattr(self, name))
        check_range("scale", self.scale, 1.0)
        check_range("blur_sigma", self.blur_sigma)
        if len(self.jitter) != 4 or min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise ValueError(
                f"augmentation_options: jitter must be four numbers from 0, the last up to 0.5: {self.jitter}"
            )
        if self.interpolation not in [method.name.lower() for method in Image.Resampling]:
            raise ValueError(f"augmentation_options: interpolation is bilinear or bicubic, not {self.interpolation!r}")


PROBABILITIES = tuple(field.name for field in dataclasses.fields(ViewRecipe) if field.type is float)

_V1 = ViewRecipe(jitter=(0.4, 0.4, 0.4, 0.4), jitter_probability=1.0, gray_first=True)
_V2 = ViewRecipe(jitter=(0.4, 0.4, 0.4, 0.1), blur=0.5)
_V3 = (ViewRecipe(blur=1.0), ViewRecipe(blur=0.1, solarize=0.2))


def _with(pair: tuple[ViewRecipe, ViewRecipe], **changes: Any) -> tuple[ViewRecipe, ViewRecipe]:
    first, second = (dataclasses.replace(recipe, **changes) for recipe in pair)
    return first, second


_BARLOW = _with(_V3, scale=(0.08, 1.0), interpolation="bicubic")
# Both views of each publication, as in its code. MoCo v3 with a ViT uses crops from 0.08: set `augmentation_options`.
RECIPES = {
    "moco_v1": (_V1, _V1),
    "moco_v2": (_V2, _V2),
    "moco_v3": _V3,
    "byol": _with(_BARLOW, additive=True, attempts=1, cut_to_fit=True),
    "barlow_twins": _BARLOW,
}


FORMER_OPTIONS = {"grey": "gray", "grey_first": "gray_first"}


def view_recipes(name: str, **options: Any) -> tuple[ViewRecipe, ViewRecipe]:
    """The recipes of both views.

    Args:
        name: one of `RECIPES`.
        options: fields of `ViewRecipe`, set for both views. For a probability, a list [a, b] sets each view's own. The
            former names `grey` and `grey_first` are still read.

    Raises:
        ValueError: an unknown name or option; names the nearest.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown augmentation of an image-only method: {name!r}; {nearest_hint(name, RECIPES)}")
    fields = [field.name for field in dataclasses.fields(ViewRecipe)]
    pair = list(RECIPES[name])
    for key, value in current_names(options, FORMER_OPTIONS, "augmentation_options").items():
        if key not in fields:
            raise ValueError(f"unknown augmentation_options {key!r}; {nearest_hint(key, fields)}")
        one_per_view = isinstance(value, (list, tuple)) and key in PROBABILITIES
        for view in range(2):
            chosen = value[view] if one_per_view else tuple(value) if isinstance(value, list) else value
            changes: dict[str, Any] = {key: chosen}
            pair[view] = dataclasses.replace(pair[view], **changes)
    return pair[0], pair[1]


# ---------------------------------------------------------------------------------------------------------------------
# What is drawn
# ---------------------------------------------------------------------------------------------------------------------

# Columns of the numbers of a view. A factor of 1, a hue shift of 0 and a sigma of 0 leave the picture as it is.
FLIP, GRAY_BEFORE, BRIGHTNESS, CONTRAST, SATURATION, HUE, ORDER, GRAY_AFTER, SIGMA, SOLARIZE = (
    0, 1, 2, 3, 4, 5, slice(6, 10), 10, 11, 12,
)  # fmt: skip
NUMBERS = 13


def draw_view(recipe: ViewRecipe, generator: np.random.Generator) -> np.ndarray:
    """Draw the numbers of one view: (13,).

    The columns `ORDER` say in which order brightness (0), contrast (1), saturation (2) and hue (3) are changed. Every
    call takes the same number of draws from the generator.
    """
    uniform = generator.random(11)
    order = generator.permutation(4)
    numbers = np.zeros(NUMBERS)
    brightness, contrast, saturation, hue = recipe.jitter
    jittered = uniform[0] < recipe.jitter_probability
    numbers[FLIP] = uniform[1] < recipe.flip
    gray = uniform[2] < recipe.gray
    numbers[GRAY_BEFORE], numbers[GRAY_AFTER] = gray and recipe.gray_first, gray and not recipe.gray_first
    for column, share, most in ((BRIGHTNESS, 3, brightness), (CONTRAST, 4, contrast), (SATURATION, 5, saturation)):
        numbers[column] = 1 + (2 * uniform[share] - 1) * most if jittered else 1.0
    numbers[HUE] = (2 * uniform[6] - 1) * hue if jittered else 0.0
    numbers[ORDER] = order
    low, high = recipe.blur_sigma
    numbers[SIGMA] = low + (high - low) * uniform[8] if uniform[7] < recipe.blur else 0.0
    numbers[SOLARIZE] = uniform[9] < recipe.solarize
    return numbers


def crop_view(image: Any, size: int, recipe: ViewRecipe, generator: np.random.Generator) -> Any:
    """A random box of a picture, or of `Bands`, resized to `size` x `size` pixels."""
    return random_crop(image, size, recipe.scale, generator, recipe.attempts, recipe.interpolation, recipe.cut_to_fit)


# ---------------------------------------------------------------------------------------------------------------------
# Pillow, picture by picture
# ---------------------------------------------------------------------------------------------------------------------


def _shift_hue(image: Image.Image, shift: float) -> Image.Image:
    if image.mode != "RGB":
        return image
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue, dtype=np.int16) + round(shift * 255)) % 256
    return Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGB")


def _gray(image: Image.Image) -> Image.Image:
    return image.convert("L").convert(image.mode)


def augment_pillow(image: Image.Image, numbers: np.ndarray) -> Image.Image:
    """Augment one crop by its numbers, with the operations of the PyTorch publications. Not for `additive` recipes."""
    if numbers[FLIP]:
        image = ImageOps.mirror(image)
    if numbers[GRAY_BEFORE]:
        image = _gray(image)
    for operation in numbers[ORDER].astype(int):
        if operation == 0 and numbers[BRIGHTNESS] != 1:
            image = ImageEnhance.Brightness(image).enhance(numbers[BRIGHTNESS])
        elif operation == 1 and numbers[CONTRAST] != 1:
            image = ImageEnhance.Contrast(image).enhance(numbers[CONTRAST])
        elif operation == 2 and numbers[SATURATION] != 1:
            image = ImageEnhance.Color(image).enhance(numbers[SATURATION])
        elif operation == 3 and numbers[HUE] != 0:
            image = _shift_hue(image, numbers[HUE])
    if numbers[GRAY_AFTER]:
        image = _gray(image)
    if numbers[SIGMA]:
        image = image.filter(ImageFilter.GaussianBlur(float(numbers[SIGMA])))
    return ImageOps.solarize(image, 128) if numbers[SOLARIZE] else image


# ---------------------------------------------------------------------------------------------------------------------
# Tensors, a batch at a time
# ---------------------------------------------------------------------------------------------------------------------

RowChange = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (pictures, one number for each) -> pictures


def _to_gray(pixels: torch.Tensor) -> torch.Tensor:
    """(n, 3, h, w) -> (n, 1, h, w)."""
    red, green, blue = pixels.split(1, dim=1)
    return (GRAY_WEIGHTS[0] * red).add_(green, alpha=GRAY_WEIGHTS[1]).add_(blue, alpha=GRAY_WEIGHTS[2])


def _change_rows(pixels: torch.Tensor, wanted: torch.Tensor, numbers: torch.Tensor, change: RowChange) -> None:
    """Apply `change` to some pictures of a batch, in place. wanted, numbers: (n,), on the CPU."""
    index = wanted.nonzero().squeeze(1)
    if len(index):
        amounts = numbers[index].to(pixels.device, pixels.dtype, non_blocking=True)
        index = index.to(pixels.device, non_blocking=True)
        pixels.index_copy_(0, index, change(pixels[index], amounts))


def _turn_hue(pixels: torch.Tensor, shift: torch.Tensor, saturation: torch.Tensor | None = None) -> torch.Tensor:
    """Rotate the hue by `shift` full turns and multiply the saturation, both (n,), of pictures (n, 3, h, w)."""
    value, (red, green, blue) = pixels.amax(1), pixels.unbind(1)
    chroma = value - pixels.amin(1)
    safe = chroma.clamp(min=1e-12)
    sector = torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    sector = torch.where(value == red, (green - blue) / safe, sector)
    hue = torch.where(chroma == 0, 0.0, sector) + 6 * shift[:, None, None]
    if saturation is not None:
        chroma = torch.minimum(chroma * saturation[:, None, None], value)
    # Each channel as value - chroma * f(hue), f a trapezoid of period 6.
    sixths = [(hue + start) % 6 for start in (5.0, 3.0, 1.0)]
    return torch.stack([value - chroma * torch.minimum(x, 4 - x).clamp(0, 1) for x in sixths], dim=1)


def _strengthen(pixels: torch.Tensor, saturation: torch.Tensor) -> torch.Tensor:
    """BYOL's change of saturation."""
    return _turn_hue(pixels.clamp(min=0), torch.zeros_like(saturation), saturation)


def _change_colors(pixels: torch.Tensor, numbers: torch.Tensor, additive: bool) -> torch.Tensor:
    """Change brightness, contrast, saturation and hue, of each picture in its own order.

    The first three multiply a picture and add a number, the mean of its gray, or its gray. So each position of the
    order is one pass over the whole batch; only hue (and BYOL's saturation) works on selected pictures.
    """
    operations = numbers[:, ORDER].long()  # (n, 4): the operation at each position
    factors = numbers[:, [BRIGHTNESS, CONTRAST, SATURATION, HUE]].gather(1, operations)
    brightness, contrast, saturation, hue = (operations == operation for operation in range(4))
    if pixels.shape[1] != 3:
        saturation, hue = torch.zeros_like(saturation), torch.zeros_like(hue)
    turned, strengthened = hue & (factors != 0), saturation & (factors != 1) & additive
    blended = contrast if additive else brightness | contrast | saturation
    shares = torch.stack(
        [
            torch.where(blended, factors, 1),
            (factors - 1) * (brightness & additive),
            (1 - factors) * contrast,
            (1 - factors) * (saturation & (not additive)),
        ]
    ).to(pixels.device, pixels.dtype, non_blocking=True)  # (4, n, 4)
    for position in range(4):
        factor, number, of_mean, of_gray = shares[:, :, position, None, None, None]
        if additive:
            base = number + of_mean * pixels.mean((2, 3), keepdim=True)
        else:
            gray = _to_gray(pixels) if pixels.shape[1] == 3 else pixels
            base = of_mean * gray.mean((2, 3), keepdim=True) + of_gray * gray
        pixels = torch.addcmul(base, pixels, factor)
        pixels = pixels.clamp_(0, 1)
        _change_rows(pixels, turned[:, position], factors[:, position], _turn_hue)
        _change_rows(pixels, strengthened[:, position], factors[:, position], _strengthen)
    return pixels


def gaussian_blur(pixels: torch.Tensor, sigma: torch.Tensor, additive: bool = False) -> torch.Tensor:
    """Blur each picture with its own sigma, repeating the edges.

    Args:
        pixels: (n, channels, h, w).
        sigma: (n,), in pixels, all positive. The kernel reaches 4 sigma to each side for sigma up to 2.
        additive: as in BYOL's code: a kernel of 23 pixels, and black beyond the edges.
    """
    n, channels, height, width = pixels.shape
    radius = 11 if additive else 8
    offset = torch.arange(-radius, radius + 1, device=pixels.device, dtype=pixels.dtype)
    kernel = torch.exp(-(offset**2) / (2 * sigma.to(pixels.dtype)[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, dim=0)
    whole = pixels.reshape(1, n * channels, height, width)
    rows = nn.functional.pad(whole, (radius,) * 4, mode="constant" if additive else "replicate")
    rows = nn.functional.conv2d(rows, kernel[:, None, None, :], groups=n * channels)
    rows = nn.functional.conv2d(rows, kernel[:, None, :, None], groups=n * channels)
    return rows.view(n, channels, height, width)


def augment_tensors(pixels: torch.Tensor, numbers: torch.Tensor, additive: bool = False) -> torch.Tensor:
    """Augment a batch of crops (n, channels, h, w) in 0 .. 1, on any device, by their numbers (n, 13) of `draw_view`.

    The numbers are on the CPU, so that it is known without waiting for the device what each picture needs. Pictures
    without three channels keep saturation and hue and lose no color, since they have none. additive: `ViewRecipe`.
    """
    changes: dict[int, RowChange] = {
        FLIP: lambda rows, _: rows.flip(3),
        GRAY_BEFORE: lambda rows, _: _to_gray(rows).expand_as(rows),
        GRAY_AFTER: lambda rows, _: _to_gray(rows).expand_as(rows),
        SIGMA: functools.partial(gaussian_blur, additive=additive),
        SOLARIZE: lambda rows, _: torch.where(rows >= 128 / 255, 1 - rows, rows),
    }
    pixels = pixels.clone()
    if pixels.shape[1] != 3:
        del changes[GRAY_BEFORE]
        changes[GRAY_AFTER] = lambda rows, _: rows
    for column, change in changes.items():
        if column == GRAY_AFTER:
            pixels = _change_colors(pixels, numbers, additive)
        _change_rows(pixels, numbers[:, column] > 0, numbers[:, column], change)
    return pixels


def normalize_pixels(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(..., channels, h, w) in 0 .. 1 -> (pixels - mean) / std, channel by channel."""
    average, deviation = (pixels.new_tensor(values)[:, None, None] for values in (mean, std))
    return (pixels - average) / deviation


def to_unit_range(image: Any) -> torch.Tensor:
    """A picture, or `Bands` -> (channels, h, w); 8 bits become 0 .. 1, other numbers stay."""
    array = np.array(image)
    pixels = torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1).contiguous()
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
