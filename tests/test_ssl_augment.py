"""Two-view augmentation: the published numbers, the distributions, and Pillow against tensors."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from ssl_helpers import OPERATIONS, unchanged_numbers

from albef_hf.data.arguments import DataArguments
from ssl_methods.augment import (
    BRIGHTNESS,
    CONTRAST,
    FLIP,
    GRAY_AFTER,
    GRAY_BEFORE,
    HUE,
    ORDER,
    RECIPES,
    SATURATION,
    SIGMA,
    SOLARIZE,
    augment_pillow,
    augment_tensors,
    crop_view,
    draw_view,
    gaussian_blur,
    to_unit_range,
    view_recipes,
)
from ssl_methods.data import build_two_view_data


def picture(size=48, seed=0):
    generator = np.random.default_rng(seed)
    return Image.fromarray((generator.random((6, 6, 3)) * 255).astype(np.uint8)).resize((size, size), 3)


def drawn(recipe, count=20_000, seed=0):
    generator = np.random.default_rng(seed)
    return np.stack([draw_view(recipe, generator) for _ in range(count)])


# name: per view (lowest scale, jitter, p of jitter, gray, blur, solarize, flip)
PUBLISHED = {
    "moco_v1": [(0.2, (0.4, 0.4, 0.4, 0.4), 1.0, 0.2, 0.0, 0.0, 0.5)] * 2,
    "moco_v2": [(0.2, (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.5, 0.0, 0.5)] * 2,
    "moco_v3": [(0.2, (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, b, s, 0.5) for b, s in ((1.0, 0.0), (0.1, 0.2))],
    "byol": [(0.08, (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, b, s, 0.5) for b, s in ((1.0, 0.0), (0.1, 0.2))],
    "barlow_twins": [(0.08, (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, b, s, 0.5) for b, s in ((1.0, 0.0), (0.1, 0.2))],
}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_recipes_have_the_published_numbers(name):
    for recipe, numbers in zip(RECIPES[name], PUBLISHED[name], strict=True):
        r = recipe
        assert (r.scale[0], r.jitter, r.jitter_probability, r.gray, r.blur, r.solarize, r.flip) == numbers
    assert all(r.gray_first == (name == "moco_v1") for r in RECIPES[name])
    assert all((r.interpolation == "bicubic") == (name in ("byol", "barlow_twins")) for r in RECIPES[name])
    assert all(r.additive == (name == "byol") and r.attempts == (1 if name == "byol" else 10) for r in RECIPES[name])


def test_what_is_drawn_follows_the_recipe():
    recipe = RECIPES["barlow_twins"][1]
    numbers = drawn(recipe)
    tolerance = 4 * math.sqrt(0.25 / len(numbers))
    assert numbers[:, FLIP].mean() == pytest.approx(0.5, abs=tolerance)
    assert numbers[:, GRAY_AFTER].mean() == pytest.approx(0.2, abs=tolerance) and not numbers[:, GRAY_BEFORE].any()
    assert (numbers[:, SIGMA] > 0).mean() == pytest.approx(0.1, abs=tolerance)
    assert numbers[:, SOLARIZE].mean() == pytest.approx(0.2, abs=tolerance)
    for column, most, middle in ((BRIGHTNESS, 0.4, 1), (CONTRAST, 0.4, 1), (SATURATION, 0.2, 1), (HUE, 0.1, 0)):
        changed = numbers[numbers[:, column] != middle, column]
        assert len(changed) / len(numbers) == pytest.approx(0.8, abs=tolerance)
        assert abs(changed - middle).max() <= most and changed.std() == pytest.approx(most / math.sqrt(3), rel=0.03)
    sigma = numbers[numbers[:, SIGMA] > 0, SIGMA]
    assert sigma.min() >= 0.1 and sigma.max() <= 2.0 and sigma.mean() == pytest.approx(1.05, abs=0.06)
    orders, counts = np.unique(numbers[:, ORDER], axis=0, return_counts=True)
    assert len(orders) == 24 and counts.min() > 0.8 * len(numbers) / 24


def test_tensors_do_what_pillow_does():
    """The same numbers through both; Pillow rounds to eight bits after each operation and approximates the blur."""
    source = picture()
    recipe = view_recipes("moco_v3", solarize=0.3, blur=0.5, gray=0.3)[0]
    numbers = drawn(recipe, 120)
    by_pillow = torch.stack([to_unit_range(augment_pillow(source, row)) for row in numbers])
    by_tensors = augment_tensors(to_unit_range(source).repeat(120, 1, 1, 1), torch.from_numpy(numbers).float())
    difference = (by_pillow - by_tensors).abs().mean((1, 2, 3))
    assert difference.max() < 0.012 and difference.mean() < 0.006
    unchanged = (by_tensors - to_unit_range(source)).abs().mean((1, 2, 3))
    assert unchanged.median() > 0.05  # the bound above is small against what augmentation does


def test_each_operation_alone_agrees_with_pillow():
    source = picture(seed=3)
    for column, value in OPERATIONS:
        numbers = unchanged_numbers()
        numbers[column] = value
        expected = to_unit_range(augment_pillow(source, numbers))
        found = augment_tensors(to_unit_range(source)[None], torch.from_numpy(numbers)[None].float())[0]
        assert (expected - found).abs().mean() < 0.01, column
        assert (expected - to_unit_range(source)).abs().mean() > 0.02, column


@pytest.mark.parametrize("additive", [False, True])
def test_a_batch_is_changed_picture_by_picture_each_in_its_own_order(additive):
    recipe = view_recipes("byol", jitter=[0.1, 0.1, 0.2, 0.1], blur=0.0, solarize=0.0)[0]
    numbers = torch.from_numpy(drawn(recipe, 40)).float()
    pixels = 0.3 + 0.4 * torch.rand(40, 3, 6, 6, generator=torch.Generator().manual_seed(0))  # nothing is clipped
    before = pixels.clone()
    plain = torch.from_numpy(unchanged_numbers()).float()
    expected = []
    for picture, own in zip(pixels, numbers, strict=True):
        operations = [FLIP, *(BRIGHTNESS + operation for operation in own[ORDER].int().tolist()), GRAY_AFTER]
        for column in operations:
            single = plain.clone()
            single[column] = own[column]
            picture = augment_tensors(picture[None], single[None], additive)[0]
        expected.append(picture)
    torch.testing.assert_close(augment_tensors(pixels, numbers, additive), torch.stack(expected), atol=1e-5, rtol=0)
    assert torch.equal(pixels, before)


def test_byols_colors_are_its_own():
    pixels = torch.full((1, 3, 4, 4), 0.2)
    pixels[:, 0] = 0.6
    numbers = torch.from_numpy(unchanged_numbers())[None].float()
    numbers[:, BRIGHTNESS] = 1.3
    torch.testing.assert_close(augment_tensors(pixels, numbers, additive=True), pixels + 0.3)
    torch.testing.assert_close(augment_tensors(pixels, numbers), pixels * 1.3)
    numbers[:, BRIGHTNESS], numbers[:, CONTRAST] = 1.0, 1.5
    torch.testing.assert_close(augment_tensors(pixels, numbers, additive=True), pixels)  # around each channel's mean


def test_blur_keeps_brightness_and_matches_the_formula():
    pixels = torch.zeros(2, 1, 33, 33)
    pixels[:, :, 16, 16] = 1
    out = gaussian_blur(pixels, torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(out.sum((1, 2, 3)), torch.ones(2))
    assert out[1, 0, 16, 18] / out[1, 0, 16, 16] == pytest.approx(math.exp(-4 / 8), rel=1e-4)


def test_options_and_their_errors():
    first, second = view_recipes("moco_v2", flip=0.0, blur=[1.0, 0.1], scale=[0.5, 1.0])
    assert first.flip == second.flip == 0 and (first.blur, second.blur) == (1.0, 0.1) and first.scale == (0.5, 1.0)
    with pytest.raises(ValueError, match="'moco_v4'; did you mean 'moco_v"):
        view_recipes("moco_v4")
    with pytest.raises(ValueError, match="unknown augmentation_options 'blurr'; did you mean 'blur'"):
        view_recipes("byol", blurr=1.0)


def test_former_names_of_options_are_read():
    today = view_recipes("moco_v2", gray=[0.5, 0.1], gray_first=True)
    assert today == view_recipes("moco_v2", grey=[0.5, 0.1], grey_first=True) != RECIPES["moco_v2"]
    with pytest.raises(ValueError, match="'grey' is the former name of 'gray'; give only 'gray'"):
        view_recipes("moco_v2", grey=0.5, gray=0.1)


# -- batches ----------------------------------------------------------------------------------------------------------


def digits(**changes):
    fields = {"dataset": "digits", "augmentation": "moco_v2", **changes}
    return DataArguments(**fields)


def batches(count, rank=0, world_size=1, batch_size=8, start=0, **changes):
    data = build_two_view_data(
        digits(**changes), image_size=24, channels=changes.pop("channels", 3), mean=(0.5,) * 3, std=(0.2,) * 3,
        batch_size=batch_size, seed=5, rank=rank, world_size=world_size,
    )  # fmt: skip
    source = data.batches(start)
    found = []
    for _ in range(count):
        batch = next(source)
        assert batch.pop("rejected") == []
        found.append(data.to_device(batch, torch.device("cpu")))
    return found


def test_batches_are_a_function_of_seed_and_position():
    whole = batches(3)
    assert whole[0]["views"].shape == (8, 2, 3, 24, 24) and whole[0]["shuffle_draws"].shape == (8,)
    assert not torch.equal(whole[0]["views"][:, 0], whole[0]["views"][:, 1])
    again = batches(1, start=2)[0]
    assert torch.equal(again["views"], whole[2]["views"])
    ranks = [batches(1, rank, 2, batch_size=4)[0]["views"] for rank in range(2)]
    torch.testing.assert_close(torch.cat(ranks), whole[0]["views"], atol=1e-5, rtol=1e-5)
    workers = batches(1, workers=2)[0]
    assert torch.equal(workers["views"], whole[0]["views"])


def test_pillow_and_tensors_are_chosen_by_config():
    one, other = batches(1)[0], batches(1, augmentation_device="pillow")[0]
    assert 0 < (one["views"] - other["views"]).abs().mean() < 0.06  # in units of a deviation of 0.2
    with pytest.raises(ValueError, match="augmentation_device must be tensors or pillow, not 'gpu'"):
        batches(1, augmentation_device="gpu")
    with pytest.raises(ValueError, match="BYOL's colors"):
        batches(1, augmentation="byol", augmentation_device="pillow")


def test_gray_pictures():
    data = build_two_view_data(digits(), image_size=16, channels=1, mean=(0.5,), std=(0.25,), batch_size=4, seed=0)
    batch = next(data.batches())
    batch.pop("rejected")
    assert data.to_device(batch, torch.device("cpu"))["views"].shape == (4, 2, 1, 16, 16)
    with pytest.raises(ValueError, match=r"3 channels \(RGB\), but the model takes 2"):
        data = build_two_view_data(digits(), image_size=8, channels=2, mean=(0,), std=(1,), batch_size=4, seed=0)
        next(data.batches())


def byol_numbers(**changes) -> torch.Tensor:
    """The numbers of a view whose operations do nothing but what is asked. order: which operation comes when."""
    numbers = torch.zeros(1, 13)
    numbers[0, [2, 3, 4]] = 1.0
    numbers[0, 6:10] = torch.tensor(changes.pop("order", (0, 1, 2, 3)), dtype=torch.float32)
    for column, value in changes.items():
        numbers[0, {"brightness": 2, "contrast": 3, "saturation": 4, "hue": 5, "sigma": 11}[column]] = value
    return numbers


def test_byol_clips_after_every_operation():
    """0.9 + 0.4 is 1 before contrast halves the distance to the mean: by hand, in both orders."""
    pixels = torch.full((1, 3, 1, 2), 0.1)
    pixels[..., 1] = 0.9
    brighter_first = augment_tensors(pixels, byol_numbers(brightness=1.4, contrast=0.5), additive=True)
    # 0.5 and 1 (clipped), of mean 0.75
    torch.testing.assert_close(brighter_first[0, 0, 0], torch.tensor([0.625, 0.875]))
    contrast_first = byol_numbers(brightness=1.4, contrast=0.5, order=(1, 0, 2, 3))
    # 0.3 and 0.7, then 0.7 and 1 (clipped)
    torch.testing.assert_close(
        augment_tensors(pixels, contrast_first, additive=True)[0, 0, 0], torch.tensor([0.7, 1.0])
    )
    darker = augment_tensors(pixels, byol_numbers(brightness=0.6, contrast=1.5), additive=True)
    # 0 (clipped) and 0.5, of mean 0.25, then -0.125 (clipped) and 0.625
    torch.testing.assert_close(darker[0, 0, 0], torch.tensor([0.0, 0.625]))


def test_byol_blurs_with_23_pixels_and_black_edges():
    pixels = torch.ones(1, 3, 40, 40)
    numbers = byol_numbers(sigma=2.0)
    assert torch.equal(augment_tensors(pixels, numbers), pixels)  # the edges are repeated
    blurred = augment_tensors(pixels, numbers, additive=True)
    weights = torch.exp(-(torch.arange(-11, 12.0) ** 2) / 8)
    weights /= weights.sum()
    inside = weights[11:].sum()  # in the corner, what lies before it is black
    torch.testing.assert_close(blurred[0, 0, 0, 0], inside**2)
    torch.testing.assert_close(blurred[0, 0, 20, 20], torch.tensor(1.0))
    impulse = torch.zeros(1, 3, 41, 41)
    impulse[0, :, 20, 20] = 1
    spread = augment_tensors(impulse, numbers, additive=True)[0, 0, 20]
    torch.testing.assert_close(spread[9:32], weights * weights[11])
    assert spread[8] == spread[32] == 0


def test_byol_cuts_crops_to_the_picture_at_a_random_place():
    class Boxes:
        size, boxes = (300, 100), []

        def resize(self, size, resample, box):
            self.boxes.append(box)

    recipe, generator = RECIPES["byol"][0], np.random.default_rng(0)
    for _ in range(400):
        crop_view(Boxes(), 8, recipe, generator)
    left, top, right, bottom = np.array(Boxes.boxes, dtype=float).T
    cut = bottom - top == 100
    assert 0.6 < cut.mean() < 0.85  # 300 x 100: a square of a third of the area is as high as the picture
    assert left[cut].std() > 20 and right.max() <= 300 and bottom.max() <= 100
    kept = RECIPES["barlow_twins"][0]
    assert recipe.cut_to_fit and recipe.attempts == 1 and not kept.cut_to_fit and kept.attempts == 10
