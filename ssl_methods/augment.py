"""Two augmented views of a picture, with each paper's numbers.

What happens to a view is drawn first, as numbers (`draw_view`), from the sample's own generator. Two executors follow
the same numbers: Pillow, as the publications do, picture by picture; and tensors, a whole batch at a time on the
training device. Cropping is Pillow's in both: a picture is decoded once, and only its two crops travel.
"""

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torch import nn

from albef_hf.data.augmentation import GREY_WEIGHTS, random_crop


@dataclass(frozen=True)
class ViewRecipe:
    """The distribution of one view.

    scale: shares of the area a crop may have. jitter: greatest change of brightness, contrast, saturation and hue.
    grey_first: whether grey comes before the colour change (MoCo v1) or after. blur: probability of a Gaussian blur
    of sigma in `blur_sigma` (pixels). solarize: probability. additive: brightness is added and contrast taken around
    each channel's mean, as BYOL's code does. attempts: boxes tried before the middle is taken.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    jitter_probability: float = 0.8
    grey: float = 0.2
    grey_first: bool = False
    blur: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0
    flip: float = 0.5
    additive: bool = False
    attempts: int = 10
    interpolation: str = "bilinear"


_V1 = ViewRecipe(jitter=(0.4, 0.4, 0.4, 0.4), jitter_probability=1.0, grey_first=True)
_V2 = ViewRecipe(jitter=(0.4, 0.4, 0.4, 0.1), blur=0.5)
_V3 = (ViewRecipe(blur=1.0), ViewRecipe(blur=0.1, solarize=0.2))


def _with(pair: tuple[ViewRecipe, ViewRecipe], **changes: Any) -> tuple[ViewRecipe, ViewRecipe]:
    first, second = (dataclasses.replace(recipe, **changes) for recipe in pair)
    return first, second


_BARLOW = _with(_V3, scale=(0.08, 1.0), interpolation="bicubic")
# Both views of each publication, as coded. MoCo v3 with a ViT crops from 0.08 on: `augmentation_options`.
RECIPES = {
    "moco_v1": (_V1, _V1),
    "moco_v2": (_V2, _V2),
    "moco_v3": _V3,
    "byol": _with(_BARLOW, additive=True, attempts=1),
    "barlow_twins": _BARLOW,
}


def view_recipes(name: str, **options: Any) -> tuple[ViewRecipe, ViewRecipe]:
    """The recipes of both views. options: fields of `ViewRecipe`, for both; a list [a, b] of two numbers for a
    probability sets each view's own.

    Raises:
        ValueError: an unknown name or option; names the nearest.
    """
    if name not in RECIPES:
        nearest = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(f"augmentation (image-only) must be one of {', '.join(RECIPES)}, not {name!r}{hint}")
    fields = {field.name for field in dataclasses.fields(ViewRecipe)}
    pair = list(RECIPES[name])
    for key, value in options.items():
        if key not in fields:
            nearest = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(sorted(fields))}"
            raise ValueError(f"unknown augmentation_options {key!r}; {hint}")
        own = isinstance(value, (list, tuple)) and key in ("jitter_probability", "grey", "blur", "solarize", "flip")
        for view in range(2):
            chosen = value[view] if own else tuple(value) if isinstance(value, list) else value
            changes: dict[str, Any] = {key: chosen}
            pair[view] = dataclasses.replace(pair[view], **changes)
    return pair[0], pair[1]


# ---------------------------------------------------------------------------------------------------------------------
# What is drawn
# ---------------------------------------------------------------------------------------------------------------------

# Columns of the numbers of a view. Factors of 1 (a shift of 0 for hue), sigma 0: nothing is done.
FLIP, GREY_BEFORE, BRIGHTNESS, CONTRAST, SATURATION, HUE, ORDER, GREY_AFTER, SIGMA, SOLARIZE = (
    0, 1, 2, 3, 4, 5, slice(6, 10), 10, 11, 12,
)  # fmt: skip
NUMBERS = 13


def draw_view(recipe: ViewRecipe, generator: np.random.Generator) -> np.ndarray:
    """The numbers (13,) of one view. ORDER holds the order in which brightness 0, contrast 1, saturation 2 and hue 3
    are changed. Every call takes the same number of draws."""
    uniform = generator.random(11)
    order = generator.permutation(4)
    numbers = np.zeros(NUMBERS)
    brightness, contrast, saturation, hue = recipe.jitter
    jittered = uniform[0] < recipe.jitter_probability
    numbers[FLIP] = uniform[1] < recipe.flip
    grey = uniform[2] < recipe.grey
    numbers[GREY_BEFORE], numbers[GREY_AFTER] = grey and recipe.grey_first, grey and not recipe.grey_first
    for column, share, most in ((BRIGHTNESS, 3, brightness), (CONTRAST, 4, contrast), (SATURATION, 5, saturation)):
        numbers[column] = 1 + (2 * uniform[share] - 1) * most if jittered else 1.0
    numbers[HUE] = (2 * uniform[6] - 1) * hue if jittered else 0.0
    numbers[ORDER] = order
    low, high = recipe.blur_sigma
    numbers[SIGMA] = low + (high - low) * uniform[8] if uniform[7] < recipe.blur else 0.0
    numbers[SOLARIZE] = uniform[9] < recipe.solarize
    return numbers


def crop_view(image: Image.Image, size: int, recipe: ViewRecipe, generator: np.random.Generator) -> Image.Image:
    """A random box of a picture, `size` x `size` pixels."""
    return random_crop(image, size, recipe.scale, generator, recipe.attempts, recipe.interpolation)


# ---------------------------------------------------------------------------------------------------------------------
# Pillow, picture by picture
# ---------------------------------------------------------------------------------------------------------------------


def _shift_hue(image: Image.Image, shift: float) -> Image.Image:
    if image.mode != "RGB":
        return image
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue, dtype=np.int16) + round(shift * 255)) % 256
    return Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    return image.convert("L").convert(image.mode)


def augment_pillow(image: Image.Image, numbers: np.ndarray) -> Image.Image:
    """One crop as its numbers say, with the operations of the PyTorch publications. Not for `additive` recipes."""
    if numbers[FLIP]:
        image = ImageOps.mirror(image)
    if numbers[GREY_BEFORE]:
        image = _grey(image)
    for operation in numbers[ORDER].astype(int):
        if operation == 0 and numbers[BRIGHTNESS] != 1:
            image = ImageEnhance.Brightness(image).enhance(numbers[BRIGHTNESS])
        elif operation == 1 and numbers[CONTRAST] != 1:
            image = ImageEnhance.Contrast(image).enhance(numbers[CONTRAST])
        elif operation == 2 and numbers[SATURATION] != 1:
            image = ImageEnhance.Color(image).enhance(numbers[SATURATION])
        elif operation == 3 and numbers[HUE] != 0:
            image = _shift_hue(image, numbers[HUE])
    if numbers[GREY_AFTER]:
        image = _grey(image)
    if numbers[SIGMA]:
        image = image.filter(ImageFilter.GaussianBlur(float(numbers[SIGMA])))
    return ImageOps.solarize(image, 128) if numbers[SOLARIZE] else image


# ---------------------------------------------------------------------------------------------------------------------
# Tensors, a batch at a time
# ---------------------------------------------------------------------------------------------------------------------

RowChange = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # pictures, one number each -> pictures


def _to_grey(pixels: torch.Tensor) -> torch.Tensor:
    """(n, channels, h, w) -> (n, 1, h, w)."""
    if pixels.shape[1] != 3:
        return pixels.mean(1, keepdim=True)
    red, green, blue = pixels.split(1, dim=1)
    return (GREY_WEIGHTS[0] * red).add_(green, alpha=GREY_WEIGHTS[1]).add_(blue, alpha=GREY_WEIGHTS[2])


def _change_rows(pixels: torch.Tensor, wanted: torch.Tensor, numbers: torch.Tensor, change: RowChange) -> None:
    """Replace some pictures of a batch by what `change` makes of them and their numbers.

    wanted, numbers: (n,), on the CPU: which pictures are meant is known without asking the device.
    """
    index = wanted.nonzero().squeeze(1)
    if len(index):
        own = numbers[index].to(pixels.device, pixels.dtype, non_blocking=True)
        index = index.to(pixels.device, non_blocking=True)
        pixels.index_copy_(0, index, change(pixels[index], own))


def _turn_hue(pixels: torch.Tensor, shift: torch.Tensor, saturation: torch.Tensor | None = None) -> torch.Tensor:
    """Through hue, saturation and value: turn the hue by `shift` turns and multiply the saturation. (n, 3, h, w)."""
    value, lowest = pixels.amax(1), pixels.amin(1)
    chroma = value - lowest
    safe = chroma.clamp(min=1e-12)
    red, green, blue = pixels.unbind(1)
    sector = torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    sector = torch.where(value == red, (green - blue) / safe, sector)
    hue = torch.where(chroma == 0, 0.0, sector) + 6 * shift[:, None, None]
    if saturation is not None:
        chroma = torch.minimum(chroma * saturation[:, None, None], value)
    # Each channel as value - chroma * f(hue), f a trapezoid of period 6.
    channels = []
    for start in (5.0, 3.0, 1.0):
        place = (hue + start) % 6
        channels.append(value - chroma * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.stack(channels, dim=1)


def _strengthen(pixels: torch.Tensor, saturation: torch.Tensor) -> torch.Tensor:
    """BYOL's change of saturation."""
    return _turn_hue(pixels.clamp(min=0), torch.zeros_like(saturation), saturation)


def _change_colours(pixels: torch.Tensor, numbers: torch.Tensor, additive: bool) -> torch.Tensor:
    """Brightness, contrast, saturation and hue, each picture in its own order. numbers: (n, 13), on the CPU.

    The first three multiply a picture and add a number, its mean or its grey to it. So each place of the order is one
    pass over the whole batch, whichever of the three a picture is at; only hue (and BYOL's saturation) picks rows.
    """
    operations = numbers[:, ORDER].long()  # (n, 4): what is done at each place
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
    for place in range(4):
        own, number, of_mean, of_grey = shares[:, :, place, None, None, None]
        if additive:
            base = number + of_mean * pixels.mean((2, 3), keepdim=True)
        else:
            grey = _to_grey(pixels)
            base = of_mean * grey.mean((2, 3), keepdim=True) + of_grey * grey
        pixels = torch.addcmul(base, pixels, own)
        if not additive:  # BYOL's code clips once, at the end
            pixels = pixels.clamp_(0, 1)
        _change_rows(pixels, turned[:, place], factors[:, place], _turn_hue)
        _change_rows(pixels, strengthened[:, place], factors[:, place], _strengthen)
    return pixels.clamp_(0, 1) if additive else pixels


def gaussian_blur(pixels: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Each picture with its own sigma in pixels, edges repeated, at least 4 sigma wide for sigma up to 2.

    pixels: (n, channels, h, w); sigma: (n,), all positive.
    """
    n, channels, height, width = pixels.shape
    radius = 8
    place = torch.arange(-radius, radius + 1, device=pixels.device, dtype=pixels.dtype)
    kernel = torch.exp(-(place**2) / (2 * sigma.to(pixels.dtype)[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, dim=0)
    rows = nn.functional.pad(pixels.reshape(1, n * channels, height, width), (radius,) * 4, mode="replicate")
    rows = nn.functional.conv2d(rows, kernel[:, None, None, :], groups=n * channels)
    rows = nn.functional.conv2d(rows, kernel[:, None, :, None], groups=n * channels)
    return rows.view(n, channels, height, width)


def augment_tensors(pixels: torch.Tensor, numbers: torch.Tensor, additive: bool = False) -> torch.Tensor:
    """A batch of crops as their numbers say.

    Args:
        pixels: (n, channels, h, w) in 0 .. 1, on any device. Colour operations need three channels, and leave others
            alone; grey is the mean over channels then.
        numbers: (n, 13) of `draw_view`, on the CPU: which picture takes which operation is known without asking the
            device.
        additive: see `ViewRecipe`.
    """
    changes: dict[int, RowChange] = {
        FLIP: lambda rows, _: rows.flip(3),
        GREY_BEFORE: lambda rows, _: _to_grey(rows).expand_as(rows),
        GREY_AFTER: lambda rows, _: _to_grey(rows).expand_as(rows),
        SIGMA: gaussian_blur,
        SOLARIZE: lambda rows, _: torch.where(rows >= 128 / 255, 1 - rows, rows),
    }
    pixels = pixels.clone()
    for column, change in changes.items():
        if column == GREY_AFTER:
            pixels = _change_colours(pixels, numbers, additive)
        _change_rows(pixels, numbers[:, column] > 0, numbers[:, column], change)
    return pixels


def normalize_pixels(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(..., channels, h, w) in 0 .. 1 -> zero mean, unit deviation."""
    average = torch.tensor(mean, device=pixels.device, dtype=pixels.dtype)[:, None, None]
    deviation = torch.tensor(std, device=pixels.device, dtype=pixels.dtype)[:, None, None]
    return (pixels - average) / deviation


def to_unit_range(image: Image.Image) -> torch.Tensor:
    """(channels, h, w) in 0 .. 1."""
    array = np.array(image)
    pixels = torch.from_numpy(array if array.ndim == 3 else array[:, :, None]).permute(2, 0, 1)
    return pixels.contiguous().float() / 255
