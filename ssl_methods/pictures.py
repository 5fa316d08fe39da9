"""Labeled pictures for probes of frozen features."""

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor, BitImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from albef_hf.data.arguments import DataArguments
from albef_hf.data.images import MAX_PIXELS, BadImage
from albef_hf.data.labels import are_numbers, class_names, ordered_classes
from albef_hf.data.sources import load_corpus
from albef_hf.evaluation.mode import evaluation_mode, failing_together
from albef_hf.evaluation.probes import KNN_PROTOCOLS, extract_features
from albef_hf.gathering import gather_rows, rank, world_size
from albef_hf.model_folder import check_json

from .augment import normalize_pixels, to_unit_range
from .bands import read_picture


def pixel_statistics(
    channels: int, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that pictures are normalized with, a number for each channel.

    Args:
        mean, std: those of a configuration; where left out, ImageNet's for color, and 0.5 and 0.25 otherwise.

    Raises:
        ValueError: there are not as many as channels, or a deviation is not positive.
    """
    usual: tuple[Sequence[float], Sequence[float]] = ((0.5,) * channels, (0.25,) * channels)
    if channels == 3:
        usual = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    means, deviations = tuple(mean or usual[0]), tuple(std or usual[1])
    for name, values in (("image_mean", means), ("image_std", deviations)):
        if len(values) != channels:
            raise ValueError(f"{name} has {len(values)} numbers, but the model takes {channels} channels")
    if min(deviations) <= 0:
        raise ValueError(f"image_std must be positive, not {list(deviations)}")
    return means, deviations


def center_crop(image: Any, size: int, resize: int) -> Any:
    """Scale a picture so that its shorter side has `resize` pixels, and cut `size` x `size` from its middle.

    With 256 and 224 it is how encoders are measured on ImageNet (for example He et al. 2020, section 4.1); bicubic.
    """
    width, height = image.size
    shorter = min(width, height)
    width, height = (resize * side // shorter for side in (width, height))
    left, top = round((width - size) / 2), round((height - size) / 2)
    scaled = image.resize((width, height), Image.Resampling.BICUBIC)
    return scaled.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + size, top + size))


def image_processor(size: int, resize: int, mean: Sequence[float], std: Sequence[float]) -> BitImageProcessor:
    """What makes pixels of pictures for those who load a model, as probes do here: see `center_crop`."""
    return BitImageProcessor(
        size={"shortest_edge": resize},
        crop_size={"height": size, "width": size},
        image_mean=list(mean),
        image_std=list(std),
        do_convert_rgb=len(mean) == 3,
    )


def saved_statistics(name: str) -> tuple[list[float], list[float]] | None:
    """Mean and deviation of each channel that the image processor of a model folder has; None where there is none.

    Raises:
        ValueError: its file is not JSON.
    """
    check_json(Path(name), ("preprocessor_config.json", "processor_config.json"))
    try:
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError):  # a folder without one
        return None
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    if mean is None or std is None or not getattr(processor, "do_normalize", True):
        return None
    return list(mean), list(std)


def checked_resize(resize: int | None, size: int) -> int:
    """The shorter side that pictures are scaled to before their middle is cut out; the size of that where left out.

    Raises:
        ValueError: it is smaller.
    """
    if resize is not None and resize < size:
        raise ValueError(f"evaluation_resize {resize} is below image_size {size}: nothing of that size can be cut out")
    return resize or size


class Pictures:
    """A labeled data set for probes: undecoded pictures, and how they become pixels.

    Args:
        corpus: has the columns `image` and `label`.
        statistics: mean and deviation of each channel.
        classes: names of classes, by which labels are numbered; those of the corpus where left out.
        resize: pixels of the shorter side before the middle is cut out; `size` where left out.
        dataset: its name, for errors.
        max_pixels: pictures with more are errors.

    Attributes:
        labels: (pictures,) numbers of `names`. Classes of other data sets that `names` lacks come after them.
    """

    def __init__(
        self,
        corpus: Any,
        size: int,
        channels: int,
        statistics: Any = None,
        classes: Sequence[str] | None = None,
        resize: int | None = None,
        dataset: str = "pictures",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.corpus, self.size, self.channels, self.resize = corpus, size, channels, checked_resize(resize, size)
        self.dataset, self.max_pixels = dataset, max_pixels
        if not len(corpus):
            raise ValueError(f"{dataset} has no rows")
        chosen: tuple[Sequence[float], Sequence[float]] = statistics or pixel_statistics(channels)
        self.mean, self.std = chosen
        own = class_names(corpus["label"], corpus.features["label"])
        if None in own:
            raise ValueError(f"{dataset}: row {own.index(None)} has no label; probes need one for each picture")
        known = list(classes or ())
        self.names = known + [name for name in ordered_classes(own, corpus.features["label"]) if name not in known]
        numbers = {name: number for number, name in enumerate(self.names)}
        self.labels = torch.tensor([numbers[name] for name in own])  # type: ignore[index]

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, rows: slice | list[int] | int) -> Any:
        return self.corpus[rows]["image"]

    def to_pixels(self, picture: Any) -> torch.Tensor:
        """A picture without augmentation: see `center_crop`."""
        image = center_crop(read_picture(picture, self.channels, self.max_pixels), self.size, self.resize)
        return normalize_pixels(to_unit_range(image), self.mean, self.std)

    def row_pixels(self, row: int) -> torch.Tensor:
        """The picture of a row as pixels.

        Raises:
            ValueError: it cannot be read; names the data set and the row.
        """
        try:
            return self.to_pixels(self[row])
        except BadImage as error:
            raise ValueError(f"{self.dataset}: row {row} cannot be measured: {error}; mend or remove it") from error

    def normalized(self, mean: Sequence[float], std: Sequence[float]) -> "Pictures":
        """The same pictures with another mean and deviation of each channel."""
        other = copy.copy(self)
        other.mean, other.std = pixel_statistics(self.channels, mean, std)
        return other

    def encode(self, encode: Any, device: torch.device | str = "cpu") -> torch.Tensor:
        """What a function makes of pixels (batch, channels, h, w): all pictures, on all ranks; each does its share."""
        share = -(-len(self) // world_size())
        mine = [(rank() * share + row) % len(self) for row in range(share)]
        with failing_together():
            found = extract_features(encode, mine, self.row_pixels, device)
        return gather_rows(found.to(device)).cpu()[: len(self)]

    def features(self, backbone: nn.Module, device: torch.device | str = "cpu") -> torch.Tensor:
        """Pooled features (pictures, width) on all ranks.

        Raises:
            ValueError: a feature is infinite or no number, so that nothing is near to it.
        """
        with evaluation_mode(backbone):
            found = self.encode(lambda pixels: backbone(pixels).pooled, device)
        wrong = (~found.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if wrong:
            raise ValueError(
                f"{self.dataset}: the features of {len(wrong)} of {len(self)} pictures, the first in row {wrong[0]}, "
                "are infinite or no numbers: the weights of the model are damaged, or its training diverged"
            )
        return found


def load_pictures(arguments: DataArguments, size: int, channels: int) -> tuple[Pictures, Pictures] | None:
    """Training and test pictures with labels; None where the data has no labels.

    Classes are matched by their names. A class is not expected to have the same number in both parts.

    Raises:
        ValueError: a part is empty or a picture has no label, only one part names its classes, they have no class in
            common, there is only one class, or training is on a mixture.
    """
    if arguments.label_column is None:
        return None
    if arguments.mixture:
        raise ValueError(
            "label_column: probes learn from the pictures of `dataset`, and `mixture` takes its place; leave out "
            "label_column, and measure afterwards with scripts/evaluate_features.py and one data set"
        )
    common: dict[str, Any] = {"image_column": arguments.image_column, "image_root": arguments.image_root}
    common |= {"caption_column": None, "label_column": arguments.label_column}
    names = arguments.dataset, arguments.evaluation_dataset or arguments.dataset
    train = load_corpus(
        names[0], split=arguments.split, revision=arguments.revision, options=arguments.dataset_options, **common
    )
    test = load_corpus(
        names[1],
        split=arguments.evaluation_split,
        revision=arguments.revision if names[0] == names[1] else None,
        options=arguments.evaluation_dataset_options or arguments.dataset_options,
        **common,
    )
    statistics = pixel_statistics(channels, arguments.image_mean, arguments.image_std)
    pair = train.features["label"], test.features["label"]
    if are_numbers(pair[0]) != are_numbers(pair[1]):
        raise ValueError(
            f"{arguments.label_column}: one part has class names and the other numbers, so that classes cannot be "
            "matched; give both the same"
        )
    how: dict[str, Any] = {"resize": arguments.evaluation_resize, "max_pixels": arguments.max_image_pixels}
    first = Pictures(train, size, channels, statistics, dataset=names[0], **how)
    second = Pictures(test, size, channels, statistics, first.names, dataset=names[1], **how)
    _check_classes(first, second, max(KNN_PROTOCOLS[arguments.knn_protocol][0]))
    return first, second


def _check_classes(train: Pictures, test: Pictures, neighbors: int) -> None:
    seen = set(train.labels.tolist())
    if len(seen) == 1:
        only = train.names[int(train.labels[0])]
        raise ValueError(
            f"{train.dataset}: all pictures are of class {only!r}, so that a probe has nothing to tell apart"
        )
    found = test.labels.unique().tolist()
    unseen = [test.names[number] for number in found if number not in seen]
    if len(unseen) == len(found):
        known = ", ".join(train.names[number] for number in sorted(seen)[:10])
        raise ValueError(
            f"no class of {test.dataset} ({', '.join(unseen[:10])}) is one of {train.dataset} ({known}), which a "
            "probe learns from; classes are matched by their names"
        )
    if unseen:
        warnings.warn(
            f"{len(unseen)} classes of the test pictures are not in the training pictures, where a probe could learn "
            f"them: {', '.join(unseen[:10])}",
            stacklevel=3,
        )
    if len(train) < neighbors:
        warnings.warn(
            f"{train.dataset} has {len(train)} pictures: nearest neighbors with a larger k (up to {neighbors}) take "
            "all of them, and their accuracy says little",
            stacklevel=3,
        )
