"""Pictures of one, four and twelve channels for the image-only methods."""

import numpy as np
import pytest
import torch
from data_helpers import array_file, encode, pages
from PIL import Image

from albef_hf.data.arguments import DataArguments
from albef_hf.data.images import BadImage
from ssl_methods.augment import ViewRecipe, augment_tensors, draw_view
from ssl_methods.bands import Bands, displayed, read_picture
from ssl_methods.data import build_two_view_data
from ssl_methods.pictures import load_pictures, pixel_statistics


def cube(channels: int, kind=np.uint16, seed: int = 0) -> np.ndarray:
    return (
        np.random.default_rng(seed).integers(0, 10_000 if kind == np.uint16 else 256, (20, 24, channels)).astype(kind)
    )


def test_every_form_of_many_channels():
    values = cube(12)
    expected = values.astype(np.float32) / 65535
    for data in (array_file(values), array_file(np.moveaxis(values, 2, 0)), values):
        found = read_picture(data, 12)
        assert found.size == (24, 20)
        np.testing.assert_allclose(np.asarray(found), expected)
    np.testing.assert_allclose(np.asarray(read_picture(array_file(expected), 12)), expected)
    paged = np.asarray(read_picture(pages(12), 12))
    np.testing.assert_allclose(paged[0, 0], np.arange(12) * 10 / 255)
    four = cube(4, np.uint8)
    np.testing.assert_allclose(np.asarray(read_picture(encode(Image.fromarray(four)), 4)), four / 255, rtol=1e-6)


def test_gray_and_color_stay_pictures():
    image = Image.new("RGB", (4, 4), (200, 10, 10))
    assert read_picture(encode(image), 3).mode == "RGB" and read_picture(encode(image), 1).mode == "L"


@pytest.mark.parametrize(
    ("value", "channels", "reason"),
    [
        (array_file(cube(5)), 12, r"shape \(20, 24, 5\), but the model takes 12"),
        (encode(Image.new("RGB", (4, 4))), 4, r"3 channels \(RGB\), but the model takes 4"),
        (pages(3), 4, "but the model takes 4"),
        (array_file(np.full((4, 4, 5), 3.0)), 5, "within 0 .. 1, so scale them"),
        (array_file(np.full((4, 4, 5), np.nan)), 5, "within 0 .. 1"),
        (array_file(np.full((4, 4, 5), -3)), 5, "must not be negative"),
        (b"", 5, "empty file"),
    ],
)
def test_another_number_of_channels_is_refused(value, channels, reason):
    with pytest.raises(BadImage, match=reason):
        read_picture(value, channels)


def folder(tmp_path, channels: int):
    for number in range(6):
        path = tmp_path / f"class{number % 2}" / f"{number}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, cube(channels, seed=number))
    return DataArguments(
        dataset=str(tmp_path),
        label_column="label",
        evaluation_split="train",
        augmentation="moco_v2",
        image_mean=[0.05] * channels,
        image_std=[0.1] * channels,
    )


@pytest.mark.parametrize("channels", [1, 3, 4, 12])
def test_two_views_of_arrays(tmp_path, channels):
    arguments = folder(tmp_path, channels)
    statistics = pixel_statistics(channels, arguments.image_mean, arguments.image_std)
    data = build_two_view_data(
        arguments, image_size=16, channels=channels, mean=statistics[0], std=statistics[1], batch_size=6, seed=0
    )
    batch = next(data.batches())
    assert batch.pop("rejected") == []
    views = data.to_device(batch, torch.device("cpu"))["views"]
    assert views.shape == (6, 2, channels, 16, 16)
    # Values of 0 .. 10,000 of 65,535 have their mean at 0.076.
    assert abs(views.mean() * 0.1 + 0.05 - 0.076) < 0.03
    train, _ = load_pictures(arguments, 16, channels)
    assert train.to_pixels(train[0]).shape == (channels, 16, 16)
    assert train.mean == (0.05,) * channels


def test_arrays_and_pictures_in_one_batch_have_one_scale(tmp_path):
    gray = np.full((8, 8, 3), 51, dtype=np.uint8)
    np.save(tmp_path / "a.npy", gray)
    Image.fromarray(gray).save(tmp_path / "b.png")
    (tmp_path / "list.csv").write_text("image\na.npy\nb.png\n")
    arguments = DataArguments(
        dataset=str(tmp_path / "list.csv"), augmentation="moco_v2", augmentation_options={"jitter_probability": 0.0}
    )
    data = build_two_view_data(arguments, image_size=8, channels=3, mean=(0,) * 3, std=(1,) * 3, batch_size=2, seed=0)
    batch = next(data.batches())
    batch.pop("rejected")
    views = data.to_device(batch, torch.device("cpu"))["views"]
    torch.testing.assert_close(views, torch.full_like(views, 0.2))


@pytest.mark.parametrize("channels", [1, 4, 12])
def test_colors_are_left_out_where_there_are_none(channels):
    pixels = torch.rand(4, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    recipe = ViewRecipe(jitter=(0, 0, 0.9, 0.5), jitter_probability=1.0, gray=1.0, flip=0.0)
    for first in (False, True):
        chosen = ViewRecipe(**{**recipe.__dict__, "gray_first": first})
        numbers = torch.tensor(np.stack([draw_view(chosen, np.random.default_rng(n)) for n in range(4)]))
        torch.testing.assert_close(augment_tensors(pixels, numbers), pixels)
    contrast = ViewRecipe(jitter=(0, 0.4, 0, 0), jitter_probability=1.0, gray=0.0, flip=0.0)
    numbers = torch.tensor(np.stack([draw_view(contrast, np.random.default_rng(n)) for n in range(4)]))
    offset = 0.4 + 0.2 * pixels
    offset[:, 0] -= 0.2
    found = augment_tensors(offset, numbers)
    torch.testing.assert_close(found.mean((2, 3)), offset.mean((2, 3)))  # contrast is about each channel's own mean


def test_pillow_and_wrong_statistics_are_refused(tmp_path):
    arguments = folder(tmp_path, 4)
    arguments.augmentation_device = "pillow"
    with pytest.raises(ValueError, match="colors of 4 channels: set augmentation_device to tensors"):
        build_two_view_data(arguments, image_size=8, channels=4, mean=(0,), std=(1,), batch_size=2, seed=0)
    with pytest.raises(ValueError, match="image_mean has 2 numbers, but the model takes 4 channels"):
        pixel_statistics(4, [0.5, 0.5])
    with pytest.raises(ValueError, match="image_std must be positive"):
        pixel_statistics(1, [0.5], [0.0])
    assert pixel_statistics(2) == ((0.5, 0.5), (0.25, 0.25))


def test_what_is_shown_of_many_channels():
    assert displayed(Bands([Image.fromarray(cube(1)[:, :, 0].astype(np.float32))] * 12)).shape == (20, 24, 3)
    assert displayed(Image.new("L", (3, 2))).shape == (2, 3)
