"""What a tested run does beside training: it tells its phases, and breaks where it is told to.

Nothing here is used by training itself: a forked process changes its own copy of the package and then runs the script.
"""

import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ..data.batches import TrainingData
from ..momentum import FeatureQueue, MomentumCopy, own_parts
from ..training import checkpoints, loop
from ..training.loop import StepGuard
from ..training.run_state import RunState
from .compare import same_bits

# Calls of the file system that Python reports before it makes them; `open` only where it may write.
FILE_CALLS = ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate", "shutil.rmtree")


@dataclass(frozen=True)
class Fault:
    """What goes wrong within a run.

    Args:
        kind: `exit`, or the name of an errno: at the `at`-th file call below the run folder; `poison`: in step `at`;
            `stop`: the process is gone on all ranks before step `at`;
            `random` or `rates`: the numbers of a new run instead of those of the checkpoint.
        at: counted from 0.
        place, value: of a poison: `pixel`, `loss`, `gradient` or `statistic`, and what is put there.
        rank: where it happens.
    """

    kind: str = ""
    at: int = 0
    place: str = ""
    value: float = 0.0
    rank: int = 0


def before(owner: Any, name: str, action: Callable[..., Any]) -> None:
    """Call `action` with the arguments of a function before each of its calls."""
    original = getattr(owner, name)

    @wraps(original)
    def changed(*arguments: Any, **options: Any) -> Any:
        action(*arguments, **options)
        return original(*arguments, **options)

    setattr(owner, name, changed)


def after(owner: Any, name: str, action: Callable[..., Any]) -> None:
    """Call `action` with the result of a function and its arguments. What it returns, unless None, is the result."""
    original = getattr(owner, name)

    @wraps(original)
    def changed(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        other = action(result, *arguments, **options)
        return result if other is None else other

    setattr(owner, name, changed)


def install(fault: Fault, tell: Callable[[str], object], folder: Path, rank: int, notes: Path | None) -> None:
    """Prepare this process, one rank, before its script starts.

    Args:
        tell: sends a line to the process that watches.
        folder: of the run.
        notes: a folder for what `describe` writes; None: nothing is written.
    """
    if notes is not None:
        describe(notes, rank)
    if rank == 0:
        tell_phases(tell)
    if fault.kind == "poison":
        poison(fault, tell, rank)
    elif fault.kind == "stop":
        steps = iter(range(fault.at))
        before(StepGuard, "begin", lambda *_: next(steps, None) is None and os._exit(1))
    elif fault.kind == "random":
        torch.manual_seed = lambda seed: torch.default_generator  # type: ignore[assignment]
    elif fault.kind == "rates":
        after(RunState, "__init__", lambda _, run, *__, **___: restart_rates(run, tell))
    elif rank == 0:
        count_file_calls(fault, tell, folder)


def tell_phases(tell: Callable[[str], object]) -> None:
    """Tell when training, a step, a save, an evaluation, finishing and the end begin."""
    before(loop, "make_steps", lambda run: tell("train"))
    before(StepGuard, "begin", lambda *_: tell("step"))
    before(RunState, "save", lambda *_, **__: tell("save"))
    before(StepGuard, "release", lambda *_: tell("finish"))
    before(Accelerator, "end_training", lambda *_: tell("done"))

    def measured(_: None, run: RunState, *__: Any, **___: Any) -> None:
        if run.evaluate is not None:
            before(run, "evaluate", lambda *_: tell("evaluate"))

    after(RunState, "__init__", measured)


def describe(notes: Path, rank: int) -> None:
    """Write what controls and comparisons need.

    That is the state before the first step as a checkpoint, its components, the samples drawn, the seed and learning
    rates of each step, whether a step draws random numbers, and the modules that a run imports.
    """
    notes.mkdir(parents=True, exist_ok=True)

    def begun(run: RunState) -> None:
        running.append(run)
        folder, run.folder = run.folder, notes
        save(run)
        run.folder = folder
        if rank == 0:
            (notes / "components.json").write_text(json.dumps(components(run.method)))

    save, original = RunState.save, TrainingData.keys

    def keys(self: TrainingData, *arguments: Any, **options: Any) -> Any:
        for batch in original(self, *arguments, **options):
            with (notes / f"samples-{rank}.txt").open("a") as handle:
                handle.write(" ".join(f"{key.epoch}:{key.position}" for key in batch) + "\n")
            yield batch

    state: list[torch.Tensor] = []
    running: list[RunState] = []

    def stepped(*_: Any) -> None:
        rates = [group["lr"] for group in running[0].prepared.param_groups]
        with (notes / f"steps-{rank}.txt").open("a") as handle:
            handle.write(f"{torch.initial_seed()} {rates}\n")
        if not torch.equal(state[0], torch.get_rng_state()):
            (notes / "random").touch()

    after(torch, "manual_seed", lambda *_: state.__setitem__(slice(None), [torch.get_rng_state()]))
    before(StepGuard, "judge", stepped)
    TrainingData.keys = keys  # type: ignore[method-assign]
    before(loop, "make_steps", begun)
    before(Accelerator, "end_training", lambda *_: (notes / "modules.txt").write_text("\n".join(sys.modules)))


def components(method: nn.Module) -> dict[str, str]:
    """The component of state to which each tensor of a method belongs, by the tensor's name."""
    found = {}
    for prefix, module in method.named_modules():
        copied = any(
            isinstance(method.get_submodule(prefix[:end]), MomentumCopy)
            for end in range(len(prefix) + 1)
            if end == len(prefix) or prefix[end] == "."
        )
        owner = "copy of " if copied else ""
        part = prefix.split(".")[1 if copied and "." in prefix else 0]
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{prefix}.{name}".lstrip(".")
            found[full] = full if parameter.dim() == 0 else f"{owner}{part}: weights"
        for name, _ in module.named_buffers(recurse=False):
            full = f"{prefix}.{name}".lstrip(".")
            found[full] = full if isinstance(module, FeatureQueue | MomentumCopy) else f"{owner}{part}: {name}"
    return found


def restart_rates(run: RunState, tell: Callable[[str], object]) -> None:
    """Go on with the learning rates of a new run. Tells `unused` if they are the same."""
    step, rates = run.position.step, list(run.rates)
    run.rates = [rates[max(0, number - step)] for number in range(len(rates))]
    if run.rates[step:] == rates[step:]:
        tell("unused")


def count_file_calls(fault: Fault, tell: Callable[[str], object], folder: Path) -> None:
    """Count the file calls below the run folder, and exit or fail at one of them.

    A file of tensors is then half written.
    """
    count, inside = 0, False
    root = str(folder)

    def call(path: str) -> None:
        nonlocal count, inside
        inside = True
        tell(f"call {path.removeprefix(root)}")
        inside = False
        count += 1
        if fault.kind and count == fault.at + 1:
            if fault.kind == "exit":
                os.kill(os.getpid(), signal.SIGKILL)
            number = getattr(errno, fault.kind)
            raise OSError(number, os.strerror(number), path)

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if inside or event not in FILE_CALLS or not isinstance(arguments[0], str | os.PathLike):
            return
        writes = event != "open" or isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        path = os.fspath(arguments[0])
        if writes and isinstance(path, str) and path.startswith(root):
            call(path)

    def cut(_: Any, tensors: Any, path: Path) -> None:
        if fault.kind and count == fault.at:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        call(f"{path} (half)")

    sys.addaudithook(heard)
    before(os, "fsync", lambda handle: call("fsync"))
    after(checkpoints, "save_file", cut)


def poison(fault: Fault, tell: Callable[[str], object], rank: int) -> None:
    """Put a bad number into one step of one rank, and tell what moved in that step on this rank."""
    step = -1
    states: list[dict[str, torch.Tensor]] = []
    holder: dict[str, RunState] = {}

    def state() -> dict[str, torch.Tensor]:
        run = holder["run"]
        moments = checkpoints.optimizer_state(run.shards or run.method, run.optimizer)
        named = zip(run.method.state_dict(), own_parts(list(run.method.state_dict().values())), strict=True)
        return {name: tensor.clone() for name, tensor in {**dict(named), **moments}.items()}

    def begun(*_: Any) -> None:
        nonlocal step
        step += 1
        if step in (fault.at, fault.at + 1):
            states.append(state())
        if step == fault.at + 1:
            old, new = states
            moved = [name for name in new if not same_bits(old.get(name, torch.zeros_like(new[name])), new[name])]
            tell(f"moved {rank} {','.join(moved[:5])}")

    def bad() -> bool:
        return step == fault.at and rank == fault.rank

    def pixel(batch: dict[str, Any], *_: Any) -> None:
        if bad():
            largest = max((value for value in batch.values() if value.is_floating_point()), key=torch.Tensor.numel)
            largest.view(-1)[0] = fault.value

    def started(_: None, run: RunState, *__: Any, **___: Any) -> None:
        holder["run"] = run
        if fault.place == "loss":
            run.model.register_forward_hook(
                lambda model, _, output: _spoil(output, fault.value) if bad() and model.training else None
            )
        if fault.place == "gradient":
            first = next(each for each in run.method.parameters() if each.requires_grad)
            if run.shards is None:
                first.register_hook(lambda gradient: gradient * fault.value if bad() else None)
            else:  # other ranks add to them, too

                def spoil(*_: Any) -> None:
                    if bad() and first.grad is not None:
                        own_parts([first.grad])[0].mul_(fault.value)

                before(run.shards, "clip_gradients", spoil)

    def statistic(guard: StepGuard, *_: Any) -> None:
        floats = [
            buffer for group in guard.groups for buffer in group if buffer.is_floating_point() and buffer.numel()
        ]
        if bad() and floats:
            floats[0].view(-1)[0] = fault.value
        elif bad():
            tell("unused")

    before(StepGuard, "begin", begun)
    after(RunState, "__init__", started)
    if fault.place == "pixel":
        after(TrainingData, "to_device", pixel)
    if fault.place == "statistic":
        before(StepGuard, "judge", statistic)


def _spoil(output: Any, value: float) -> Any:
    output.loss = output.loss * value
    return output
