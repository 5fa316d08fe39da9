"""A run of an image-only method for `scripts/pretrain.py`; see `albef_hf.training.albef_run` for its counterpart."""

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from albef_hf.data.arguments import DataArguments
from albef_hf.data.sources import check_keys
from albef_hf.evaluation.probes import KNN_PROTOCOLS, knn_accuracy, logistic_regression
from albef_hf.reporting.curves import plot_curves
from albef_hf.reporting.html import picture_section, table_section
from albef_hf.reporting.log import put_evaluation
from albef_hf.reporting.model_card import write_model_card
from albef_hf.reporting.report import write_report
from albef_hf.training.arguments import ModelArguments, TrainingArguments
from albef_hf.training.initialization import build_vision_backbone
from albef_hf.training.launch import Run, attempt

from . import METHODS
from .data import build_two_view_data
from .figures import draw_map, draw_neighbors, draw_views
from .method import ImageMethod
from .pictures import checked_resize, image_processor, load_pictures, pixel_statistics

# Arguments of ALBEF that an image-only method has too, under `method_options`.
_INSIDE_OPTIONS = ("projection_dim", "queue_size", "momentum", "temperature")
# Arguments of ALBEF that an image-only method has nothing of.
_OF_ALBEF = ("model_path", "text_model", "text_config", "tokenizer")


def default_options(method: type[ImageMethod]) -> dict[str, Any]:
    """The arguments of a method besides its backbone, with their defaults."""
    parameters = inspect.signature(method).parameters.items()
    return {name: parameter.default for name, parameter in parameters if name != "backbone"}


def build_method(arguments: ModelArguments) -> ImageMethod:
    """The configured method on its backbone.

    Raises:
        ValueError: an unknown option (names the nearest), one that is no number, or one of ALBEF's arguments that
            belongs in method_options.
    """
    method = METHODS[arguments.method]
    options = default_options(method)
    check_keys(arguments.method_options, list(options), "method_options")
    for name, value in arguments.method_options.items():
        if isinstance(options[name], int | float) and not isinstance(value, int | float):
            raise ValueError(
                f"method_options: {name} must be a number, as {options[name]} is by default, not {value!r}"
            )
    defaults = {field.name: field.default for field in dataclasses.fields(ModelArguments)}
    for name in _INSIDE_OPTIONS:
        if getattr(arguments, name) != defaults[name]:
            raise ValueError(f"{name} is ALBEF's; give {arguments.method} its own inside method_options")
    given = [name for name in _OF_ALBEF if getattr(arguments, name)]
    if given:
        raise ValueError(
            f"{', '.join(given)}: {arguments.method} trains an image encoder alone; it starts from vision_model"
        )
    return method(build_vision_backbone(arguments), **arguments.method_options)


class ImageRun(Run):
    """Training of an image-only method: nearest neighbors within the loop, probes after it."""

    method: ImageMethod

    def __init__(
        self,
        model_arguments: ModelArguments,
        data_arguments: DataArguments,
        arguments: TrainingArguments,
        accelerator: Accelerator,
    ) -> None:
        self.model_arguments, self.arguments, self.data_arguments = model_arguments, arguments, data_arguments
        self.accelerator = accelerator
        self.method = build_method(model_arguments)
        self.size = model_arguments.image_size
        self.resize = checked_resize(data_arguments.evaluation_resize, self.size)
        self.channels = getattr(self.method.backbone.backbone.config, "num_channels", 3)
        self.mean, self.std = pixel_statistics(self.channels, data_arguments.image_mean, data_arguments.image_std)
        self.data = build_two_view_data(
            data_arguments,
            image_size=self.size,
            channels=self.channels,
            mean=self.mean,
            std=self.std,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            accumulation=arguments.accumulation,
        )
        self.pictures = load_pictures(data_arguments, self.size, self.channels)
        name = data_arguments.evaluation_dataset or data_arguments.dataset
        self.evaluation_name = "" if self.pictures is None else f"{name}, {data_arguments.knn_protocol}"

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Nearest-neighbor accuracy of the online encoder. On all ranks."""
        assert self.pictures is not None and isinstance(model, ImageMethod)
        return self._neighbors([part.features(model.backbone, self.accelerator.device) for part in self.pictures])

    def _neighbors(self, features: Sequence[torch.Tensor]) -> dict[str, float]:
        """features: of the training and the test pictures."""
        assert self.pictures is not None
        train, test = (part.labels for part in self.pictures)
        found = knn_accuracy(features[0], train, features[1], test, *KNN_PROTOCOLS[self.data_arguments.knn_protocol])
        return {f"knn_{k}": value for k, value in found.items()}

    def draw(self, batch: dict[str, Any], path: Path) -> Path:
        """Both views of the first samples."""
        views = self.data.to_device(batch, torch.device("cpu"))["views"]
        return draw_views(views, self.mean, self.std, path)

    def finish(self, method: nn.Module, folder: Path, step: int) -> None:
        """Save the backbone as an ordinary transformers folder, probe it, write the report. On all ranks."""
        assert isinstance(method, ImageMethod)
        main = self.accelerator.is_main_process
        if main:
            save_backbone(method, folder / "model", self.size, self.resize, self.mean, self.std)
        features = None
        if self.pictures is not None:
            with attempt("the last evaluation", folder, step):
                features = [part.features(method.backbone, self.accelerator.device) for part in self.pictures]
        if main:
            with attempt("the report", folder, step):
                self._report(folder, step, features)

    def _report(self, folder: Path, step: int, features: Sequence[torch.Tensor] | None) -> None:
        """Probe the features of the training and the test pictures, and write the report."""
        batch = next(self.data.batches())
        batch.pop("rejected")
        sections = [
            picture_section(
                "Views",
                "Two augmented views of eight samples, as the method gets them.",
                self.draw(batch, folder / "views.png"),
            )
        ]
        results: dict[str, float] = {}
        if self.pictures is not None and features is not None:
            results = self._probe(features, folder, step)
            test = self.pictures[1]
            labels = test.labels.tolist()
            chance = float(test.labels.bincount().max()) / len(labels)
            rows = [[name, f"{value:.1%}", f"{chance:.1%}"] for name, value in results.items()]
            sections.insert(
                0,
                table_section(
                    "Frozen features",
                    "Accuracy on the test part, of the last weights. Penalties are chosen on a held-out fifth of the "
                    "training part. Chance is always naming the most frequent class.",
                    ["Probe", "Accuracy", "Chance"],
                    rows,
                ),
            )
            sections += [
                picture_section(
                    "Nearest neighbors",
                    "Eight test pictures drawn at random with a fixed seed, and the six nearest to each.",
                    draw_neighbors(features[1], test, labels, folder / "neighbours.png"),
                ),
                picture_section(
                    "Map",
                    "Test pictures by their features.",
                    draw_map(features[1], labels, test.names, folder / "map.png"),
                ),
            ]
        plot_curves(folder / "log.jsonl", folder / "curves.png")
        settings = {"method_options": default_options(type(self.method)) | self.model_arguments.method_options}
        write_model_card(folder, folder / "model", probes=results, settings=settings)
        print(f"report: {write_report(folder, None, None, sections)}")

    def _probe(self, features: Sequence[torch.Tensor], folder: Path, step: int) -> dict[str, float]:
        assert self.pictures is not None
        train, test = (part.labels for part in self.pictures)
        regression = logistic_regression(features[0], train, features[1], test)
        metrics = self._neighbors(features) | {"logistic_regression": regression["accuracy"]}
        row = {"kind": "evaluation", "step": step, "name": self.evaluation_name, "metrics": metrics}
        put_evaluation(folder / "log.jsonl", row)
        for name, value in metrics.items():
            print(f"{name:32} {100 * value:6.2f} %")
        return metrics


def save_backbone(
    method: ImageMethod, folder: Path, size: int, resize: int, mean: Sequence[float], std: Sequence[float]
) -> None:
    """The online encoder as a folder that `AutoModel`, `pipeline("image-feature-extraction")` and ALBEF's
    `vision_model` read, this package installed or not."""
    method.backbone.backbone.save_pretrained(folder)
    image_processor(size, resize, mean, std).save_pretrained(folder)
