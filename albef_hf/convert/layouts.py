"""The published names of ALBEF's weights and ours, in one table that is read in both directions.

Each rule has a published name and ours. `#` stands for the number of a layer, and `*` for `weight` or `bias`. Most
weights only change their name. The fused query-key-value projections of the image encoder, the queues and their
pointer change their shape too. Rules of a momentum copy follow from those of its original: `_m` is appended to the
published module's name, and `momentum_copy.` precedes ours.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from ..losses import IGNORED


@dataclass(frozen=True)
class Rule:
    """One published tensor <-> one or more of ours.

    Args:
        read: the published tensor -> ours.
        write: ours -> the published tensor.
    """

    published: str
    ours: tuple[str, ...]
    read: Callable[[torch.Tensor], tuple[torch.Tensor, ...]] = lambda tensor: (tensor,)
    write: Callable[..., torch.Tensor] = lambda *tensors: tensors[0]


def _rename(published: str, ours: str) -> Rule:
    return Rule(published, (ours,))


def _prefix(rules: Iterable[Rule], published: str, ours: str) -> list[Rule]:
    return [Rule(published + r.published, tuple(ours + name for name in r.ours), r.read, r.write) for r in rules]


def _split(fused: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Fused query, key and value -> copies of the three; views of one storage could not be saved one by one."""
    return tuple(part.clone() for part in fused.chunk(3))


def _queue(name: str) -> Rule:
    """(width, queue) <-> (queue, width)."""

    def transposed(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.T.contiguous()

    return Rule(name, (f"{name}.features",), lambda tensor: (transposed(tensor),), transposed)


def _read_ids(idx_queue: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(1, queue) image ids -> (queue, 2) for each queue: image ids, and -100 for the unknown caption ids."""
    ids = torch.stack([idx_queue[0], torch.full_like(idx_queue[0], IGNORED)], dim=1)
    return ids, ids.clone()


# -- modules: published name, ours ------------------------------------------------------------------------------------

IMAGE_ENCODER = (
    _rename("cls_token", "embeddings.cls_token"),
    _rename("pos_embed", "embeddings.position_embeddings"),
    _rename("patch_embed.proj.*", "embeddings.patch_embeddings.projection.*"),
    _rename("blocks.#.norm1.*", "encoder.layer.#.layernorm_before.*"),
    Rule(
        "blocks.#.attn.qkv.*",
        tuple(f"encoder.layer.#.attention.attention.{part}.*" for part in ("query", "key", "value")),
        _split,
        lambda query, key, value: torch.cat([query, key, value]),
    ),
    _rename("blocks.#.attn.proj.*", "encoder.layer.#.attention.output.dense.*"),
    _rename("blocks.#.norm2.*", "encoder.layer.#.layernorm_after.*"),
    _rename("blocks.#.mlp.fc1.*", "encoder.layer.#.intermediate.dense.*"),
    _rename("blocks.#.mlp.fc2.*", "encoder.layer.#.output.dense.*"),
    _rename("norm.*", "layernorm.*"),
)

_ATTENTION = ("self.query", "self.key", "self.value", "output.dense", "output.LayerNorm")
_BERT = [  # the same names on both sides
    *(
        _rename(name, name)
        for name in (f"embeddings.{part}_embeddings.weight" for part in ("word", "position", "token_type"))
    ),
    _rename("embeddings.LayerNorm.*", "embeddings.LayerNorm.*"),
    *(
        _rename(f"encoder.layer.#.{part}.*", f"encoder.layer.#.{part}.*")
        for part in (
            *(f"{block}.{part}" for block in ("attention", "crossattention") for part in _ATTENTION),
            "intermediate.dense",
            "output.dense",
            "output.LayerNorm",
        )
    ),
]
_VOCABULARY_HEAD = [  # without its decoder, which is the table of word embeddings
    _rename(f"predictions.{part}", f"predictions.{part}")
    for part in ("bias", "transform.dense.*", "transform.LayerNorm.*")
]

_VISION = _prefix(IMAGE_ENCODER, "visual_encoder.", "albef.vision_model.backbone.")
_TEXT = _prefix(_BERT, "text_encoder.", "albef.text_model.")
_PROJECTIONS = [
    _rename("vision_proj.*", "albef.vision_projection.*"),
    _rename("text_proj.*", "albef.text_projection.*"),
]
_TEMPERATURE = [_rename("temp", "albef.temperature")]
_MATCHING_HEAD = [_rename("itm_head.*", "itm_head.*")]
_CLASSIFIER = [_rename("cls_head.0.*", "classifier.dense.*"), _rename("cls_head.2.*", "classifier.output.*")]
_QUEUES = [
    _queue("image_queue"),
    _queue("text_queue"),
    Rule("queue_ptr", ("image_queue.cursor", "text_queue.cursor"), lambda tensor: (tensor, tensor.clone())),
]
_IDS = [Rule("idx_queue", ("image_queue.ids", "text_queue.ids"), _read_ids, lambda ids, _: ids[:, 0][None].clone())]


@dataclass(frozen=True)
class Layout:
    """What the checkpoint of a task holds.

    Args:
        followed: rules of the modules that momentum copies follow, where the task has copies.
        rest: rules of everything else.
        has_copies: whether there are momentum copies.
        texts: published prefixes of the BERT bodies; each has a buffer `position_ids`.
        vocabulary_head: published prefixes of the vocabulary head, and of the BERT body that its decoder is tied to.
        pairs: whether pairs of fusion layers share the keys and values of cross-attention (paper section 5).
    """

    followed: list[Rule]
    rest: list[Rule]
    has_copies: bool = True
    texts: tuple[str, ...] = ("text_encoder.",)
    vocabulary_head: tuple[str, str] | None = None
    pairs: bool = False

    @property
    def rules(self) -> list[Rule]:
        """All rules, with those of the momentum copies."""
        copies = []
        for rule in self.followed if self.has_copies else ():
            ours = tuple(f"momentum_copy.{name.removeprefix('albef.')}" for name in rule.ours)
            copies.append(Rule(copied(rule.published), ours, rule.read, rule.write))
        return [*self.followed, *self.rest, *copies]

    def with_copies(self, names: Iterable[str]) -> list[str]:
        """Published names, and those of their momentum copies where the task has copies."""
        names = list(names)
        return names + ([copied(name) for name in names] if self.has_copies else [])


def copied(published: str) -> str:
    """The published name of a momentum copy: `text_encoder.bert.x` -> `text_encoder_m.bert.x`."""
    module, dot, rest = published.partition(".")
    return f"{module}_m{dot}{rest}"


LAYOUTS = {
    "pretraining": Layout(
        followed=[
            *_VISION,
            *_prefix(_BERT, "text_encoder.bert.", "albef.text_model."),
            *_prefix(_VOCABULARY_HEAD, "text_encoder.cls.", "cls."),
            *_PROJECTIONS,
        ],
        rest=[*_MATCHING_HEAD, *_TEMPERATURE, *_QUEUES],
        texts=("text_encoder.bert.",),
        vocabulary_head=("text_encoder.cls.predictions.", "text_encoder.bert."),
    ),
    "retrieval": Layout(
        followed=[*_VISION, *_TEXT, *_PROJECTIONS], rest=[*_MATCHING_HEAD, *_TEMPERATURE, *_QUEUES, *_IDS]
    ),
    "question_answering": Layout(
        followed=[
            *_VISION,
            *_TEXT,
            *_prefix(_BERT, "text_decoder.bert.", "decoder."),
            *_prefix(_VOCABULARY_HEAD, "text_decoder.cls.", "decoder.cls."),
        ],
        rest=[],
        texts=("text_encoder.", "text_decoder.bert."),
        vocabulary_head=("text_decoder.cls.predictions.", "text_decoder.bert."),
    ),
    "visual_reasoning": Layout(followed=[*_VISION, *_TEXT, *_CLASSIFIER], rest=[], pairs=True),
    "text_assignment": Layout(
        followed=[*_VISION, *_TEXT, *_PROJECTIONS],
        rest=[_rename("ta_head.*", "assignment_head.*"), *_TEMPERATURE],
        has_copies=False,
        pairs=True,
    ),
    "visual_entailment": Layout(followed=[*_VISION, *_TEXT, *_CLASSIFIER], rest=[]),
}
TASKS = tuple(LAYOUTS)

# State that we save and the publication does not.
OURS_ALONE = ("momentum_copy.updates", "image_queue.ids", "text_queue.ids")


__all__ = ["IMAGE_ENCODER", "LAYOUTS", "OURS_ALONE", "TASKS", "Layout", "Rule", "copied"]
