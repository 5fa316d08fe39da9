"""Sharding by torch's FSDP2: each rank holds a part of every parameter, momentum copy and moment of the optimizer.

Parameters are split along their first dimension, layer by layer, the momentum copies like what they follow. A layer's
whole weights exist while it computes. Buffers (queues, running statistics) and 0-d parameters are whole on every rank,
as without sharding. The optimizer works on the parts, which are plain tensors.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn

from ..gathering import mean_over_ranks, norms_over_ranks, rank, world_size
from ..modeling_albef_text import AlbefTextLayer
from ..momentum import own_parts
from ..trainable import Trainable
from .parts import Part


def is_split(tensor: torch.Tensor) -> bool:
    """Whether each rank holds a part of the tensor."""
    return hasattr(tensor, "placements")


def _layers(module: nn.Module) -> list[nn.Module]:
    """The outermost repeated layers: members of lists and sequences of several modules of one class."""
    found: list[nn.Module] = []
    for child in module.children():
        members = list(child.children())
        repeated = len(members) > 1 and len({type(member) for member in members}) == 1
        if repeated and isinstance(child, nn.ModuleList | nn.Sequential):
            found += members
        else:
            found += _layers(child)
    return found


def _alone(layers: list[nn.Module], method: nn.Module) -> list[nn.Module]:
    """Layers that have parameters and share none with the rest of the method, which has to gather shared ones."""
    owners: dict[nn.Parameter, set[int]] = {}
    numbers = {module: number for number, layer in enumerate(layers) for module in layer.modules()}
    for module in method.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, set()).add(numbers.get(module, -1))
    shared = {number for each in owners.values() if len(each) > 1 for number in each}
    return [
        layer
        for number, layer in enumerate(layers)
        if number not in shared and next(layer.parameters(), None) is not None
    ]


class Shards:
    """A method whose parameters this object splits over all ranks, as this rank holds it. Made on all ranks.

    The main process's weights are taken on all ranks.

    Args:
        method: on the accelerator's device. Called, it computes as before, with gradients averaged over ranks.

    Attributes:
        whole: the method as it was, without weights: `gathered` fills it. It has the method's own buffers.
    """

    def __init__(self, method: Trainable, accelerator: Accelerator) -> None:
        from torch.distributed.device_mesh import init_device_mesh  # not for every run: they take half a second
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        self.method = method
        for tensor in (*method.parameters(), *method.buffers()):
            dist.broadcast(tensor.data, 0)
        self.whole = self._twin(accelerator)
        # Our methods and layers return views, and nothing changes these in place.
        own = "|".join({type(method).__name__, AlbefTextLayer.__name__})
        warnings.filterwarnings("ignore", rf"FSDP2-wrapped module \(FSDP({own})\) returned a view", UserWarning)
        mesh = init_device_mesh(accelerator.device.type, (world_size(),))
        for layer in _alone(_layers(method), method):
            fully_shard(layer, mesh=mesh)
            if isinstance(layer, AlbefTextLayer):  # called beside `forward`
                register_fsdp_forward_method(layer, "project_memory")
        replicated = {parameter for parameter in method.parameters() if parameter.dim() == 0}
        fully_shard(method, mesh=mesh, ignored_params=replicated)
        self.originals = dict(method.named_parameters())
        self.own = {name: _own(parameter) for name, parameter in self.originals.items()}

    def _twin(self, accelerator: Accelerator) -> Trainable:
        memo: dict[int, Any] = {id(buffer): buffer for buffer in self.method.buffers()}
        for parameter in self.method.parameters():
            memo[id(parameter)] = nn.Parameter(
                torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
            )
        twin = copy.deepcopy(self.method, memo)
        names = {id(parameter): name for name, parameter in twin.named_parameters()}
        self.places = [
            (module, leaf, names[id(parameter)])
            for module in twin.modules()
            for leaf, parameter in module._parameters.items()
            if parameter is not None
        ]
        return accelerator.prepare_model(twin, device_placement=False, evaluation_mode=True)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """This rank's parts, by the names of the parameters: what the optimizer moves."""
        return iter(self.own.items())

    def parameters(self) -> Iterator[nn.Parameter]:
        """This rank's parts."""
        return iter(self.own.values())

    def part(self, name: str, tensor: torch.Tensor) -> Part:
        """A tensor of the size of this rank's part of a parameter, as that part of a whole one."""
        original = self.originals[name]
        if not is_split(original) or tensor.shape != self.own[name].shape:
            return Part(tensor, tuple(tensor.shape))
        return Part(tensor, tuple(original.shape), _first_row(original.shape[0], len(tensor)))

    def state(self) -> dict[str, Part]:
        """The parts of everything in the method's state dict, in whose memory they lie."""
        parts = {}
        for name, tensor in self.method.state_dict().items():
            (own,) = own_parts([tensor])
            start = _first_row(len(tensor), len(own)) if is_split(tensor) else None
            parts[name] = Part(own, tuple(tensor.shape), start)
        return parts

    def clip_gradients(self, largest: float) -> torch.Tensor:
        """After the backward passes of a step: hand the gradients to the parts, scaled to a largest norm.

        Returns: their norm before that, 0-d.
        """
        for name, own in self.own.items():
            original = self.originals[name]
            if original.grad is not None and original is not own:
                (own.grad,), original.grad = own_parts([original.grad]), None
            elif own.grad is not None:
                own.grad = mean_over_ranks(own.grad)
        gradients = [own.grad for own in self.own.values() if own.grad is not None]
        norm = torch.stack(norms_over_ranks(gradients)).norm()
        if largest < float("inf"):
            torch._foreach_mul_(gradients, (largest / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @contextmanager
    def gathered(self) -> Iterator[Trainable]:
        """A context in which `whole` has all weights, on every rank. Entered and left on all ranks."""
        self.gather()
        try:
            yield self.whole
        finally:
            self._fill(lambda parameter: torch.empty_like(parameter, device="meta"))

    def gather(self) -> Trainable:
        """Give `whole` all weights, for good, and return it. Called on all ranks."""
        self._fill(lambda parameter: parameter.full_tensor() if is_split(parameter) else parameter)  # type: ignore
        return self.whole

    @torch.no_grad()
    def _fill(self, weights: Callable[[nn.Parameter], torch.Tensor]) -> None:
        filled: dict[str, nn.Parameter] = {}
        for name, original in self.originals.items():
            filled[name] = nn.Parameter(weights(original), requires_grad=original.requires_grad)
        for module, leaf, name in self.places:
            module._parameters[leaf] = filled[name]


def _own(parameter: nn.Parameter) -> nn.Parameter:
    """This rank's part of a parameter, in its memory."""
    if not is_split(parameter):
        return parameter
    (part,) = own_parts([parameter.detach()])
    return nn.Parameter(part, requires_grad=parameter.requires_grad)


def _first_row(rows: int, own: int) -> int:
    """The first of this rank's rows of a tensor: FSDP2 splits as `torch.chunk` does.

    Raises:
        RuntimeError: this rank has another number of rows than that.
    """
    size = -(-rows // world_size())
    start = min(rank() * size, rows)
    if own != min(size, rows - start):
        raise RuntimeError(f"this version of torch splits {rows} rows in another way: rank {rank()} has {own}")
    return start
