"""What every ALBEF model with momentum copies shares (Li et al. 2021, section 3.5)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .modeling_albef import AlbefModel
from .modeling_albef_loading import AlbefPreTrainedModel
from .momentum import FeatureQueue, MomentumCopy
from .trainable import Trainable


def check_images_per_text(config: Any, wanted: int = 1) -> None:
    """Raises: ValueError: the configuration is of a model that reads a text with another number of images."""
    found = config.text_config.images_per_text
    if found != wanted:
        raise ValueError(
            f"this task reads a text with {wanted} image{'s' * (wanted > 1)}, but the configuration is of a model "
            f"that reads it with {found}"
        )


class AlbefMomentumModel(Trainable, AlbefPreTrainedModel):
    """Base of the models that momentum copies of their own modules teach.

    `forward` changes nothing. After each optimizer step call `update_momentum()`. `save_pretrained` leaves the copies
    (and queues) out unless `save_momentum=True`; a checkpoint without them loads with copies equal to its weights.
    """

    # Absent from published folders by design; see `_init_weights`.
    _keys_to_ignore_on_load_missing = [r"^momentum_copy\.", r"^image_queue\.", r"^text_queue\."]

    name = "albef"
    albef: AlbefModel
    momentum_copy: MomentumCopy

    def online_modules(self) -> dict[str, nn.Module]:
        """What the momentum copies follow, by name."""
        raise NotImplementedError

    def start_new_parts(self) -> None:
        """Fill parts that start as copies of others, where no checkpoint has; none by default."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FeatureQueue):
            module.start()
        elif module is self.momentum_copy:
            # It comes after the online modules, so their weights are in place, loaded or fresh; loaded copies stay.
            self.start_new_parts()
            module.start(self.online_modules())

    @torch.no_grad()
    def update_momentum(self, step: int = 0, total_steps: int = 1) -> None:
        """Move the momentum copies. Once per optimizer step. The momentum is constant (0.995; section 3.5)."""
        self.momentum_copy.update(self.online_modules(), self.config.momentum)

    @torch.no_grad()
    def reset_momentum(self) -> None:
        """Make the momentum copies equal to the online weights."""
        self.momentum_copy.reset(self.online_modules())

    def schedules(self, steps_per_epoch: int, total_steps: int) -> dict[str, Sequence[float]]:
        """alpha grows linearly from 0 over the first `alpha_ramp_epochs` (section 3.4; 1 in the published code)."""
        ramp = self.config.alpha_ramp_epochs * steps_per_epoch
        shares = (min(1.0, step / ramp) if ramp > 0 else 1.0 for step in range(total_steps))
        return {"alpha": [self.config.alpha * share for share in shares]}

    def save_pretrained(self, save_directory: Any, *args: Any, save_momentum: bool = False, **kwargs: Any) -> None:
        """As in transformers; `save_momentum=True` keeps the momentum copies and the queues."""
        before = self._keys_to_ignore_on_save
        if not save_momentum:
            state = ("momentum_copy.", "image_queue.", "text_queue.")
            self._keys_to_ignore_on_save = set(before or ()) | {
                key for key in self.state_dict() if key.startswith(state)
            }
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self._keys_to_ignore_on_save = before


__all__ = ["AlbefMomentumModel", "check_images_per_text"]
