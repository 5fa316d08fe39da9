"""Augmentation: published numbers, and randomness from its generator alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from albef_hf.data import augmentation
from albef_hf.data.augmentation import AUGMENTATIONS, build_augmentation, random_colors, random_crop, random_operation

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))


class Fixed:
    """A generator that always draws the given operation and sign."""

    def __init__(self, operation: int, side: float) -> None:
        self.operation, self.side = operation, side

    def integers(self, high):
        return self.operation

    def random(self):
        return self.side


def apply(operation: int, image: Image.Image, side: float = 0.0) -> np.ndarray:
    return np.asarray(random_operation(image, Fixed(operation, side)), dtype=np.float64)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_same_generator_gives_the_same_view(name):
    augment = build_augmentation(name, 32, (0.5,) * 3, (0.5,) * 3)
    views = [augment(PICTURE, np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert views[0].shape == (3, 32, 32) and views[0].dtype == torch.float32
    assert torch.equal(views[0], views[1])
    assert torch.equal(views[0], views[2]) == (name == "none")


def test_operations_have_the_published_magnitudes():
    gray = Image.new("RGB", (64, 64), (100, 100, 100))
    assert apply(3, gray)[0, 0, 0] == 136  # brightness 1.36
    line = Image.new("RGB", (64, 64))
    line.paste((255, 255, 255), (32, 0, 33, 64))
    for side, shift in ((0.0, -7), (0.9, 7)):
        moved = apply(7, line, side)
        assert moved[:, 32 + shift].min() == 255
    sheared = apply(5, line)[:, :, 0]
    top, bottom = sheared[2].argmax(), sheared[61].argmax()
    assert abs(bottom - top) == pytest.approx(0.21 * 59, abs=1.5)
    turned = apply(9, line)[:, :, 0]
    slope = (float(turned[52].argmax()) - float(turned[12].argmax())) / 40
    assert abs(np.degrees(np.arctan(slope))) == pytest.approx(21, abs=2)
    assert (apply(7, Image.new("RGB", (64, 64)))[:, -1] == 128).all()  # gray ground


def test_each_operation_comes_equally_often_and_is_applied_half_of_the_time(monkeypatch):
    calls = []

    def record(image, generator, magnitude):
        calls.append(int(generator.integers(10)))
        return image

    monkeypatch.setattr(augmentation, "random_operation", record)
    augment = build_augmentation("albef", 8, (0.5,) * 3, (0.5,) * 3)
    generator = np.random.default_rng(0)
    for _ in range(2000):
        augment(PICTURE, generator)
    assert len(calls) == pytest.approx(2000, rel=0.06)
    assert np.bincount(calls, minlength=10) == pytest.approx(np.full(10, 200), rel=0.35)


def test_crops_cover_the_published_share_of_the_area():
    boxes = []

    class Recorder:
        size = (400, 400)

        def resize(self, size, resample, box):
            boxes.append(box)
            return PICTURE

    generator = np.random.default_rng(0)
    for _ in range(500):
        random_crop(Recorder(), 8, (0.2, 1.0), generator)
    shares = [(right - left) * (low - top) / 160_000 for left, top, right, low in boxes]
    assert 0.19 < min(shares) < 0.25 and 0.85 < max(shares) <= 1.0


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'albef'"):
        build_augmentation("albeff", 8, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ValueError, match="unknown augmentation_options"):
        build_augmentation("albef", 8, (0.5,) * 3, (0.5,) * 3, flipp=0.1)


class Colors:
    """A generator whose hue, saturation, contrast and brightness are given."""

    def __init__(self, *draws: float) -> None:
        self.draws = np.array(draws)

    def uniform(self, low, high, count):
        assert (low, high, count) == (-1, 1, len(self.draws))
        return self.draws


def test_colors_change_as_drawn():
    pixels = 0.3 + 0.4 * torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(random_colors(pixels, 0.0, np.random.default_rng(0)), pixels, atol=1e-6)
    weights = torch.tensor(augmentation.GRAY_WEIGHTS)[:, None, None]
    chroma = pixels - (weights * pixels).sum(0)

    # Hue: the color beside the gray axis turns by 63 degrees.
    turned = random_colors(pixels, 1.0, Colors(1, 0, 0, 0))
    axis = torch.full((3,), 3**-0.5)
    flat = [part - axis[:, None, None] * (axis[:, None, None] * part).sum(0) for part in (pixels, turned)]
    cosine = (flat[0] * flat[1]).sum(0) / (flat[0].norm(dim=0) * flat[1].norm(dim=0))
    assert torch.allclose(torch.rad2deg(cosine.arccos()), torch.tensor(63.0), atol=0.1)

    faded = random_colors(pixels, 1.0, Colors(0, -1, 0, 0))
    assert torch.allclose(faded, pixels - 0.6 * chroma, atol=1e-6)
    sharper = random_colors(pixels, 0.5, Colors(0, 0, 1, 0))
    assert torch.allclose(sharper, pixels.mean() + 1.2 * (pixels - pixels.mean()), atol=1e-6)
    assert torch.allclose(random_colors(pixels, 1.0, Colors(0, 0, 0, -1)), 0.6 * pixels, atol=1e-6)


def test_colors_are_an_option_of_every_augmentation_and_may_have_their_former_name():
    plain, colored, former = (
        build_augmentation("none", 32, (0.5,) * 3, (0.5,) * 3, **options)(PICTURE, np.random.default_rng(0))
        for options in ({"colors": 0.0}, {"colors": 1.0}, {"colours": 1.0})
    )
    assert not torch.equal(plain, colored)
    assert torch.equal(colored, former)
    with pytest.raises(ValueError, match="'colours' is the former name of 'colors'; give only 'colors'"):
        build_augmentation("none", 32, (0.5,) * 3, (0.5,) * 3, colors=0.5, colours=1.0)


class Boxes:
    """Stands in for a picture, and notes which box is cut out of it."""

    def __init__(self, width: int, height: int) -> None:
        self.size, self.boxes = (width, height), []

    def resize(self, size, resample, box):
        self.boxes.append(box)


def boxes_of(width: int, height: int, scale, count: int = 1000) -> np.ndarray:
    picture, generator = Boxes(width, height), np.random.default_rng(0)
    for _ in range(count):
        random_crop(picture, 8, scale, generator)
    return np.array(picture.boxes, dtype=float)


def test_crops_have_the_published_shapes_and_areas():
    left, top, right, bottom = boxes_of(4000, 4000, (0.2, 0.5)).T
    width, height = right - left, bottom - top
    ratio, area = np.log(width / height), width * height / 4000**2
    edge = np.log(4 / 3)
    assert ratio.min() >= -edge - 1e-3 and ratio.max() <= edge + 1e-3
    # Uniform in the logarithm of the ratio, and in the area.
    for values, low, high in ((ratio, -edge, edge), (area, 0.2, 0.5)):
        shares = np.histogram(values, bins=4, range=(low - 1e-3, high + 1e-3))[0] / len(values)
        assert abs(shares - 0.25).max() < 0.06
    assert left.min() >= 0 and right.max() <= 4000 and left.std() > 300 and top.std() > 300


@pytest.mark.parametrize(("size", "box"), [((300, 30), (130, 0, 170, 30)), ((30, 300), (0, 130, 30, 170))])
def test_where_no_crop_fits_the_largest_in_the_middle_is_taken(size, box):
    assert (boxes_of(*size, (1.0, 1.0), count=3) == box).all()


@pytest.mark.parametrize("operation", [5, 6, 7, 8, 9])
def test_uncovered_parts_become_gray(operation):
    class Chosen:
        def integers(self, *_):
            return operation

        def random(self):
            return 0.25

    changed = np.asarray(random_operation(Image.new("RGB", (40, 40), "white"), Chosen()))
    grays = (changed == 128).all(-1)
    assert 0.03 < grays.mean() < 0.7 and (changed[grays] == 128).all()
    assert (changed.reshape(-1, 3) == 255).all(-1).any()
