"""The base of the ALBEF models with momentum copies (Li et al. 2021, section 3.3)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .modeling_albef import AlbefModel
from .modeling_albef_loading import AlbefPreTrainedModel
from .momentum import FeatureQueue, MomentumCopy
from .trainable import Trainable


def check_images_per_text(config: Any, wanted: int = 1) -> None:
    """Raise a ValueError if the configuration is for another number of images for each text."""
    images = config.text_config.images_per_text
    if images != wanted:
        raise ValueError(
            f"this task reads a text with {wanted} image{'s' * (wanted > 1)}, but the configuration is for a model "
            f"that reads it with {images}"
        )


class AlbefMomentumModel(Trainable, AlbefPreTrainedModel):
    """Base of the models whose teachers are momentum copies of their modules.

    `forward` changes nothing. Call `update_momentum()` after each optimizer step. `save_pretrained` leaves out copies
    and queues unless `save_momentum=True`; a checkpoint without them loads with copies equal to its weights.
    """

    # A saved folder may leave these out; `_init_weights` fills them.
    _keys_to_ignore_on_load_missing = [r"^momentum_copy\.", r"^image_queue\.", r"^text_queue\."]

    name = "albef"
    albef: AlbefModel
    momentum_copy: MomentumCopy

    def online_modules(self) -> dict[str, nn.Module]:
        """The modules with momentum copies, by name."""
        raise NotImplementedError

    def start_new_parts(self) -> None:
        """Fill parts that start as copies of other parts, where no checkpoint has. None by default."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FeatureQueue):
            module.start()
        elif module is self.momentum_copy:
            # The online modules came first, so their weights are loaded or initialized by now. Loaded copies stay.
            self.start_new_parts()
            module.start(self.online_modules())

    @torch.no_grad()
    def update_momentum(self, step: int = 0, total_steps: int = 1) -> None:
        """Move the momentum copies. Call after each optimizer step. The momentum is constant (0.995; section 3.5)."""
        self.momentum_copy.update(self.online_modules(), self.config.momentum)

    @torch.no_grad()
    def reset_momentum(self) -> None:
        """Make the momentum copies equal to the online weights."""
        self.momentum_copy.reset(self.online_modules())

    def schedules(self, steps_per_epoch: int, total_steps: int) -> dict[str, Sequence[float]]:
        """alpha grows linearly from 0 over the first `alpha_ramp_epochs` epochs (section 3.5)."""
        ramp = self.config.alpha_ramp_epochs * steps_per_epoch
        shares = (min(1.0, step / ramp) if ramp > 0 else 1.0 for step in range(total_steps))
        return {"alpha": [self.config.alpha * share for share in shares]}

    def save_pretrained(self, save_directory: Any, *args: Any, save_momentum: bool = False, **kwargs: Any) -> None:
        """Save as in transformers; `save_momentum=True` saves momentum copies and queues too."""
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
