"""What a model card states without having measured it: terms of the built-in data, and whom to cite."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DataSource:
    """What a corpus is and under which terms it came. url: where its authors are found."""

    name: str
    license: str
    attribution: str
    url: str | None = None


# Designs of the built-in corpus. Those not listed are the property of their vendors.
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
    """Artwork of the built-in corpus, and its names."""
    art = [
        EMOJI_DESIGNS.get(
            design.lower(), DataSource(f"{design} emoji", "proprietary", "its vendor; for local experiments only")
        )
        for design in designs
    ]
    return art + (_EMOJI_NAMES if texts else [])


def built_in_sources(config: Mapping[str, Any], texts: bool = True) -> list[DataSource]:
    """The sources of a run's data set, where it is built in; texts: captions were used too."""
    name = config.get("dataset")
    if config.get("mixture"):
        return []
    if str(name).startswith("emoji"):
        options = config.get("dataset_options") or {}
        return emoji_sources(options.get("designs") or list(EMOJI_DESIGNS), texts)
    return [_SMALL_IMAGES[name]] if name in _SMALL_IMAGES else []


def _bibtex(kind: str, key: str, **fields: str) -> str:
    width = max(map(len, fields))
    lines = [f"  {name:{width}} = {{{value}}}" for name, value in fields.items()]
    return f"@{kind}{{{key},\n" + ",\n".join(lines) + "\n}"


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
