"""Preprocessing of pictures and texts as in the published code. The paper does not describe it."""

import copy
import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Regex, normalizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedConfig, PreTrainedTokenizerFast, ViTImageProcessorPil
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import ImagesKwargs, ProcessorMixin
from transformers.tokenization_utils_base import BatchEncoding

from .configuration_albef import AlbefTextConfig
from .image_conversion import to_rgb
from .model_folder import check_json, read_json
from .remote_code import SavesCode

# CLIP's statistics, although the published image encoder starts from DeiT.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

_DELETED = re.compile(r"[,.'!?\"()*#:;~]")
_SPACED = re.compile(r"[-/]")
_SPACES = re.compile(r"\s{2,}")
_TEXT_OPTIONS = ("max_length", "padding", "truncation")


def _cleaning() -> list[normalizers.Normalizer]:
    """`AlbefProcessor.clean_caption` without its limit on words, as normalizers of a tokenizer."""
    deleted, spaced = (normalizers.Replace(Regex(p.pattern), to) for p, to in ((_DELETED, ""), (_SPACED, " ")))
    return [normalizers.Lowercase(), deleted, spaced, normalizers.Replace("<person>", "person")]


def _states(steps: Sequence[normalizers.Normalizer]) -> list[Any]:
    return [json.loads(step.__getstate__()) for step in steps]


def _without_cleaning(normalizer: normalizers.Normalizer | None) -> normalizers.Normalizer | None:
    steps: list[Any] = list(normalizer) if isinstance(normalizer, normalizers.Sequence) else []  # type: ignore
    count = len(_cleaning())
    if _states(steps[:count]) != _states(_cleaning()):
        return normalizer
    rest = steps[count:]
    return rest[0] if len(rest) == 1 else normalizers.Sequence(rest)


def _with_cleaning(tokenizer: Any) -> PreTrainedTokenizerFast:
    """A copy of the tokenizer that cleans texts itself, and keeps its rule for [SEP] when it is loaded, where BERT's
    tokenizer class would always add one."""
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_truncation()  # the last call leaves both settings behind, and they would be saved
    backend.no_padding()
    backend.normalizer = normalizers.Sequence(
        [*_cleaning(), *([] if backend.normalizer is None else [backend.normalizer])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        **tokenizer.special_tokens_map,
    )


class UnknownOption(TypeError, ValueError):
    """A keyword that a processor does not take."""


def _as_seen(image: Any) -> Any:
    """A Pillow image, or an array of 16-bit gray, as training sees it; whatever else as it is."""
    if isinstance(image, np.ndarray) and image.dtype == np.uint16 and image.ndim == 2:
        image = Image.fromarray(image)
    return to_rgb(image) if isinstance(image, Image.Image) else image


class AlbefProcessor(SavesCode, ProcessorMixin):
    """Image processor and tokenizer of an ALBEF model, saved with it.

    Pictures are resized to a square by bicubic interpolation, whatever their aspect ratio, and normalized with CLIP's
    statistics. Texts are cleaned (`clean_caption`) and have no [SEP] token at the end, as published. The saved
    tokenizer does both by itself, since pipelines use it without this class; `processor.tokenizer` does not clean.

    Args:
        image_processor: any transformers image processor.
        tokenizer: a fast WordPiece tokenizer.
        max_words: captions are cut after this many words.
        max_length: `processor(text=...)` cuts longer texts to this many tokens, [CLS] included.
        add_sep_token: end texts with [SEP], as LAVIS does.

    Raises:
        ValueError: the tokenizer has no [CLS], [SEP] or [MASK].
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        max_words: int = 30,
        max_length: int = 30,
        add_sep_token: bool = False,
        **kwargs: Any,
    ) -> None:
        self.max_words = max_words
        self.max_length = max_length
        self.add_sep_token = add_sep_token
        if tokenizer is not None:
            if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None or tokenizer.mask_token_id is None:
                raise ValueError("ALBEF needs a tokenizer with [CLS], [SEP] and [MASK] tokens")
            tokenizer.backend_tokenizer.normalizer = _without_cleaning(tokenizer.backend_tokenizer.normalizer)
            closing = f" {tokenizer.sep_token}" if add_sep_token else ""
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
                single=f"{tokenizer.cls_token} $A{closing}",
                pair=f"{tokenizer.cls_token} $A {tokenizer.sep_token} $B:1{closing}",
                special_tokens=[
                    (tokenizer.cls_token, tokenizer.cls_token_id),
                    (tokenizer.sep_token, tokenizer.sep_token_id),
                ],
            )
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_parts(cls, tokenizer: Any, image_size: int, **kwargs: Any) -> "AlbefProcessor":
        """Make a processor for square pictures with sides of `image_size` pixels."""
        image_processor = ViTImageProcessorPil(
            size={"height": image_size, "width": image_size},
            resample=PILImageResampling.BICUBIC,
            image_mean=list(IMAGE_MEAN),
            image_std=list(IMAGE_STD),
            do_convert_rgb=True,
        )
        return cls(image_processor, tokenizer, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Load as in transformers. In a folder that also holds a model, the vocabulary must fit that model.

        Raises:
            ValueError: a file is damaged, or the vocabulary does not fit the model; names the file.
        """
        folder = Path(str(pretrained_model_name_or_path), kwargs.get("subfolder") or "")
        check_json(folder, ("processor_config.json", "tokenizer_config.json", "tokenizer.json", "config.json"))
        kwargs.setdefault("trust_remote_code", False)
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if isinstance(processor, cls) and (folder / "config.json").is_file():
            fields = read_json(folder / "config.json").get("text_config")
            if fields:
                try:
                    processor.check_text_model(AlbefTextConfig(**fields))
                except ValueError as error:
                    raise ValueError(f"{folder / 'tokenizer.json'}: {error}") from error
        return processor

    @property
    def image_size(self) -> int:
        return int(self.image_processor.size["height"])

    @property
    def image_mean(self) -> tuple[float, ...]:
        return tuple(self.image_processor.image_mean)

    @property
    def image_std(self) -> tuple[float, ...]:
        return tuple(self.image_processor.image_std)

    def clean_caption(self, caption: str) -> str:
        """Clean a caption as published: lower case, punctuation deleted, `-` and `/` to spaces, `max_words` words."""
        caption = _SPACED.sub(" ", _DELETED.sub("", caption.lower())).replace("<person>", "person")
        return " ".join(_SPACES.sub(" ", caption).strip().split(" ")[: self.max_words])

    def clean_question(self, question: str, train: bool = False) -> str:
        """Like `clean_caption`, but repeated spaces stay; at most 30 words in training (`train`) and 50 otherwise."""
        question = _SPACED.sub(" ", _DELETED.sub("", question.lower())).rstrip(" ")
        return " ".join(question.split(" ")[: 30 if train else 50])

    def tokenize_captions(
        self,
        captions: Sequence[str],
        max_length: int = 25,
        padding: str | bool = "longest",
        return_tensors: str | None = "pt",
        truncation: bool = True,
    ) -> BatchEncoding:
        """Clean and tokenize: `input_ids` and `attention_mask` (captions, tokens), at most `max_length` tokens."""
        return self.tokenizer(
            [self.clean_caption(caption) for caption in captions],
            padding=padding,
            truncation=truncation,
            max_length=max_length,
            return_tensors=return_tensors,
            return_token_type_ids=False,
        )

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Make model inputs from pictures, texts or both; their numbers may differ.

        Pictures are seen as in training: EXIF orientation applied, transparent parts white, 16-bit gray scaled.

        Args:
            images: one picture or several, as the image processor takes them.
            text: one text or several.
            return_tensors: `pt`, `np`, or None for lists.
            kwargs: `max_length`, `padding` and `truncation` of the texts, and the options of the image processor, such
                as `size`; also as `text_kwargs` and `images_kwargs`.

        Returns: `pixel_values` (pictures, 3, image_size, image_size); `input_ids`, `attention_mask` (texts, tokens).

        Raises:
            ValueError: neither pictures nor texts are given, a text is no string, or a picture cannot be converted.
            UnknownOption: a keyword that neither takes; names the nearest. It is a TypeError and a ValueError.
        """
        text_options, image_options = self._divide_options(kwargs)
        if images is None and text is None:
            raise ValueError("give images, text or both")
        features: dict[str, Any] = {}
        if text is not None:
            captions = [text] if isinstance(text, str) else list(text)
            for number, caption in enumerate(captions):
                if not isinstance(caption, str):
                    raise ValueError(f"text {number} is no string but {type(caption).__name__}: {caption!r}")
            options = {"max_length": self.max_length, "return_tensors": return_tensors, **text_options}
            encoded = self.tokenize_captions(captions, **options)
            features |= {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
        if images is not None:
            seen = [_as_seen(image) for image in images] if isinstance(images, list | tuple) else _as_seen(images)
            features |= self.image_processor(seen, return_tensors=return_tensors, **image_options)
        return BatchFeature(features)

    def _divide_options(self, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Options of the texts and of the image processor."""
        known = set(getattr(type(self.image_processor).valid_kwargs, "__annotations__", ()))
        known |= set(ImagesKwargs.__annotations__)
        text = dict(given.pop("text_kwargs", {}))
        image = dict(given.pop("images_kwargs", {}))
        common = dict(given.pop("common_kwargs", {}))
        for name, value in {**common, **given}.items():
            (text if name in _TEXT_OPTIONS else image)[name] = value
        for name in [
            *(name for name in text if name not in _TEXT_OPTIONS),
            *(name for name in image if name not in known),
        ]:
            near = difflib.get_close_matches(name, [*_TEXT_OPTIONS, *known], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"texts take {', '.join(_TEXT_OPTIONS)}"
            raise UnknownOption(f"the processor takes no {name!r}; {hint}")
        return text, image

    def check_text_model(self, config: PreTrainedConfig) -> None:
        """Check that the vocabulary fits a text model of this configuration.

        Raises:
            ValueError: there are more tokens than word embeddings, padding differs, or the tokenizer knows no words.
        """
        size = len(self.tokenizer)
        if size > config.vocab_size:
            raise ValueError(f"the tokenizer has {size} tokens, the text model only {config.vocab_size} embeddings")
        if config.pad_token_id is not None and self.tokenizer.pad_token_id != config.pad_token_id:
            raise ValueError(
                f"the tokenizer pads with {self.tokenizer.pad_token_id}, the text model with {config.pad_token_id}"
            )
        letters = self.tokenizer("a b c d e", add_special_tokens=False)["input_ids"]
        if size < 10 or all(token == self.tokenizer.unk_token_id for token in letters):
            raise ValueError(
                f"the tokenizer ({size} tokens) turns plain words into {self.tokenizer.unk_token}: its vocabulary "
                "was not loaded"
            )

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Save as in transformers, with the code and with a tokenizer that cleans texts itself."""
        tokenizer = self.tokenizer
        self.tokenizer = _with_cleaning(tokenizer)
        try:
            return super().save_pretrained(save_directory, push_to_hub, **kwargs)
        finally:
            self.tokenizer = tokenizer


__all__ = ["AlbefProcessor"]
