"""Counting what a training step does: live memory, floating point operations, and bytes that ranks exchange.

`StepCounter` sees every operation that torch dispatches, so it reports what the code does. It works on ordinary
tensors, and on tensors without data (see `simulation.py`), of which nothing is computed and nothing sent.
"""

import weakref
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

BLOCK = 512  # torch's allocator for GPUs rounds up to this many bytes

# Operation -> the index of the argument whose size is exchanged, and its bytes that a rank sends, as a share of this
# size, by the number of ranks n: ring algorithms for reducing and gathering. The same names come from
# torch.distributed (c10d) and from its functional form, where inputs come first.
_SHARES = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,  # of what is gathered
    "reduce_scatter": lambda n: (n - 1) / n,  # of what is reduced
    "all_to_all": lambda n: (n - 1) / n,
    "broadcast": lambda n: 1.0,
    "send": lambda n: 1.0,
}
_C10D = {
    "allreduce_": ("all_reduce", 0),
    "allreduce_coalesced_": ("all_reduce", 0),
    "_allgather_base_": ("all_gather", 0),
    "allgather_": ("all_gather", 0),
    "allgather_into_tensor_coalesced_": ("all_gather", 0),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "reduce_scatter_": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1),
    "alltoall_": ("all_to_all", 1),
    "alltoall_base_": ("all_to_all", 1),
    "broadcast_": ("broadcast", 0),
    "send": ("send", 0),
}
_FUNCTIONAL = {
    "all_reduce": "all_reduce",
    "all_reduce_": "all_reduce",
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "all_to_all_single": "all_to_all",
    "broadcast": "broadcast",
}
_ATTENTION = {"aten::_scaled_dot_product_flash_attention_for_cpu": (0, 4)}
_ATTENTION |= {f"{name}_backward": (1, 10) for name in _ATTENTION}  # scores are computed again: five products, not two
# Operations that start nothing on the device.
_NO_KERNEL = {
    f"aten::{name}" for name in ("detach", "_unsafe_view", "empty", "empty_like", "new_empty", "promote_types")
}


def size_of(tensors: Iterable[Any]) -> int:
    """Bytes of tensors, each storage once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors if torch.is_tensor(t)}
    return sum(storages.values())


class StepCounter(TorchDispatchMode):
    """Counts while it is entered.

    Args:
        ranks: that exchange; 1: nothing is sent.
        simulated: collectives are counted and not made, and where the host reads a truth value it
            reads `answer`, and where it reads an integer, `whole`.

    Attributes:
        live: bytes of the tensors that are alive, of those made or shown to `track` while this counts. peak: its
            highest value.
        gradients: bytes of gradients that are there; the step tells (see `follow_gradients`).
        at_peak: gradients and phase at the peak. phase: what the step is doing, for `at_peak`.
        flops: floating point operations of matrix products, convolutions and attention, by type of number.
        moved: bytes read and written by all other operations. kernels: operations that are no views.
        sent: bytes that this rank sends, by kind of collective. calls: number of collectives, by kind.
    """

    def __init__(self, ranks: int = 1, simulated: bool = False) -> None:
        super().__init__()
        self.ranks, self.simulated, self.answer, self.whole = ranks, simulated, False, 0
        self.live, self.gradients, self.phase = 0, 0, ""
        self._storages: dict[int, Any] = {}
        self._any = 0  # the last result of `any`, which is False: nothing is wrong anywhere
        self.reset()

    def reset(self) -> None:
        """Count anew; what is alive stays."""
        self.peak, self.at_peak = self.live, (self.gradients, self.phase)
        self.flops: Counter[torch.dtype] = Counter()
        self.moved = self.kernels = 0
        self.sent: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def track(self, tensors: Iterable[Any]) -> None:
        """Count the memory of tensors until they are freed."""
        for tensor in tensors:
            if not torch.is_tensor(tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._storages:
                continue
            size = -(-storage.nbytes() // BLOCK) * BLOCK
            self._storages[key] = weakref.ref(storage, partial(self._freed, key, size))
            self.live += size
        if self.live > self.peak:
            self.peak, self.at_peak = self.live, (self.gradients, self.phase)

    def _freed(self, key: int, size: int, _: Any) -> None:
        self._storages.pop(key, None)
        self.live -= size

    def follow_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Keep `gradients` up to date in backward passes. Set it to 0 where gradients are freed."""

        def arrived(parameter: torch.Tensor) -> None:
            if id(parameter) not in self._arrived:
                self._arrived.add(id(parameter))
                self.gradients += parameter.numel() * parameter.element_size()

        self._arrived: set[int] = set()
        for parameter in parameters:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(arrived)

    def forget_gradients(self) -> None:
        """All gradients are freed."""
        self._arrived.clear()
        self.gradients = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name, kwargs or {}
        space, _, short = name.partition("::")
        if space == "c10d":
            self._exchange(*_C10D.get(short, ("", 0)), args)
            if self.simulated:
                return _not_made(func, args)
        elif space.startswith("_c10d_functional"):
            self._exchange(_FUNCTIONAL.get(short, ""), 0, args)
        elif name == "aten::_local_scalar_dense" and self.simulated:
            kind = args[0].dtype
            answer = self.answer and args[0].untyped_storage()._cdata != self._any
            return answer if kind == torch.bool else 0.0 if kind.is_floating_point else self.whole
        out = func(*args, **kwargs)
        self._compute(func, name, args, kwargs, out)
        self.track(tree_leaves(out))
        if name == "aten::any":
            self._any = out.untyped_storage()._cdata
        elif torch.is_tensor(out) and out.untyped_storage()._cdata == self._any:  # its place in memory is taken
            self._any = 0
        return out

    def _exchange(self, kind: str, index: int, args: Any) -> None:
        if kind and self.ranks > 1:
            size = sum(t.numel() * t.element_size() for t in tree_leaves(args[index]) if torch.is_tensor(t))
            self.sent[kind] += round(size * _SHARES[kind](self.ranks))
            self.calls[kind] += 1

    def _compute(self, func: Any, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if func.is_view or not name.startswith("aten::") or name in _NO_KERNEL:
            return
        self.kernels += 1
        if name in _ATTENTION:
            first, factor = _ATTENTION[name]
            query, key = args[first], args[first + 1]
            self.flops[query.dtype] += factor * query.numel() * key.shape[-2]
        elif func.overloadpacket in flop_registry:
            kind = next(t.dtype for t in tree_leaves(args) if torch.is_tensor(t))
            self.flops[kind] += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
        else:
            written = [a for p, a in zip(func._schema.arguments, args, strict=False) if p.is_write]
            touched = tree_leaves((args, kwargs, out, written))
            self.moved += sum(t.numel() * t.element_size() for t in touched if torch.is_tensor(t))


def _not_made(func: Any, args: Any) -> Any:
    """What a collective returns, at once: its output as it is, and work that is done."""
    from torch._C._distributed_c10d import FakeWork

    work = FakeWork().boxed()
    return work if len(func._schema.returns) == 1 else (args[0], work)
