"""The base class of downstream tasks. CONTRIBUTING.md shows how to add a task."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from ..data.augmentation import build_augmentation
from ..data.fields import is_mixed, is_text, type_name
from ..data.images import BadImage, decode_image
from ..data.sources import BUILT_IN, check_keys, load_columns
from ..modeling_albef_loading import AlbefPreTrainedModel
from ..processing_albef import AlbefProcessor
from ..reporting.html import Example, example_section
from ..reporting.model_card import CardText
from ..reporting.report import GALLERY_SEED
from .result import TaskResult, TaskSettings
from .rows import complete_paths


class Task:
    """A downstream task: its columns, samples, batches, metrics, predictions, report and card.

    A subclass sets the attributes that have no value here and overrides `prepare` and `measure`. It overrides the
    other methods only where it needs something else.

    Attributes:
        name: of the task, as under `task` in a configuration.
        model_class: what is trained and measured. `forward` takes what `collate` returns; its output has `loss`.
        metric: the entry of `TaskResult.metrics` that chooses the weights; higher is better.
        needed, optional: our column -> its name in the publication's JSON lists. Rows of the task have our names;
            optional columns may be missing.
        text_columns: columns with one text a row.
        image_columns: columns with a picture or a list of pictures.
        crop: smallest and largest share of the picture's area that a training sample shows; None: the whole picture.
        max_tokens: longer texts are cut to this many tokens. As published, 512 cuts none.
        uses_protocol: whether a retrieval protocol can measure it.
        description: for the card, after "fine-tuned for NAME.".
        pipeline_tag: for the card: the Hub's name of the task; None: it has none.
        usage: lines of code for the card, in which `picture`, `model` and `processor` exist and torch is imported.
        examples_shown: how many rows the report shows.
        examples_caption: the text above them.

    Args:
        processor: of the model.
        settings: see `TaskSettings`.
    """

    name: str
    model_class: type[AlbefPreTrainedModel]
    metric = "accuracy"
    needed: Mapping[str, str]
    text_columns: Sequence[str] = ()
    optional: Mapping[str, str] = {}
    image_columns: Sequence[str] = ("image",)
    crop: tuple[float, float] | None = (0.5, 1.0)
    max_tokens = 512
    uses_protocol = False
    description: str
    pipeline_tag: str | None = None
    usage: Sequence[str]
    examples_shown = 12
    examples_caption = (
        "Drawn at random with a fixed seed, not chosen by their outcome. ✓ marks what is right, ✗ what is wrong."
    )

    def __init__(self, processor: AlbefProcessor, settings: TaskSettings | None = None) -> None:
        self.processor, self.settings = processor, settings or TaskSettings()
        sizes = (processor.image_size, processor.image_mean, processor.image_std)
        options = {"scale": self.crop} | self.settings.data.augmentation_options
        self.training_augmentation = build_augmentation("albef", *sizes, **options)
        self.evaluation_augmentation = build_augmentation("none", *sizes)

    # -- rows ---------------------------------------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        dataset: str,
        *,
        columns: Mapping[str, Any] | None = None,
        split: str = "train",
        revision: str | None = None,
        image_root: str | Path | None = None,
        image_suffix: str = "",
        label_names: Sequence[str] | None = None,
        options: dict[str, Any] | None = None,
    ) -> datasets.Dataset:
        """Load any data set as rows of the task, pictures undecoded.

        Args:
            dataset, split, revision, options: as in `albef_hf.data.sources.load_corpus`.
            columns: our column -> its name in the data set. Where left out, it is the name in the publication's lists,
                and an optional column is used if it exists.
            image_root: folder that relative picture paths start from; the folder of the list where left out.
            image_suffix: ending to add to picture paths. The lists of SNLI-VE hold numbers that need ".jpg".
            label_names: the names of class numbers, in their order, where the data set does not tell them.

        Returns: columns named as in `needed` and `optional`.

        Raises:
            ValueError: a column is unknown or missing; says which come nearest.
        """
        needed, optional = cls.source_columns(dataset, dict(columns or {}))
        rows, folder = load_columns(dataset, needed, optional, split=split, revision=revision, options=options)
        root = Path(image_root).expanduser() if image_root is not None else folder
        for name in cls.text_columns:
            if not (is_text(feature := rows.features[name]) or is_mixed(feature)):
                source = needed.get(name, name)
                raise ValueError(
                    f"{dataset}, column {source!r} holds {type_name(feature)}, but one text a row is needed"
                )
        rows = cls.name_labels(cls.complete_rows(rows, dataset), dataset, label_names)
        return complete_paths(rows, cls.image_columns, root, image_suffix)

    @classmethod
    def source_columns(cls, dataset: str, given: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
        """The required and the optional columns, each as our name -> its name in the data set.

        Args:
            given: the names that a configuration gives. An optional column that is given is required.
        """
        check_keys(given, [*cls.needed, *cls.optional], f"columns of {cls.name}")
        built_in = dataset in BUILT_IN  # built-in data has our names
        defaults = {ours: ours if built_in else theirs for ours, theirs in {**cls.needed, **cls.optional}.items()}
        must = {ours: str(given.get(ours, defaults[ours])) for ours in (*cls.needed, *given)}
        return must, {ours: defaults[ours] for ours in cls.optional if ours not in given}

    @classmethod
    def complete_rows(cls, rows: datasets.Dataset, dataset: str) -> datasets.Dataset:
        """Add columns that follow from others. Called before picture paths are completed."""
        return rows

    @classmethod
    def classes_of(cls, parts: Mapping[str, datasets.Dataset]) -> Sequence[str] | None:
        """The classes to give to a new model, where the training data decides; None where it does not."""
        return None

    @classmethod
    def name_labels(cls, rows: datasets.Dataset, dataset: str, label_names: Sequence[str] | None) -> datasets.Dataset:
        """Put the names of classes in place of their numbers. Only tasks with labels do anything.

        Raises:
            ValueError: the task has no labels, but names are given.
        """
        if label_names is not None:
            raise ValueError(f"label_names: {cls.name} has no labels")
        return rows

    def check_rows(self, rows: datasets.Dataset, name: str, chooses: bool) -> None:
        """Check that these rows can be measured, as far as that shows without their pictures. Called before training.

        Args:
            name: of the rows, for the error.
            chooses: their metric will choose the weights.

        Raises:
            ValueError: they cannot; names the row, or says what to do.
        """
        checked = [column for column in rows.column_names if column not in self.image_columns]
        for number, row in enumerate(rows.select_columns(checked)):
            try:
                self.check_row(row)
            except BadImage as problem:
                raise ValueError(f"{name}, row {number}: {problem.reason}") from problem

    def check_row(self, row: Mapping[str, Any]) -> None:
        """Check what a row holds besides its pictures, for `check_rows`.

        Raises:
            BadImage: it cannot be measured.
        """
        for column in self.text_columns:
            self.text(row, column)

    # -- samples and batches ------------------------------------------------------------------------------------------

    def prepare(self, row: Mapping[str, Any], generator: np.random.Generator, training: bool) -> dict[str, Any]:
        """Turn a row into a sample: `pixel_values` (from `pixels`), `text`, and what else `collate` needs.

        Args:
            generator: makes every random choice.
            training: augment the picture, and add what only the loss needs.

        Raises:
            BadImage: the row cannot be used; names the column and says why. In training the row is replaced and
                counted; in evaluation this becomes an error that names the row.
        """
        raise NotImplementedError

    def pixels(
        self, value: Any, generator: np.random.Generator, training: bool, column: str = "image"
    ) -> torch.Tensor:
        """Decode and augment a picture: a tensor (3, image_size, image_size).

        Raises:
            BadImage: it cannot be read.
        """
        augment = self.training_augmentation if training else self.evaluation_augmentation
        try:
            return augment(decode_image(value, self.settings.data.max_image_pixels), generator)
        except BadImage as problem:
            raise BadImage(f"{column}: {problem.reason}") from problem

    def text(self, row: Mapping[str, Any], column: str) -> str:
        """Get a text of a row.

        Raises:
            BadImage: it has no words.
        """
        value = row[column]
        if not isinstance(value, str):
            raise BadImage(f"{column}: {value!r} is no text")
        if not self.processor.clean_caption(value):
            raise BadImage(f"{column}: no words in {value!r}")
        return value

    def tokenize(self, texts: Sequence[str], training: bool) -> Mapping[str, torch.Tensor]:
        """`input_ids` and `attention_mask` (texts, tokens)."""
        return self.processor.tokenize_captions(texts, self.max_tokens)

    def collate(self, samples: Sequence[Mapping[str, Any]], training: bool) -> dict[str, torch.Tensor]:
        """Turn samples into the arguments of the model's `forward`: `pixel_values` (samples, ...), `input_ids` and
        `attention_mask` (samples, tokens). Tasks add what their loss needs."""
        tokens = self.tokenize([sample["text"] for sample in samples], training)
        return {
            "pixel_values": torch.stack([sample["pixel_values"] for sample in samples]),
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"],
        }

    # -- what is kept beside the weights ------------------------------------------------------------------------------

    def prepare_training(self, parts: Mapping[str, datasets.Dataset]) -> None:
        """Called once before training. parts: the training rows, by the name of their data set."""

    def saved_files(self) -> dict[str, str]:
        """Files to save in the model folder besides model and processor: name -> text."""
        return {}

    def read_saved(self, model_path: str) -> None:
        """Read what `saved_files` wrote. Called before a saved model is measured.

        Raises:
            ValueError: something is missing; says what to do.
        """

    # -- metrics ------------------------------------------------------------------------------------------------------

    def measure(self, model: Any, rows: datasets.Dataset, name: str) -> TaskResult:
        """Predict every row and compare. Called on all ranks with the model in evaluation mode; every rank returns the
        whole result. `batches.predict_rows` divides the rows among the ranks.

        Raises:
            ValueError: a row cannot be used or compared.
        """
        raise NotImplementedError

    @classmethod
    def metric_names(cls) -> list[str]:
        """The metrics that `chosen_by` may name."""
        return [cls.metric]

    def write_predictions(self, result: TaskResult, folder: Path) -> None:
        """Write the predictions into an existing folder, in the format of the task's evaluation server or scorer. By
        default this is NAME.jsonl with an object for each row, if there are predictions; NAME is `result.name`."""
        if result.predictions:
            write_json_lines(folder / f"{result.name}.jsonl", result.predictions)

    # -- report and card ----------------------------------------------------------------------------------------------

    def example(self, result: TaskResult, row: int, data: Mapping[str, Any]) -> Example | None:
        """A row for the report: its pictures, its text, and lines with the model's predictions; None: show none.

        Args:
            row: its number, also in the lists of `result`.
            data: the row itself.
        """
        return None

    def tables(self, result: TaskResult) -> list[str]:
        """Sections of the report about one test, before its examples, as HTML (see `reporting.html`)."""
        return []

    def sections(
        self, results: Mapping[str, TaskResult], rows: Mapping[str, datasets.Dataset], model: Any
    ) -> list[str]:
        """Sections of the report after the table of metrics: the tables and the examples of each test.

        Args:
            results, rows: of each test, by its name.
            model: with the weights that gave these results.
        """
        sections: list[str] = []
        for name, result in results.items():
            drawn = drawn_rows(len(rows[name]), self.examples_shown)
            examples = [self.example(result, row, rows[name][row]) for row in drawn]
            shown = [example for example in examples if example is not None]
            sections += self.tables(result)
            if shown:
                sections.append(example_section(f"Examples: {name}", self.examples_caption, shown))
        return sections

    @classmethod
    def card(cls, results: Mapping[str, TaskResult]) -> CardText:
        """The text of the model card, with the results of the tests by name."""
        model = cls.model_class.__name__
        lines = ["| data | metric | value |", "|---|---|---:|"]
        for name, result in results.items():
            figures = [*result.metrics.items(), *((f"({key})", value) for key, value in result.baselines.items())]
            lines += [f"| {name} | {metric} | {value:.2%} |" for metric, value in figures]
        heading = "## Results\n\nWith the weights that validation chose; in brackets, baselines without a model.\n\n"
        load = [f"model = {model}.from_pretrained(name).eval()", "processor = AlbefProcessor.from_pretrained(name)"]
        return CardText(
            f"ALBEF (*Align before Fuse*, Li et al. 2021) fine-tuned for {cls.name.replace('_', ' ')}. "
            f"{cls.description}",
            cls.pipeline_tag,
            [cls.name.replace("_", "-")],
            [*load, *cls.usage],
            f"AlbefProcessor, {model}",
            heading + "\n".join(lines) if results else "",
        )


def drawn_rows(count: int, wanted: int) -> list[int]:
    """Draw `wanted` of `count` row numbers with a fixed seed, in ascending order; all, if there are fewer."""
    return sorted(random.Random(GALLERY_SEED).sample(range(count), min(wanted, count)))


def write_json_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one JSON object for each line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
