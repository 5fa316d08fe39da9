"""Steps of a run on tensors without data: their memory, operations and traffic, on any number of ranks.

The steps are those of `loop.make_steps`, so that what the loop holds is counted, too. Nothing is computed, sent or
downloaded, and the memory of the machine does not matter.
"""

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils.operations import convert_outputs_to_fp32
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from ..gathering import gather_rows, mean_over_ranks, world_size
from ..momentum import FeatureQueue, MomentumCopy
from ..trainable import Trainable
from .arguments import TrainingArguments
from .counting import StepCounter, size_of
from .loop import StepGuard, make_steps
from .optimization import build_optimizer

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class StepCount:
    """What one optimizer step takes on each rank. Memory in bytes.

    Args:
        ranks: that train together.
        memory: at the peak of the step, by what takes it.
        phase: of the step that has the peak.
        gradients: bytes of all gradients, which data-parallel training sums over ranks.
        flops: by type of number, as text ("float32" ...): matrix products, convolutions and attention.
        moved: bytes that all other operations read and write. kernels: operations.
        sent: bytes that a rank sends beside gradients, by kind of collective. calls: such collectives.
        gradients_sent: bytes that a rank sends to sum gradients.
    """

    ranks: int
    memory: dict[str, int]
    phase: str
    gradients: int
    flops: dict[str, int]
    moved: int
    kernels: int
    sent: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        return sum(self.memory.values())

    @property
    def gradients_sent(self) -> int:
        return round(2 * (self.ranks - 1) / self.ranks * self.gradients)


class _Fused(TorchFunctionMode):
    """Attention as its fused kernels keep it: queries, keys, values and output, no weights; with dropout on GPUs only,
    where dropout itself is fused, too."""

    def __init__(self, dropout: bool) -> None:
        super().__init__()
        self.dropout = dropout

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            return self._attend(*args, **(kwargs or {}))
        if func is torch.dropout and self.dropout:  # keeps a mask of bytes
            return torch.native_dropout(*args, **(kwargs or {}))[0]
        return func(*args, **(kwargs or {}))

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if dropout_p and not self.dropout:
            with sdpa_kernel(SDPBackend.MATH), torch._C.DisableTorchFunction():
                return nn.functional.scaled_dot_product_attention(
                    query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
                )
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return fused(query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]


class _Synchronized(torch.autograd.Function):
    """What torch's normalization over ranks exchanges on GPUs: mean, deviation and count; two sums in backward."""

    @staticmethod
    def forward(context: Any, features: torch.Tensor) -> torch.Tensor:
        context.channels = features.shape[1]
        gather_rows(features.new_empty(1, 2 * context.channels + 1, dtype=torch.float32))
        return features.view_as(features)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        dist.all_reduce(gradient.new_empty(2 * context.channels, dtype=torch.float32))
        return gradient


def _synchronize_as_on_gpus(method: nn.Module) -> None:
    for module in method.modules():
        if isinstance(module, _BatchNorm) and hasattr(module, "process_group"):

            def forward(features: torch.Tensor, own: _BatchNorm = module) -> torch.Tensor:
                synchronized = _Synchronized.apply(features) if own.training and world_size() > 1 else features
                return _BatchNorm.forward(own, synchronized)

            module.forward = forward  # type: ignore[method-assign,assignment]


def without_data(method: Trainable) -> Trainable:
    """A copy whose parameters and buffers have shapes and types alone. Call it under `FakeTensorMode`."""
    memo: dict[int, Any] = {}
    for parameter in method.parameters():
        empty = torch.empty(parameter.shape, dtype=parameter.dtype)
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in method.buffers():
        memo[id(buffer)] = torch.empty_strided(buffer.shape, buffer.stride(), dtype=buffer.dtype)
    for value in (value for module in method.modules() for value in vars(module).values()):
        if torch.is_tensor(value):
            memo[id(value)] = torch.empty(value.shape, dtype=value.dtype)
    return copy.deepcopy(method, memo)


@contextlib.contextmanager
def _process_group(ranks: int) -> Iterator[None]:
    """A group of `ranks` of which this process is the first and the others are not there; the group that there is,
    if it has as many."""
    if world_size() == ranks:
        yield
        return
    if dist.is_initialized():
        raise ValueError(f"this process is one of {world_size()} ranks and cannot plan for {ranks}: start it alone")
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


class _Model:
    """The method as Accelerate prepares it, without data-parallel training: its gradients are counted apart."""

    def __init__(self, method: Trainable, precision: str, counter: StepCounter) -> None:
        self.method, self.counter = method, counter
        self.train, self.parameters = method.train, method.parameters
        self.run = method.forward
        if precision != "no":
            self.run = convert_outputs_to_fp32(torch.autocast("cpu", DTYPES[precision])(method.forward))

    def __call__(self, **batch: Any) -> Any:
        self.counter.phase = "forward pass"
        output = self.run(**batch)
        self.counter.phase = "backward pass"
        return output


def _stand_in(
    method: Trainable, batch: Mapping[str, Any], arguments: TrainingArguments, counter: StepCounter, steps: int
) -> Any:
    """What `make_steps` needs of a `RunState`."""
    accumulation = min(2, arguments.accumulation)  # more micro-batches need no more memory
    total = steps + 1  # the last step of a run would save it

    def clip(largest: float) -> torch.Tensor:
        counter.phase = "optimizer"
        return nn.utils.clip_grad_norm_(method.parameters(), largest, foreach=True)  # as on GPUs

    def batches() -> Iterator[dict[str, Any]]:
        for _ in range(steps):
            for micro in range(accumulation):
                if micro == 0:
                    counter.forget_gradients()
                    counter.reset()
                yield {**batch, "rejected": []}

    def to_device(batch: dict[str, Any], device: Any) -> dict[str, Any]:
        return {name: torch.empty_like(v) if torch.is_tensor(v) else v for name, v in batch.items()}

    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        process_index=0,
        num_processes=world_size(),
        scaler=None,
        is_main_process=True,
        no_sync=lambda model: contextlib.nullcontext(),
        backward=lambda loss: loss.backward(),
        reduce=lambda value, how: mean_over_ranks(value),
    )
    optimizer = build_optimizer(method, arguments)
    answer, counter.answer = counter.answer, True  # all buffers are finite
    guard = StepGuard(method, optimizer, accelerator, arguments.spike_deviations)  # type: ignore[arg-type]
    counter.answer = answer
    return SimpleNamespace(
        method=method,
        model=_Model(method, arguments.mixed_precision or "no", counter),
        accelerator=accelerator,
        guard=guard,
        clip=clip,
        position=SimpleNamespace(step=0, shift=0, length=SimpleNamespace(total_steps=total)),
        stop=SimpleNamespace(group=None, agreed=False),
        arguments=SimpleNamespace(accumulation=accumulation, seed=0, max_gradient_norm=arguments.max_gradient_norm),
        data=SimpleNamespace(batch_size=arguments.batch_size, to_device=to_device),
        batches=batches,
        evaluate_if_due=lambda resumed=False: None,
        rates=[arguments.learning_rate] * total,
        schedules={name: values[-1:] * total for name, values in method.schedules(1, total).items()},
        prepared=optimizer,
        rejections=SimpleNamespace(add=lambda *_: None),
        log=SimpleNamespace(bar=SimpleNamespace(update=lambda: None)),
        rhythm=[],
    )


def simulate(
    method: Trainable,
    batch: Mapping[str, Any],
    arguments: TrainingArguments,
    *,
    ranks: int = 1,
    device: str = "cuda",
) -> StepCount:
    """Make two optimizer steps without data, and count the second.

    Args:
        method: what is trained. It stays as it is, and may be on the device `meta`.
        batch: of a rank and micro-batch, as `Trainable.forward` takes it.
        ranks: how many train together.
        device: type of the device that would train. On `cpu` attention with dropout keeps its weights.

    Raises:
        ValueError: this process is one of another number of ranks.
    """
    try:
        return _simulate(method, batch, arguments, ranks, device != "cpu", answer=False)
    except ValueError:  # a check of values, of which there are none
        return _simulate(method, batch, arguments, ranks, device != "cpu", answer=True)


def _simulate(
    method: Trainable, batch: Mapping[str, Any], arguments: TrainingArguments, ranks: int, gpu: bool, answer: bool
) -> StepCount:
    """answer: to whatever the host asks of values on the device. Integers it reads are the number of rows."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_process_group(ranks))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        counter = stack.enter_context(StepCounter(ranks, simulated=True))
        counter.answer, counter.whole = answer, max(len(v) for v in batch.values() if torch.is_tensor(v))
        stack.enter_context(_Fused(dropout=gpu))
        own = without_data(method)
        if gpu:
            _synchronize_as_on_gpus(own)
        counter.follow_gradients(own.parameters())
        given = {name: torch.empty(v.shape, dtype=v.dtype) if torch.is_tensor(v) else v for name, v in batch.items()}
        outside = size_of(given.values())  # those that the loop copies to the device are counted
        run = _stand_in(own, given, arguments, counter, steps=2)
        with contextlib.suppress(StopIteration):
            make_steps(run)
        return _count(own, run.prepared, counter, arguments, ranks, outside)


def _count(
    method: Trainable,
    optimizer: torch.optim.Optimizer,
    counter: StepCounter,
    arguments: TrainingArguments,
    ranks: int,
    outside: int,
) -> StepCount:
    copies = [p for m in method.modules() if isinstance(m, MomentumCopy) for p in m.parameters()]
    followed = {id(p) for p in copies}
    trained = [p for p in method.parameters() if p.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in trained)
    present, phase = counter.at_peak
    memory = {
        "parameters": size_of(p for p in method.parameters() if id(p) not in followed),
        "momentum copies": size_of(copies),
        "queues": size_of(b for m in method.modules() if isinstance(m, FeatureQueue) for b in m.buffers()),
        "optimizer state": size_of(v for state in optimizer.state.values() for v in state.values()),
        "gradients": present,
    }
    memory["activations and temporary"] = counter.peak - outside - sum(memory.values())
    if ranks > 1:
        memory["buckets of gradients"] = gradients  # of data-parallel training: gradients are copied into them
    # The micro-batches that were left out compute, but exchange nothing new in kind: scale what a micro-batch does.
    repeated = arguments.accumulation / min(2, arguments.accumulation)
    return StepCount(
        ranks=ranks,
        memory=memory,
        phase=phase,
        gradients=gradients,
        flops={str(kind).removeprefix("torch."): round(n * repeated) for kind, n in counter.flops.items()},
        moved=round(counter.moved * repeated),
        kernels=round(counter.kernels * repeated),
        sent={kind: round(n * repeated) for kind, n in counter.sent.items()},
        calls={kind: math.ceil(n * repeated) for kind, n in counter.calls.items()},
    )
