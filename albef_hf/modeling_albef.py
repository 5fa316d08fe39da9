"""The two towers of ALBEF (Li et al. 2021, https://arxiv.org/abs/2107.07651) and their contrastive space."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_albef import AlbefConfig
from .losses import full_precision, unit_vectors, without_autocast
from .modeling_albef_attention import KeysValues
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
    """

    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None


class AlbefModel(AlbefPreTrainedModel):
    """Image encoder, text and fusion encoder, and the projections into the contrastive space.

    Args:
        contrastive: False leaves out the projections and the temperature, for tasks without a contrastive loss.

    Raises:
        ValueError: `text_config.encoder_hidden_size` is not the width of the vision backbone.
    """

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

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Encode images.

        Args:
            pixel_values: (batch, channels, height, width).

        Returns: `last_hidden_state` (batch, tokens, width) and `pooler_output`, unit vectors (batch, projection_dim).

        Raises:
            ValueError: the model was built without projections.
        """
        self._require_contrast()
        image = self.vision_model(pixel_values)
        return BaseModelOutputWithPooling(last_hidden_state=image.tokens, pooler_output=self.project_image(image))

    def get_text_features(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Encode texts without images.

        Args:
            input_ids, attention_mask: (batch, tokens).

        Returns: `last_hidden_state` (batch, tokens, hidden_size), which the fusion encoder takes, and `pooler_output`,
            unit vectors (batch, projection_dim).

        Raises:
            ValueError: the model was built without projections.
        """
        self._require_contrast()
        states = self.text_model.encode_text(input_ids, attention_mask)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=self.project_text(states))

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
            return self.get_image_features(pixel_values)  # type: ignore[arg-type]
        if pixel_values is None:
            return self.get_text_features(input_ids, attention_mask)
        image_embeds = self.get_image_features(pixel_values).pooler_output
        text_embeds = self.get_text_features(input_ids, attention_mask).pooler_output
        with without_autocast(image_embeds):  # type: ignore[arg-type]
            logits_per_image = image_embeds @ text_embeds.T / self.clamped_temperature()
        return AlbefOutput(
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_image.T,
            image_embeds=image_embeds,
            text_embeds=text_embeds,
        )


__all__ = ["AlbefModel", "AlbefOutput"]
