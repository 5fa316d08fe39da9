"""What to train on and what to evaluate on."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class DataArguments:
    dataset: str = field(
        default="emoji",
        metadata={
            "help": "`emoji`, `digits`, `fashion_mnist` (built in), a Hub id, an image folder, a saved Arrow "
            "folder, or Parquet, tar or JSON"
        },
    )
    dataset_options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "arguments of the loader, e.g. {designs: [google]}"}
    )
    mixture: list[dict[str, Any]] = field(
        default_factory=list,
        metadata={
            "help": "several data sets in place of one: [{dataset: A, weight: 2, caption_column: text}, ...]; without "
            "weights every row comes once an epoch"
        },
    )
    streaming: bool = field(default=False, metadata={"help": "read from front to back, never holding all"})
    streaming_rows: int = field(default=0, metadata={"help": "samples of an epoch when streaming"})
    streaming_window: int = field(default=4096, metadata={"help": "rows shuffled together when streaming"})
    split: str = field(default="train", metadata={"help": "split of the data set"})
    revision: str | None = field(default=None, metadata={"help": "revision of a Hub data set"})
    image_column: str = field(default="image", metadata={"help": "column with the picture or its path"})
    caption_column: str = field(default="captions", metadata={"help": "column with one caption or a list"})
    id_column: str | None = field(
        default=None, metadata={"help": "column that says which pictures show the same thing; the row where left out"}
    )
    label_column: str | None = field(
        default=None, metadata={"help": "column with classes: image-only methods are evaluated with it, never trained"}
    )
    image_root: str | None = field(default=None, metadata={"help": "folder that relative picture paths start from"})
    augmentation: str = field(
        default="albef",
        metadata={"help": "albef (published), crop, gentle or none; for image-only methods a publication's name"},
    )
    augmentation_options: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "scale, flip, operations, magnitude, colours; for image-only methods fields of ViewRecipe"},
    )
    augmentation_device: str = field(
        default="tensors", metadata={"help": "image-only: colours by tensors (on the device) or by pillow"}
    )
    max_caption_tokens: int = field(default=25, metadata={"help": "tokens of a caption, [CLS] included"})
    mlm_probability: float = field(default=0.15, metadata={"help": "share of tokens that are masked"})
    max_rejected_fraction: float = field(
        default=0.01, metadata={"help": "more unusable samples than this share end the run"}
    )
    max_image_pixels: int = field(default=89_478_485, metadata={"help": "larger pictures are rejected undecoded"})
    workers: int = field(default=0, metadata={"help": "processes that decode and augment; 0: the training process"})
    evaluation_dataset: str | None = field(default=None, metadata={"help": "as dataset, for retrieval or for probes"})
    evaluation_dataset_options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "arguments of its loader"}
    )
    evaluation_split: str = field(default="test", metadata={"help": "split of the evaluation data set"})
    evaluation_first_caption: bool = field(
        default=False, metadata={"help": "evaluate with the first caption of each picture only"}
    )
