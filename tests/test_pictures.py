"""Labeled pictures for probes: how they become pixels."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from torchvision.transforms import v2
from transformers import AutoImageProcessor, ViTImageProcessor

from albef_hf.data.arguments import DataArguments
from albef_hf.evaluation.probes import KNN_PROTOCOLS
from ssl_methods.pictures import Pictures, center_crop, image_processor, load_pictures, saved_statistics


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("shape", [(61, 40), (40, 61), (33, 32), (30, 91), (50, 50)])
@pytest.mark.parametrize(("size", "resize"), [(28, 32), (21, 32), (32, 32), (48, 64)])
def test_a_picture_is_scaled_by_its_shorter_side_and_cut_as_in_torchvision(shape, size, resize):
    picture = noise(*shape)
    resized = v2.Resize(resize, interpolation=v2.InterpolationMode.BICUBIC)(picture)
    assert np.array_equal(center_crop(picture, size, resize), v2.CenterCrop(size)(resized))


def corpus(*pictures):
    features = Features({"image": ImageFeature(decode=False), "label": ClassLabel(names=["cat", "dog"])})
    rows = {"image": list(pictures), "label": [number % 2 for number in range(len(pictures))]}
    encoded = Features({"image": ImageFeature(), "label": features["label"]})
    return Dataset.from_dict(rows, features=encoded).cast(features)


def test_nothing_is_squashed():
    """A circle in the middle of a wide picture is as wide as it is high."""
    rows, columns = np.mgrid[:60, :100]
    disc = (((rows - 29.5) ** 2 + (columns - 49.5) ** 2) < 20**2).astype(np.uint8) * 255
    picture = Image.fromarray(np.stack([disc] * 3, -1))
    seen = Pictures(corpus(picture, picture), 30, 3, ((0.0,) * 3, (1.0,) * 3)).to_pixels(picture)[0] > 0.5
    assert seen.shape == (30, 30) and abs(int(seen.any(0).sum()) - int(seen.any(1).sum())) <= 1
    assert 18 <= seen.any(0).sum() <= 22


def test_the_saved_processor_makes_the_same_pixels(tmp_path):
    picture = noise(88, 61)  # of an odd number of pixels, transformers cuts one fewer off at the left
    statistics = ((0.3, 0.4, 0.5), (0.2, 0.3, 0.4))
    own = Pictures(corpus(picture, picture), 28, 3, statistics, resize=32)
    image_processor(28, 32, *statistics).save_pretrained(tmp_path)
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(picture, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(theirs, own.to_pixels(picture), atol=0.05, rtol=0)
    assert [list(values) for values in saved_statistics(str(tmp_path))] == [list(values) for values in statistics]


def test_parts_keep_size_and_statistics():
    own = Pictures(corpus(noise(90, 61), noise(61, 90)), 28, 3, resize=32)
    part = own.normalized((0.5,) * 3, (0.25,) * 3)
    assert (part.size, part.resize, part.channels, part.names) == (28, 32, 3, ["cat", "dog"])
    assert part.std == (0.25,) * 3 and own.std != part.std
    with pytest.raises(ValueError, match="image_mean has 1 numbers"):
        own.normalized((0.5,), (0.5,))


def test_features_that_are_no_numbers_are_refused():
    own = Pictures(corpus(noise(32, 32), noise(40, 32)), 28, 3, dataset="some")

    class Broken(torch.nn.Module):
        def forward(self, pixels):
            return SimpleNamespace(pooled=torch.tensor([[1.0, 2.0], [1.0, float("nan")]]))

    with pytest.raises(
        ValueError, match="some: the features of 1 of 2 pictures, the first in row 1, are infinite or no"
    ):
        own.features(Broken())


def test_a_folder_that_does_not_normalize_or_has_no_processor_says_nothing(tmp_path):
    assert saved_statistics(str(tmp_path)) is None
    ViTImageProcessor(do_normalize=False).save_pretrained(tmp_path)
    assert saved_statistics(str(tmp_path)) is None
    (tmp_path / "preprocessor_config.json").write_text("{oops")
    with pytest.raises(ValueError, match="preprocessor_config.json is damaged: not JSON"):
        saved_statistics(str(tmp_path))


def test_a_picture_smaller_than_what_is_cut_out_is_refused():
    arguments = DataArguments(dataset="digits", label_column="label", evaluation_resize=30)
    with pytest.raises(ValueError, match="evaluation_resize 30 is below image_size 32"):
        load_pictures(arguments, 32, 3)


def test_the_argument_reaches_both_parts():
    parts = load_pictures(DataArguments(dataset="digits", label_column="label", evaluation_resize=40), 32, 3)
    assert [part.resize for part in parts] == [40, 40]


def test_every_protocol_of_neighbors_can_be_chosen():
    (chosen,) = (field for field in dataclasses.fields(DataArguments) if field.name == "knn_protocol")
    assert list(chosen.metadata["choices"]) == list(KNN_PROTOCOLS)
