"""Small versions of the downstream tasks from the built-in corpus, every label by a rule that is written here.

No model made them, and what decides an answer is drawn in the picture. Parts share no emoji: a tenth are for tests,
and of the others another tenth for validation. Rows are drawn by `random_generator(seed, ...)`, so a data set is a
function of its arguments. Canvases are white, cells of 72 pixels.
"""

import colorsys
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from PIL import Image

from ..corpora import random_generator
from ..images import decode_image
from .emoji import PERMISSIVE, load_emoji_corpus

CELL = 72
COVER = 24  # the side of what covers a corner
PARTS = ("train", "test", "validation")
MINIMUM_SHARE = 0.5  # of the colored pixels that the dominant color must hold

# Upper ends of hue in degrees; red is on both sides of 0.
HUES = ((15, "red"), (42, "orange"), (68, "yellow"), (165, "green"), (255, "blue"), (315, "purple"), (345, "pink"))


def color_name(red: float, green: float, blue: float) -> str:
    """Channels in 0 .. 1 -> "black" (value below 0.2), "grey" or "white" (saturation below 0.2; white from value 0.9),
    "brown" (orange or red hue of a value below 0.65), or the hue's name."""
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    if value < 0.2:
        return "black"
    if saturation < 0.2:
        return "white" if value >= 0.9 else "grey"
    name = next((name for end, name in HUES if hue * 360 < end), "red")
    return "brown" if name in ("red", "orange") and value < 0.65 and hue * 360 >= 8 else name


_color_of = functools.lru_cache(maxsize=65536)(color_name)


def dominant_color(image: Image.Image) -> str | None:
    """The color of most pixels, white ground left out; None where it holds less than half of them.

    Pixels are counted at 24 x 24, channels in steps of 1/16.
    """
    small = np.asarray(image.convert("RGB").resize((24, 24), Image.Resampling.BOX)) // 16
    counts: dict[str, int] = {}
    for red, green, blue in small.reshape(-1, 3).tolist():
        name = _color_of((red + 0.5) / 16, (green + 0.5) / 16, (blue + 0.5) / 16)
        if name != "white":
            counts[name] = counts.get(name, 0) + 1
    if not counts:
        return None
    name, count = max(counts.items(), key=lambda item: item[1])
    return name if count >= MINIMUM_SHARE * sum(counts.values()) else None


@dataclass(frozen=True)
class Drawing:
    """One drawing of one emoji and what is known of it."""

    image: Image.Image
    emoji: str
    name: str
    group: str | None
    design: str
    color: str | None


def _corpus(
    part: str, designs: Sequence[str], seed: int, captions: Sequence[str] = ("name",), labels: bool = False
) -> datasets.Dataset:
    """The emoji of a part."""
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, not {part!r}")
    corpus = load_emoji_corpus(
        designs=designs, captions=captions, part="test" if part == "test" else "train", seed=seed, labels=labels
    )
    if part == "test":
        return corpus
    emoji = sorted(set(corpus["group"]))
    held = {emoji[i] for i in random_generator(seed, 14).permutation(len(emoji))[: len(emoji) // 10]}
    return corpus.select([i for i, each in enumerate(corpus["group"]) if (each in held) == (part == "validation")])


def _drawings(part: str, designs: Sequence[str], seed: int, groups: bool = False) -> list[Drawing]:
    corpus = _corpus(part, designs, seed, labels=groups)
    names = corpus.features["label"].names if groups else []
    drawings = []
    for row in corpus:
        image = decode_image(row["image"]).resize((CELL, CELL), Image.Resampling.BICUBIC)
        group = names[row["label"]].replace("_", " ") if groups else None
        drawings.append(Drawing(image, row["group"], row["name"], group, row["design"], dominant_color(image)))
    return drawings


def _table(rows: list[dict[str, Any]], images: Sequence[str] = ("image",)) -> datasets.Dataset:
    """Rows as a data set; pictures become PNG."""
    if not rows:
        raise ValueError("a data set needs a size of at least 1")
    table = datasets.Dataset.from_list([{k: v for k, v in row.items() if k not in images} for row in rows])
    for name in images:
        values = [row[name] for row in rows]
        several = isinstance(values[0], list)
        feature = datasets.List(datasets.Image()) if several else datasets.Image()
        pictures = datasets.Dataset.from_dict({name: values}, features=datasets.Features({name: feature}))
        table = datasets.concatenate_datasets([table, pictures], axis=1)
    return table


def _choice(generator: np.random.Generator, values: Sequence[Any]) -> Any:
    return values[int(generator.integers(len(values)))]


def _other(generator: np.random.Generator, drawings: Sequence[Drawing], unlike: Callable[[Drawing], bool]) -> Drawing:
    """A drawing that is not `unlike`; the rules below leave many."""
    for _ in range(10_000):
        drawn = _choice(generator, drawings)
        if not unlike(drawn):
            return drawn
    raise ValueError("too few drawings differ from each other")


def load_emoji_retrieval(part: str = "train", designs: Sequence[str] = PERMISSIVE, seed: int = 0) -> datasets.Dataset:
    """Retrieval: every drawing with the name and the keywords of its emoji; drawings of one emoji share `image_id`."""
    corpus = _corpus(part, designs, seed, ("name", "keywords"))
    return corpus.select_columns(["image", "captions", "group"]).rename_column("group", "image_id")


# Type of a question -> how it may be asked. These texts are data, in British spelling.
QUESTIONS = {
    "group": ("what kind of thing is it?", "which group does it belong to?"),
    "colour": ("what colour is it?", "which colour is most of it?"),
    "design": ("whose design is it?", "who drew it?"),
}


def _answer(drawing: Drawing, question_type: str) -> str | None:
    return {"group": drawing.group, "colour": drawing.color, "design": drawing.design}[question_type]


def load_emoji_questions(
    part: str = "train", size: int = 2000, designs: Sequence[str] = PERMISSIVE, seed: int = 0
) -> datasets.Dataset:
    """Questions about one drawing: its Unicode group, its dominant color (`dominant_color`), its design.

    Returns: columns `image`, `question`, `answers` (one, as ten people who agree), `question_type` and `answer_type`
        (group, colour, design), `emoji`.
    """
    drawings = _drawings(part, designs, seed, groups=True)
    generator = random_generator(seed, 10, PARTS.index(part))
    # With one design there is nothing to ask about it.
    types = [each for each in QUESTIONS if each != "design" or len(designs) > 1]
    rows = []
    for _ in range(size):
        question_type = _choice(generator, types)
        drawing = _other(generator, drawings, lambda each: _answer(each, question_type) is None)  # noqa: B023
        rows.append(
            {
                "image": drawing.image,
                "question": _choice(generator, QUESTIONS[question_type]),
                "answers": [_answer(drawing, question_type)] * 10,
                "question_type": question_type,
                "answer_type": question_type,
                "emoji": drawing.emoji,
            }
        )
    return _table(rows)


def load_emoji_reasoning(
    part: str = "train", size: int = 2000, designs: Sequence[str] = PERMISSIVE, seed: int = 0
) -> datasets.Dataset:
    """A statement about two pictures, true or false with equal chances; neither picture decides it alone.

    Rules, by dominant color: "both are C"; "only one of them is C"; "the left one is C and the right one is D".
    A false statement differs from a true one in one picture.

    Returns: columns `images` (two), `sentence`, `label` ("True" or "False"), `rule`.
    """
    drawings = [each for each in _drawings(part, designs, seed) if each.color is not None]
    by_color: dict[str, list[Drawing]] = {}
    for each in drawings:
        by_color.setdefault(str(each.color), []).append(each)
    colors = sorted(color for color, members in by_color.items() if len(members) >= 5)
    generator = random_generator(seed, 11, PARTS.index(part))
    rows = []
    for _ in range(size):
        rule, true = _choice(generator, ("both", "only one", "left and right")), bool(generator.integers(2))
        color, second = (colors[i] for i in generator.permutation(len(colors))[:2])
        right_color = _choice(generator, by_color[color])
        wrong_color = _other(generator, drawings, lambda each: each.color == color)  # noqa: B023
        third = _choice(generator, by_color[color])
        if rule == "both":
            sentence, pair = f"both are {color}", [right_color, third if true else wrong_color]
        elif rule == "only one":
            sentence, pair = f"only one of them is {color}", [right_color, wrong_color if true else third]
        else:
            sentence = f"the left one is {color} and the right one is {second}"
            matching = _choice(generator, by_color[second])
            not_second = _other(generator, drawings, lambda each: each.color == second)  # noqa: B023
            pair = (
                [right_color, matching]
                if true
                else _choice(generator, ([wrong_color, matching], [right_color, not_second]))
            )
        if rule != "left and right" and generator.integers(2):
            pair.reverse()
        rows.append({"images": [each.image for each in pair], "sentence": sentence, "label": str(true), "rule": rule})
    return _table(rows, ("images",))


def load_emoji_entailment(
    part: str = "train", size: int = 2000, designs: Sequence[str] = PERMISSIVE, seed: int = 0
) -> datasets.Dataset:
    """Does the picture decide the sentence? One drawing; a gray square may cover a corner and what may be under it.

    Sentences are "there is A" and "there is no A", A being the name of an emoji. Of the emoji that is drawn the first
    is entailed and the second a contradiction; of another one, in an open picture, it is the other way round; where a
    corner is covered, what is not seen may lie under it: neutral. Each label has a third, and no sentence tells its
    label; who sees covers and "no" but recognises nothing is right in two of three.

    Returns: columns `image`, `sentence`, `label` (contradiction, neutral, entailment).
    """
    drawings = _drawings(part, designs, seed)
    generator = random_generator(seed, 12, PARTS.index(part))
    rows = []
    for _ in range(size):
        label = _choice(generator, ("contradiction", "neutral", "entailment"))
        denied = bool(generator.integers(2))
        drawing = _choice(generator, drawings)
        absent = _other(generator, drawings, lambda each: each.emoji == drawing.emoji)  # noqa: B023
        # What is seen is entailed when affirmed and contradicted when denied.
        seen = label != "neutral" and (label == "contradiction") == denied
        # A closed picture cannot say that something is absent.
        covered = label == "neutral" or (seen and bool(generator.integers(2)))
        canvas = drawing.image.copy()
        if covered:
            x, y = (int(side) * (CELL - COVER) for side in generator.integers(2, size=2))
            canvas.paste((128, 128, 128), (x, y, x + COVER, y + COVER))
        name = drawing.name if seen else absent.name
        rows.append({"image": canvas, "sentence": f"there is {'no ' if denied else ''}{name}", "label": label})
    return _table(rows)


def load_emoji_grounding(
    part: str = "train",
    size: int = 2000,
    designs: Sequence[str] = PERMISSIVE,
    seed: int = 0,
    objects: int = 4,
    grid: int = 3,
) -> datasets.Dataset:
    """The name of one of several drawings on a canvas, and its box.

    Drawings of 40 to 72 pixels stand anywhere in different cells of a grid; their emoji differ.

    Returns: columns `image`, `expression`, `box` (x, y, width, height), `proposals` (the boxes of all drawings),
        `image_id`.

    Raises:
        ValueError: more objects than cells.
    """
    if not 1 <= objects <= grid * grid:
        raise ValueError(f"a grid of {grid} x {grid} cells has no room for {objects} objects")
    drawings = _drawings(part, designs, seed)
    generator = random_generator(seed, 13, PARTS.index(part))
    rows = []
    for row in range(size):
        canvas = Image.new("RGB", (grid * CELL, grid * CELL), "white")
        chosen: list[Drawing] = []
        boxes = []
        for cell in generator.permutation(grid * grid)[:objects].tolist():
            known = {each.emoji for each in chosen}
            drawing = _other(generator, drawings, lambda each: each.emoji in known)  # noqa: B023
            side = int(generator.integers(40, CELL + 1))
            x = CELL * (cell % grid) + int(generator.integers(CELL - side + 1))
            y = CELL * (cell // grid) + int(generator.integers(CELL - side + 1))
            canvas.paste(drawing.image.resize((side, side), Image.Resampling.BICUBIC), (x, y))
            chosen.append(drawing)
            boxes.append([float(x), float(y), float(side), float(side)])
        rows.append(
            {
                "image": canvas,
                "expression": chosen[0].name,
                "box": boxes[0],
                "proposals": [boxes[i] for i in generator.permutation(objects)],
                "image_id": f"{part}:{row}",
            }
        )
    return _table(rows)
