"""Configuration of ALBEF (Li et al. 2021, "Align before Fuse", https://arxiv.org/abs/2107.07651)."""

import difflib
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .remote_code import TEXT_AUTO_MAP, SavesCode

POOLINGS = ("cls", "mean", "pooler")
BERT_VOCABULARY = 30522
SAME_ID_POLICIES = ("negative", "mask", "positive")


def _refuse_misspelt_fields(config: PreTrainedConfig, extra: dict[str, Any]) -> None:
    """`PreTrainedConfig` stores unknown names without a word; a name that looks like one of our fields is a typo."""
    known = set(type(config).__annotations__)
    base = set(PreTrainedConfig.__annotations__) | set(dir(PreTrainedConfig))
    for name in extra:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        if nearest and name not in known and name not in base and not name.startswith("_"):
            raise ValueError(f"{type(config).__name__} has no field {name!r}; did you mean {nearest[0]!r}?")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@strict
class AlbefTextConfig(SavesCode, PreTrainedConfig):  # type: ignore[misc]
    """The text and fusion halves: BERT's fields, and where the text encoder ends and fusion begins.

    Layers `0 .. fusion_layer - 1` are the text encoder; layers `fusion_layer .. num_hidden_layers - 1` are the fusion
    encoder and carry cross-attention to the image (paper, figure 1 and section 3.1).

    Args:
        fusion_layer: index of the first layer with cross-attention.
        encoder_hidden_size: width of the image tokens the fusion layers attend to; taken from the vision backbone
            when left out.
        images_per_text: 2 where each text is read with two images: every fusion layer of the original then stands
            twice in `num_hidden_layers` (section 5, "NLVR"). `AlbefForVisualReasoning` sets it.
        bos_token_id, eos_token_id: what a generated answer begins and ends with: the tokenizer's [CLS] and [SEP].
            101 and 102 for BERT's English vocabulary, which is told by its 30,522 tokens.
    """

    model_type = "albef_text"
    base_config_key = "text_config"
    saved_auto_map = TEXT_AUTO_MAP

    vocab_size: int = BERT_VOCABULARY
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    fusion_layer: int = 6
    encoder_hidden_size: int | None = None
    images_per_text: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        _refuse_misspelt_fields(self, kwargs)
        if self.vocab_size == BERT_VOCABULARY and self.bos_token_id is None and self.eos_token_id is None:
            self.bos_token_id, self.eos_token_id = 101, 102
        _require(
            0 < self.fusion_layer < self.num_hidden_layers,
            f"fusion_layer must lie between 1 and num_hidden_layers - 1 = {self.num_hidden_layers - 1}, "
            f"not {self.fusion_layer}",
        )
        _require(
            self.images_per_text >= 1 and (self.num_hidden_layers - self.fusion_layer) % self.images_per_text == 0,
            f"the {self.num_hidden_layers - self.fusion_layer} fusion layers cannot be shared out between "
            f"images_per_text = {self.images_per_text} images",
        )
        _require(
            self.hidden_size % self.num_attention_heads == 0,
            f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}",
        )
        super().__post_init__(**kwargs)


@strict
class AlbefConfig(SavesCode, PreTrainedConfig):
    """Configuration of every ALBEF model.

    Args:
        vision_config: any configuration `AutoModel` can build, or a dict with its `model_type`; ViT-B/16 at 256 pixels
            by default (paper, section 3.1).
        text_config: an `AlbefTextConfig` or its dict.
        vision_pooling: `cls`, `mean` or `pooler`: which vector of the backbone stands for the whole image.
        projection_dim: width of the contrastive space (256; section 3.2).
        queue_size: keys kept per modality (65,536; section 3.5); 0 for in-batch negatives only.
        momentum: weight of the old value in the momentum copies (0.995; section 3.5).
        temperature: start of the learned temperature, by which similarities are divided (0.07; equation 1).
        temperature_minimum, temperature_maximum: the learned temperature is kept inside (published code).
        alpha: weight of the momentum copy's soft targets (0.4; equations 6 and 7).
        alpha_ramp_epochs: alpha grows linearly from 0 over this many epochs (1 in the published code).
        same_image, same_caption: what a *different* pair with the same image id, or the same caption id, is to the
            contrastive loss: `negative` (as published for pre-training), `mask` (left out), or `positive` (shares the
            target, as published for retrieval fine-tuning, where `AlbefForImageTextRetrieval` always treats the same
            image so). With `mask` and `positive` it is never a hard negative.
        published_defects: do as the published fine-tuning code does where it has a known defect: the temperature is
            not kept inside its bounds when retrieval is fine-tuned, and ranking answers counts their first token
            twice. Read under its old name `published` too.
        gather_negatives: in-batch keys and hard negatives are drawn over all ranks, not within each (published: each).
    """

    model_type = "albef"
    sub_configs = {"vision_config": AutoConfig, "text_config": AlbefTextConfig}

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    vision_pooling: str = "cls"
    projection_dim: int = 256
    queue_size: int = 65536
    momentum: float | int = 0.995
    temperature: float = 0.07
    temperature_minimum: float = 0.001
    temperature_maximum: float = 0.5
    alpha: float | int = 0.4
    alpha_ramp_epochs: float | int = 1.0
    same_image: str = "negative"
    same_caption: str = "negative"
    gather_negatives: bool = False
    published_defects: bool = False
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if "published" in kwargs:  # the name of this field in older folders
            self.published_defects = bool(kwargs.pop("published"))
        _refuse_misspelt_fields(self, kwargs)
        if self.vision_config is None:
            self.vision_config = AutoConfig.for_model("vit", image_size=256, layer_norm_eps=1e-6)
        elif isinstance(self.vision_config, dict):
            fields = dict(self.vision_config)
            _require("model_type" in fields, "vision_config needs a model_type, for example 'vit' or 'timm_wrapper'")
            self.vision_config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        if self.text_config is None:
            self.text_config = AlbefTextConfig()
        elif isinstance(self.text_config, dict):
            self.text_config = AlbefTextConfig(**self.text_config)
        for name, choices in (
            ("vision_pooling", POOLINGS),
            ("same_image", SAME_ID_POLICIES),
            ("same_caption", SAME_ID_POLICIES),
        ):
            value = getattr(self, name)
            _require(value in choices, f"{name} must be one of {', '.join(choices)}, not {value!r}")
        for name in ("momentum", "alpha"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"{name} must lie between 0 and 1, not {value}")
        _require(self.queue_size >= 0, f"queue_size must be 0 or more, not {self.queue_size}")
        _require(self.projection_dim > 0, f"projection_dim must be positive, not {self.projection_dim}")
        _require(
            0 < self.temperature_minimum <= self.temperature <= self.temperature_maximum,
            f"temperature {self.temperature} must lie between {self.temperature_minimum} and "
            f"{self.temperature_maximum}, both positive",
        )
        super().__post_init__(**kwargs)

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """As in transformers, with the code, and without the folders that the encoders once came from."""
        for part in (self.vision_config, self.text_config):
            part._name_or_path = ""
        return super().save_pretrained(save_directory, push_to_hub, **kwargs)


__all__ = ["AlbefConfig", "AlbefTextConfig"]
