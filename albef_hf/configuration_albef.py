"""Configuration of ALBEF (Li et al. 2021, "Align before Fuse", https://arxiv.org/abs/2107.07651)."""

import difflib
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .model_folder import check_attention
from .remote_code import TEXT_AUTO_MAP, SavesCode

POOLINGS = ("cls", "mean", "pooler")
BERT_VOCABULARY = 30522
SAME_ID_POLICIES = ("negative", "mask", "positive")


def _refuse_misspelled_fields(config: PreTrainedConfig, extra: dict[str, Any]) -> None:
    """Raise a ValueError for a name that resembles one of our fields: `PreTrainedConfig` would store it in silence."""
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
    """Configuration of the text encoder and the fusion encoder: BERT's fields, and the layer at which fusion begins.

    Layers `0 .. fusion_layer - 1` are the text encoder; layers `fusion_layer .. num_hidden_layers - 1` are the fusion
    encoder and carry cross-attention to the image (paper, figure 1 and section 3.1).

    Args:
        fusion_layer: index of the first layer with cross-attention.
        encoder_hidden_size: width of the image tokens that the fusion layers attend to; the vision backbone's where
            left out.
        images_per_text: how many images each text is read with. With 2, `num_hidden_layers` counts every fusion layer
            twice, once for each image (section 5, "NLVR"); the models for two images set it.
        bos_token_id, eos_token_id: tokens that a generated answer begins and ends with, the tokenizer's [CLS] and
            [SEP]. Where both are left out and `vocab_size` is that of BERT's English vocabulary, 101 and 102.

    Raises:
        ValueError: a field is misspelled or out of range.
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
        _refuse_misspelled_fields(self, kwargs)
        if self.vocab_size == BERT_VOCABULARY and self.bos_token_id is None and self.eos_token_id is None:
            self.bos_token_id, self.eos_token_id = 101, 102
        _require(
            0 < self.fusion_layer < self.num_hidden_layers,
            f"fusion_layer must lie between 1 and num_hidden_layers - 1 = {self.num_hidden_layers - 1}, "
            f"not {self.fusion_layer}",
        )
        _require(
            self.images_per_text >= 1 and (self.num_hidden_layers - self.fusion_layer) % self.images_per_text == 0,
            f"the {self.num_hidden_layers - self.fusion_layer} fusion layers cannot be divided among "
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
        vision_config: a configuration of any vision model that `AutoModel` builds, or a dict of its fields with
            `model_type`; ViT-B/16 at 256 pixels by default (paper, sections 3.1 and 3.5).
        text_config: an `AlbefTextConfig` or a dict of its fields.
        vision_pooling: `cls`, `mean` or `pooler`: which vector represents the whole image, see `VisionBackbone`.
        projection_dim: width of the contrastive space (256; section 3.2).
        queue_size: keys kept per modality (65,536; section 3.5); 0 for in-batch negatives only.
        momentum: weight of the old value in the momentum copies (0.995; section 3.5).
        temperature: initial value of the learned temperature that similarities are divided by (0.07; equation 1).
        temperature_minimum, temperature_maximum: bounds of the learned temperature (published code).
        alpha: weight of the momentum copies' soft targets (0.4; equations 6 and 7); 0: no distillation.
        alpha_ramp_epochs: alpha grows linearly from 0 over this many epochs (1 in the published code); 0: no ramp.
        same_image, same_caption: how another pair with the same image id, or with the same caption id, is treated.
            `negative` (published for pre-training); `mask`: left out of the contrastive loss; `positive`: it shares
            the target (published for retrieval: `AlbefForImageTextRetrieval` always treats the same image so). With
            `mask` and `positive` it is never a hard negative either.
        published_defects: reproduce known defects of the published fine-tuning code: retrieval does not bound the
            temperature, and ranking counts an answer's first token twice. The field's former name `published` is
            read too.
        gather_negatives: take in-batch keys and hard negatives from the batches of all ranks, instead of each rank's
            own batch (published).

    Raises:
        ValueError: a field is misspelled or out of range.
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
        _refuse_misspelled_fields(self, kwargs)
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

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Like transformers' own, but for attention that would be downloaded. Raises: ValueError: see
        `check_attention`."""
        check_attention(config_dict, "the configuration")
        return super().from_dict(config_dict, **kwargs)

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Save as in transformers and add the code. Paths that the encoders were loaded from are left out."""
        for part in (self.vision_config, self.text_config):
            part._name_or_path = ""
        return super().save_pretrained(save_directory, push_to_hub, **kwargs)


__all__ = ["AlbefConfig", "AlbefTextConfig"]
