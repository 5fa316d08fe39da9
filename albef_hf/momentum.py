"""Momentum copies and feature queues: what training carries from step to step besides weights and optimizer state.

`forward` changes neither. Keys enter a queue after the backward pass, and a momentum copy follows its online module
once per optimizer step. So gradient accumulation, recomputed activations and evaluation cannot change them.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from .losses import IGNORED


def own_parts(tensors: Sequence[Any]) -> list[torch.Tensor]:
    """This rank's parts of tensors that are split over the ranks, in whose memory they lie; others as they are."""
    return [tensor.to_local() if hasattr(tensor, "placements") else tensor for tensor in tensors]


class MomentumCopy(nn.Module):
    """An exponential moving average of the *parameters* of some modules (MoCo, equation 2; ALBEF, section 3.2).

    Each copy has the name of the module it follows and never receives a gradient. Buffers (such as running statistics)
    are not averaged: each copy has its own.

    Args:
        online: the modules to follow, by name.

    Buffer: `updates` (1,): how often the copies have moved; 0: they are equal to their originals.

    Attributes:
        kept: 0-d bool tensor that the training loop sets: False makes `update` change nothing. It stays on the device.
    """

    updates: torch.Tensor
    kept: torch.Tensor | None = None

    def __init__(self, online: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.register_buffer("updates", torch.zeros(1, dtype=torch.int64))
        # transformers initializes a module only if it holds a tensor that no checkpoint has filled. This one is never
        # saved, so `start` is always called, and completes copies of which a checkpoint has only a part.
        self.register_buffer("unsaved", torch.empty(0), persistent=False)
        for name, module in online.items():
            self.add_module(name, copy.deepcopy(module))
        self.freeze()

    def freeze(self) -> None:
        """Freeze the copies. Call it again after loading a checkpoint, which makes new, trainable parameters."""
        self.requires_grad_(False)

    def pairs(self, online: Mapping[str, nn.Module]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        copies: list[torch.Tensor] = [p for name in online for p in self.get_submodule(name).parameters()]
        originals: list[torch.Tensor] = [p for module in online.values() for p in module.parameters()]
        if len(copies) != len(originals):
            raise ValueError(
                f"the online modules have {len(originals)} parameters and their momentum copies {len(copies)}: "
                "parameters added to the model later, such as an adapter, have no copy and cannot be followed"
            )
        return copies, originals

    @torch.no_grad()
    def update(self, online: Mapping[str, nn.Module], momentum: float) -> None:
        """copy = momentum * copy + (1 - momentum) * online, for all parameters in one call."""
        copies, originals = (own_parts(p) if hasattr(p[0], "placements") else p for p in self.pairs(online))
        if self.kept is None:
            torch._foreach_lerp_(copies, originals, 1.0 - momentum)
            self.updates.add_(1)
        else:
            share = self.kept.double() * (1.0 - momentum)
            shares = {kind: share.to(kind) for kind in {copied.dtype for copied in copies}}
            torch._foreach_lerp_(copies, originals, [shares[copied.dtype] for copied in copies])
            self.updates.add_(self.kept)

    @torch.no_grad()
    def reset(self, online: Mapping[str, nn.Module]) -> None:
        """Make every copied parameter and buffer equal to its original."""
        for name, module in online.items():
            self.get_submodule(name).load_state_dict(module.state_dict())
        self.updates.zero_()

    @torch.no_grad()
    def start(self, online: Mapping[str, nn.Module]) -> None:
        """Like `reset` for parameters, but those loaded from a checkpoint stay. For use in `_init_weights`."""
        copies, originals = self.pairs(online)
        for copied, original in zip(copies, originals, strict=True):
            if not original.is_meta:  # otherwise it will be tied to another weight later, and so will its copy
                init.copy_(copied, original)
        init.zeros_(self.updates)


class FeatureQueue(nn.Module):
    """A ring buffer of unit-length feature rows (MoCo, section 3.2). It takes any number of rows at a time.

    Args:
        size: rows kept; 0: the queue stays empty.
        dim: width of a row.
        id_columns: integer ids kept with each row (image id, caption id ...); -100 in rows that were never filled.

    Buffers: `features` (size, dim), `ids` (size, id_columns), `cursor` (1,): the next slot to write.
    """

    features: torch.Tensor
    ids: torch.Tensor
    cursor: torch.Tensor

    def __init__(self, size: int, dim: int, id_columns: int = 0) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("features", torch.empty(size, dim))
        self.register_buffer("ids", torch.empty(size, id_columns, dtype=torch.int64))
        self.register_buffer("cursor", torch.zeros(1, dtype=torch.int64))
        self.start()

    @torch.no_grad()
    def start(self) -> None:
        """Fill with random unit rows, as published, without ids. Rows loaded from a checkpoint stay."""
        random_rows = torch.randn_like(self.features)
        init.copy_(self.features, nn.functional.normalize(random_rows, dim=1))
        init.constant_(self.ids, IGNORED)
        init.zeros_(self.cursor)

    @torch.no_grad()
    def enqueue(self, rows: torch.Tensor, ids: torch.Tensor | None = None) -> None:
        """Write rows (n, dim) over the oldest ones. Of more rows than slots, the last ones are kept.
        ids: (n, id_columns), -100 ("unknown") where left out."""
        count = rows.shape[0]
        kept = min(count, self.size)
        if kept == 0:
            return
        slots = (self.cursor + count - kept + torch.arange(kept, device=self.cursor.device)) % self.size
        self.features[slots] = rows[count - kept :].to(self.features.dtype)
        if self.ids.shape[1]:
            self.ids[slots] = IGNORED if ids is None else ids[count - kept :]
        self.cursor.copy_((self.cursor + count) % self.size)
