"""Galleries: the images and texts of a retrieval evaluation."""

from dataclasses import dataclass
from typing import Any

import datasets

from .arguments import DataArguments
from .fields import NotText, texts_of
from .sources import load_corpus


@dataclass
class RetrievalData:
    """Images and texts. A text is a right answer for an image if their groups are equal, and the other way round.

    Args:
        images: a map-style data set with a column `image`.
        texts: the captions.
        image_groups, text_groups: the group of each image and of each text.
        name: what reports call it.
    """

    images: datasets.Dataset
    texts: list[str]
    image_groups: list[Any]
    text_groups: list[Any]
    name: str = "retrieval"


def gallery(rows: datasets.Dataset, group_column: str, name: str, first_caption: bool = False) -> RetrievalData:
    """Rows with captions -> a gallery that has each picture and each caption of a group once.

    Args:
        rows: has the columns `image`, `captions` (a string or a list) and `group_column`.
        first_caption: take only the first caption of each row.

    Raises:
        ValueError: captions of a row are no texts, or none has words; names the row.
    """
    images: dict[tuple[Any, Any], int] = {}
    texts: dict[tuple[Any, str], None] = {}
    # Two rows with one path show the same picture; pictures without a path are not compared.
    paths = rows["image"] if rows.features["image"] == datasets.Value("string") else range(len(rows))
    for number, (path, group, captions) in enumerate(zip(paths, rows[group_column], rows["captions"], strict=True)):
        images.setdefault((group, path), number)
        try:
            captions = [caption for caption in texts_of(captions) if caption.strip()]
        except NotText as problem:
            raise ValueError(f"{name}, row {number}: its captions are {problem.reason}, no texts") from problem
        if not captions:
            raise ValueError(f"{name}, row {number}: no caption with words, so no text is right for it; leave it out")
        for caption in captions[:1] if first_caption else captions:
            texts[(group, caption)] = None
    return RetrievalData(
        images=rows.select_columns(["image", group_column]).select(list(images.values())),
        texts=[caption for _, caption in texts],
        image_groups=[group for group, _ in images],
        text_groups=[group for group, _ in texts],
        name=name,
    )


def build_retrieval_data(arguments: DataArguments) -> RetrievalData | None:
    """The gallery of `evaluation_dataset`; None where no evaluation data set is configured."""
    if arguments.evaluation_dataset is None:
        return None
    corpus = load_corpus(
        arguments.evaluation_dataset,
        split=arguments.evaluation_split,
        image_column=arguments.image_column,
        caption_column=arguments.caption_column,
        id_column=arguments.id_column,
        image_root=arguments.image_root,
        caption_template=arguments.caption_template,
        options=arguments.evaluation_dataset_options,
    )
    designs = arguments.evaluation_dataset_options.get("designs")
    name = f"{arguments.evaluation_dataset}-{'-'.join(designs)}" if designs else arguments.evaluation_dataset
    return gallery(corpus, "group", name, arguments.evaluation_first_caption)
