"""Image-only self-supervised methods on ALBEF's vision backbone, momentum copies, queue, loop and data."""

from .barlow_twins import BarlowTwins
from .byol import Byol
from .method import ImageMethod, MethodOutput
from .moco import MoCoV1, MoCoV2
from .moco_v3 import MoCoV3

_CLASSES: tuple[type[ImageMethod], ...] = (
    MoCoV1,
    MoCoV2,
    MoCoV3,
    Byol,
    BarlowTwins,
)
METHODS: dict[str, type[ImageMethod]] = {method.name: method for method in _CLASSES}

__all__ = ["METHODS", "BarlowTwins", "Byol", "ImageMethod", "MethodOutput", "MoCoV1", "MoCoV2", "MoCoV3"]
