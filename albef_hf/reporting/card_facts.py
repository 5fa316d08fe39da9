"""Fixed facts of model cards: terms of the built-in data, and for each method a description and whom to cite."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DataSource:
    """A source of training data and its terms. url: the page of its authors."""

    name: str
    license: str
    attribution: str
    url: str | None = None


# Designs of the built-in corpus with free licenses. All others belong to their vendors.
EMOJI_DESIGNS = {
    "google": DataSource("Noto Emoji", "Apache-2.0", "Google", "https://github.com/googlefonts/noto-emoji"),
    "twitter": DataSource(
        "Twemoji", "CC BY 4.0", "Twitter, Inc. and other contributors", "https://github.com/twitter/twemoji"
    ),
}
_EMOJI_NAMES = [
    DataSource("emoji (names and aliases)", "BSD-3-Clause", "its authors", "https://pypi.org/project/emoji/"),
    DataSource("em-keyboard (keywords)", "ISC and MIT", "its authors", "https://pypi.org/project/em-keyboard/"),
]
_SMALL_IMAGES = {
    "digits": DataSource("scikit-learn digits", "BSD-3-Clause", "its authors", "https://scikit-learn.org"),
    "fashion_mnist": DataSource(
        "Fashion-MNIST", "MIT", "Zalando SE", "https://github.com/zalandoresearch/fashion-mnist"
    ),
}


def emoji_sources(designs: Sequence[str], texts: bool = True) -> list[DataSource]:
    """The sources of the drawings of some designs, and where captions are used, of the names of emoji."""
    art = [
        EMOJI_DESIGNS.get(
            design.lower(), DataSource(f"{design} emoji", "proprietary", "its vendor; for local experiments only")
        )
        for design in designs
    ]
    return art + (_EMOJI_NAMES if texts else [])


def built_in_sources(config: Mapping[str, Any], texts: bool = True) -> list[DataSource]:
    """The sources of a run's data set if it is built in; empty otherwise.

    Args:
        config: the arguments of the run.
        texts: whether the run used captions.
    """
    name = config.get("dataset")
    if config.get("mixture"):
        return []
    if str(name).startswith("emoji"):
        options = config.get("dataset_options") or {}
        return emoji_sources(options.get("designs") or list(EMOJI_DESIGNS), texts)
    return [_SMALL_IMAGES[name]] if name in _SMALL_IMAGES else []


_BACKBONE = "A vision backbone pre-trained without labels by"
# What a card says of a model, by the method that trained it.
DESCRIPTIONS = {
    "albef": (
        "A vision-language model trained with ALBEF (*Align before Fuse*, Li et al. 2021): an image encoder and a "
        "text encoder aligned by contrast, and a fusion encoder that reads the text while it looks at the image. It "
        "scores captions against pictures, retrieves either with the other, and classifies images by a list of labels "
        "without having been trained on them."
    ),
    "moco_v1": (
        f"{_BACKBONE} MoCo v1 (*Momentum Contrast*, He et al. 2020). It learned to find another view of the same "
        "picture among a queue of other pictures, all encoded by a slowly moving copy of itself."
    ),
    "moco_v2": (
        f"{_BACKBONE} MoCo v2 (Chen et al. 2020). It was trained like MoCo v1, with a projector of two layers and "
        "stronger augmentation."
    ),
    "moco_v3": (
        f"{_BACKBONE} MoCo v3 (Chen, Xie and He 2021). It learned to find another view of the same picture among the "
        "pictures of the batch, all encoded by a slowly moving copy of itself."
    ),
    "byol": (
        f"{_BACKBONE} BYOL (*Bootstrap Your Own Latent*, Grill et al. 2020). It learned to predict the features that "
        "a slowly moving copy of itself gives to another view of the same picture."
    ),
    "barlow_twins": (
        f"{_BACKBONE} Barlow Twins (Zbontar et al. 2021). It learned features that agree between two views of a "
        "picture and do not repeat each other."
    ),
}


def _bibtex(entry: str, key: str, **fields: str) -> str:
    width = max(map(len, fields))
    lines = [f"  {name:{width}} = {{{value}}}" for name, value in fields.items()]
    return f"@{entry}{{{key},\n" + ",\n".join(lines) + "\n}"


# Whom to cite, by the method.
CITATIONS = {
    "albef": _bibtex(
        "inproceedings",
        "li2021align",
        title="Align before Fuse: Vision and Language Representation Learning with Momentum Distillation",
        author="Li, Junnan and Selvaraju, Ramprasaath R. and Gotmare, Akhilesh and Joty, Shafiq and Xiong, Caiming "
        "and Hoi, Steven",
        booktitle="Advances in Neural Information Processing Systems",
        year="2021",
    ),
    "moco_v1": _bibtex(
        "inproceedings",
        "he2020momentum",
        title="Momentum Contrast for Unsupervised Visual Representation Learning",
        author="He, Kaiming and Fan, Haoqi and Wu, Yuxin and Xie, Saining and Girshick, Ross",
        booktitle="Conference on Computer Vision and Pattern Recognition",
        year="2020",
    ),
    "moco_v2": _bibtex(
        "article",
        "chen2020improved",
        title="Improved Baselines with Momentum Contrastive Learning",
        author="Chen, Xinlei and Fan, Haoqi and Girshick, Ross and He, Kaiming",
        journal="arXiv:2003.04297",
        year="2020",
    ),
    "moco_v3": _bibtex(
        "inproceedings",
        "chen2021empirical",
        title="An Empirical Study of Training Self-Supervised Vision Transformers",
        author="Chen, Xinlei and Xie, Saining and He, Kaiming",
        booktitle="International Conference on Computer Vision",
        year="2021",
    ),
    "byol": _bibtex(
        "inproceedings",
        "grill2020bootstrap",
        title="Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning",
        author="Grill, Jean-Bastien and Strub, Florian and Altch{\\'e}, Florent and Tallec, Corentin and others",
        booktitle="Advances in Neural Information Processing Systems",
        year="2020",
    ),
    "barlow_twins": _bibtex(
        "inproceedings",
        "zbontar2021barlow",
        title="Barlow Twins: Self-Supervised Learning via Redundancy Reduction",
        author="Zbontar, Jure and Jing, Li and Misra, Ishan and LeCun, Yann and Deny, St{\\'e}phane",
        booktitle="International Conference on Machine Learning",
        year="2021",
    ),
}
