"""The two towers of ALBEF (Li et al. 2021, https://arxiv.org/abs/2107.07651) and their contrastive space."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_albef import AlbefConfig
from .losses import full_precision, unit_vectors, without_autocast
from .modeling_albef_attention import KeysValues, asked_outputs
from .modeling_albef_loading import AlbefPreTrainedModel
from .modeling_albef_text import AlbefTextModel
from .vision_backbone import VisionBackbone, VisionBackboneOutput


@dataclass
class AlbefOutput(ModelOutput):
    """Contrastive scores of every image with every text.

    Args:
        logits_per_image: (images, texts), cosine similarity divided by the temperature.
        logits_per_text: its transpose.
        image_embeds, text_embeds: unit vectors (images, projection_dim) and (texts, projection_dim).
        text_model_output, vision_model_output: of the two encoders, with their hidden states or attention maps; only
            where these are asked for.
    """

    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """Of the encoders' outputs too."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


@contextmanager
def _recorded(backbone: PreTrainedModel, asked: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Pass arguments to a backbone, and keep what it returns for them: `hidden_states` and `attentions`."""
    record: dict[str, Any] = {}
    names = {name: name.removeprefix("output_") for name in asked}

    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        record.update((name, output.get(name)) for name in names.values())

    hooks = [
        backbone.register_forward_pre_hook(lambda _, args, kwargs: (args, {**kwargs, **asked}), with_kwargs=True),
        backbone.register_forward_hook(keep),
    ]
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()


class AlbefModel(AlbefPreTrainedModel):
    """Image encoder, text and fusion encoder, and the projections into the contrastive space.

    Args:
        contrastive: False leaves out the projections and the temperature, for tasks without a contrastive loss.

    Raises:
        ValueError: `text_config.encoder_hidden_size` is not the width of the vision backbone.
    """

    needed_parts = ("text_projection", "vision_projection", "temperature")

    def __init__(self, config: AlbefConfig, contrastive: bool = True) -> None:
        super().__init__(config)
        self.contrastive = contrastive
        self.temperature_bounds = (config.temperature_minimum, config.temperature_maximum)
        self.vision_model = VisionBackbone(config.vision_config, config.vision_pooling)  # type: ignore[arg-type]
        width = self.vision_model.width
        if config.text_config.encoder_hidden_size is None:
            config.text_config.encoder_hidden_size = width
        elif config.text_config.encoder_hidden_size != width:
            raise ValueError(
                f"text_config.encoder_hidden_size is {config.text_config.encoder_hidden_size}, but tokens of the "
                f"{config.vision_config.model_type!r} backbone have width {width}"
            )
        self.text_model = AlbefTextModel(config.text_config)  # type: ignore[arg-type]
        if contrastive:
            self.vision_projection = nn.Linear(width, config.projection_dim)
            self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim)
            self.temperature = nn.Parameter(torch.tensor(config.temperature))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self and self.contrastive:
            init.constant_(self.temperature, self.config.temperature)
            for projection in (self.vision_projection, self.text_projection):  # published: torch's own default
                bound = projection.in_features**-0.5
                init.uniform_(projection.weight, -bound, bound)
                init.uniform_(projection.bias, -bound, bound)

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    def project_image(self, image: VisionBackboneOutput) -> torch.Tensor:
        """Pooled vectors (batch, width) -> unit vectors (batch, projection_dim), float32 at least."""
        return unit_vectors(self.vision_projection(image.pooled))

    def project_text(self, text_states: torch.Tensor) -> torch.Tensor:
        """Text states (batch, tokens, hidden_size) -> unit vectors (batch, projection_dim), float32 at least."""
        return unit_vectors(self.text_projection(text_states[:, 0]))

    def clamped_temperature(self) -> torch.Tensor:
        """The learned temperature, clamped to its bounds (published code), float32 at least."""
        return full_precision(self.temperature).clamp(*self.temperature_bounds)

    def _require_contrast(self) -> None:
        if not self.contrastive:
            raise ValueError(
                "this model was built for a task without a contrastive loss: it has no projections and no temperature"
            )
        if self.untrained_parts and not self.training:
            raise ValueError(
                f"{', '.join(self.untrained_parts)} of this model were not in its checkpoint and are random, so "
                "scores and embeddings would be noise: load a folder of pre-training or retrieval, or train them and "
                "set model.untrained_parts = ()"
            )

    def _image_output(self, pixel_values: torch.Tensor, kwargs: Mapping[str, Any]) -> BaseModelOutputWithPooling:
        asked, record = asked_outputs(self.config, kwargs), {}
        if asked:
            backbone: Any = self.vision_model.backbone
            takes = inspect.signature(type(backbone).forward).parameters
            taken = asked if "kwargs" in takes else {name: value for name, value in asked.items() if name in takes}
            with _recorded(backbone, taken) as record:
                image = self.vision_model(pixel_values)
            missing = [name for name in asked if record.get(name.removeprefix("output_")) is None]
            if missing:
                raise ValueError(f"a {backbone.config.model_type!r} backbone does not know {missing[0]}")
        else:
            image = self.vision_model(pixel_values)
        embeds = self.project_image(image)
        return BaseModelOutputWithPooling(last_hidden_state=image.tokens, pooler_output=embeds, **record)

    def _text_output(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, kwargs: Mapping[str, Any]
    ) -> BaseModelOutputWithPooling:
        asked = asked_outputs(self.config, kwargs)
        if not asked:
            states = self.text_model.encode_text(input_ids, attention_mask)
            return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=self.project_text(states))
        output = self.text_model(input_ids, attention_mask, **asked)
        return BaseModelOutputWithPooling(
            last_hidden_state=output.last_hidden_state,
            pooler_output=self.project_text(output.last_hidden_state),
            hidden_states=output.get("hidden_states"),
            attentions=output.get("attentions"),
        )

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Encode images.

        Args:
            pixel_values: (batch, channels, height, width).

        Returns: `last_hidden_state` (batch, tokens, width) and `pooler_output`, unit vectors (batch, projection_dim).

        Raises:
            ValueError: the model was built without projections, or they were never trained.
        """
        self._require_contrast()
        return self._image_output(pixel_values, kwargs)

    @can_return_tuple
    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Encode texts without images.

        Args:
            input_ids, attention_mask: (batch, tokens).

        Returns: `last_hidden_state` (batch, tokens, hidden_size), which the fusion encoder takes, and `pooler_output`,
            unit vectors (batch, projection_dim).

        Raises:
            ValueError: the model was built without projections, or they were never trained.
        """
        self._require_contrast()
        return self._text_output(input_ids, attention_mask, kwargs)

    def project_image_tokens(self, image_tokens: torch.Tensor) -> list[KeysValues]:
        """See `AlbefTextModel.project_image_tokens`."""
        return self.text_model.project_image_tokens(image_tokens)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> AlbefOutput | BaseModelOutputWithPooling:
        """Contrastive scores of all images with all texts; their numbers may differ.

        Given images alone or texts alone, it returns what `get_image_features` or `get_text_features` returns.

        Example:

            >>> inputs = processor(images=picture, text=["a red car", "a green tree"], return_tensors="pt")
            >>> model(**inputs).logits_per_image.softmax(-1)

        Raises:
            ValueError: neither images nor texts are given.
        """
        if input_ids is None and pixel_values is None:
            raise ValueError("give pixel_values, input_ids or both")
        if input_ids is None:
            return self.get_image_features(pixel_values, **kwargs)  # type: ignore[arg-type]
        if pixel_values is None:
            return self.get_text_features(input_ids, attention_mask, **kwargs)
        self._require_contrast()
        image = self._image_output(pixel_values, kwargs)
        text = self._text_output(input_ids, attention_mask, kwargs)
        image_embeds, text_embeds = image.pooler_output, text.pooler_output
        asked = bool(asked_outputs(self.config, kwargs))
        with without_autocast(image_embeds):  # type: ignore[arg-type]
            logits_per_image = image_embeds @ text_embeds.T / self.clamped_temperature()
        return AlbefOutput(
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_image.T,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
            text_model_output=text if asked else None,
            vision_model_output=image if asked else None,
        )


__all__ = ["AlbefModel", "AlbefOutput"]
