"""Which data to train on and which to evaluate on."""

from dataclasses import dataclass, field
from typing import Any

from .augmentation import AUGMENTATIONS, OPTIONS


@dataclass
class DataArguments:
    dataset: str = field(
        default="emoji",
        metadata={
            "help": "`emoji`, `digits` or `fashion_mnist` (built in), a Hub id (owner/name), a folder of pictures or "
            "of files of rows, a saved Arrow folder, or Parquet, Arrow, JSON, csv, tsv, tar or zip files"
        },
    )
    dataset_options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "arguments of the loader, e.g. {designs: [google]}"}
    )
    mixture: list[dict[str, Any]] = field(
        default_factory=list,
        metadata={
            "help": "several data sets in place of one: [{dataset: A, weight: 2, caption_column: text}, ...]; without "
            "weights, an epoch has every row once"
        },
    )
    streaming: bool = field(
        default=False, metadata={"help": "read rows where the next ones are instead of loading data sets whole"}
    )
    streaming_rows: int = field(default=0, metadata={"help": "samples in an epoch when streaming; 0: all rows"})
    streaming_window: int = field(
        default=4096,
        metadata={
            "help": "when streaming, rows are shuffled within windows of this many, from a place for each 64 of them"
        },
    )
    split: str = field(default="train", metadata={"help": "split of the data set; `all` takes a whole folder"})
    revision: str | None = field(default=None, metadata={"help": "revision of a data set of the Hub"})
    image_column: str = field(
        default="image",
        metadata={"help": "column with the picture or its path; in archives endings of files, such as `jpg;png`"},
    )
    caption_column: str = field(
        default="captions",
        metadata={"help": "column with one caption or a list of them, or a field in it: `caption.en`, `json.caption`"},
    )
    id_column: str | None = field(
        default=None,
        metadata={"help": "rows with equal values here show the same thing; left out, rows with the same path do"},
    )
    label_column: str | None = field(
        default=None,
        metadata={"help": "column with classes: used to evaluate image-only methods, never to train them"},
    )
    caption_template: str | None = field(
        default=None, metadata={"help": "makes captions of names of classes: `a photo of a {}`"}
    )
    image_root: str | None = field(default=None, metadata={"help": "folder that relative picture paths start from"})
    augmentation: str = field(
        default="albef",
        metadata={"help": f"one of {', '.join(AUGMENTATIONS)}; for image-only methods the name of a method"},
    )
    augmentation_options: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": f"{', '.join(OPTIONS)}; for image-only methods fields of ViewRecipe"},
    )
    augmentation_device: str = field(
        default="tensors",
        metadata={
            "help": "image-only: change colors with tensors (on the training device) or with pillow",
            "choices": ("tensors", "pillow"),
        },
    )
    max_caption_tokens: int = field(
        default=25, metadata={"help": "longer captions are cut to this many tokens, [CLS] included"}
    )
    mlm_probability: float = field(default=0.15, metadata={"help": "share of tokens that are masked"})
    max_rejected_fraction: float = field(
        default=0.01, metadata={"help": "the run ends when more than this share of the samples cannot be used"}
    )
    max_image_pixels: int = field(
        default=89_478_485, metadata={"help": "pictures with more pixels are rejected without decoding them"}
    )
    image_mean: list[float] | None = field(
        default=None,
        metadata={"help": "image-only: mean of each channel, in 0 .. 1; left out, ImageNet's for color, else 0.5"},
    )
    image_std: list[float] | None = field(
        default=None, metadata={"help": "image-only: deviation of each channel; left out, ImageNet's, else 0.25"}
    )
    workers: int = field(
        default=0, metadata={"help": "processes that decode and augment; 0: the training process does it"}
    )
    evaluation_dataset: str | None = field(
        default=None, metadata={"help": "data set for retrieval or probes; takes what `dataset` takes"}
    )
    evaluation_dataset_options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "arguments of its loader"}
    )
    evaluation_split: str = field(default="test", metadata={"help": "split of the evaluation data set"})
    evaluation_resize: int | None = field(
        default=None,
        metadata={
            "help": "image-only: pixels of a test picture's shorter side, before image_size x image_size are cut from "
            "its middle; left out, image_size. ImageNet's protocol: 256"
        },
    )
    knn_protocol: str = field(
        default="dino-knn",
        metadata={
            "help": "image-only: dino-knn (k of 10, 20, 100, 200, temperature 0.07) or instdisc-knn (k of 200, "
            "temperature 0.1)",
            "choices": ("dino-knn", "instdisc-knn"),
        },
    )
    evaluation_first_caption: bool = field(
        default=False, metadata={"help": "evaluate with the first caption of each picture only"}
    )
