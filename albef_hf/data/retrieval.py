"""What a retrieval evaluation is made of."""

from dataclasses import dataclass
from typing import Any

import datasets


@dataclass
class RetrievalData:
    """Images, texts, and who belongs to whom: a text is right for an image if their groups are equal.

    Args:
        images: a map-style dataset with a column `image`.
        texts: the captions.
        image_groups, text_groups: one group an image, one group a text.
        name: what to call it in reports.
    """

    images: datasets.Dataset
    texts: list[str]
    image_groups: list[Any]
    text_groups: list[Any]
    name: str = "retrieval"
