"""The processes of a run: as many as the launcher was asked for, or an error that says how to start them."""

import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.tracking import get_available_trackers

from .arguments import TrainingArguments

PAGE = "see docs/scaling.md"
PRECISIONS = ("no", "bf16", "fp16")
# Switches of `accelerate launch` that would change what a rank holds, in the environment that it sets. Runs have their
# own sharding: Accelerate's FSDP splits word embeddings from the head that reads them, and does nothing on a CPU.
_SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}


def launch_arguments(words: Sequence[str]) -> list[str] | None:
    """The arguments on a command line of `accelerate launch`, however it is called; None if it is another command."""
    for place, word in enumerate(words[:3]):
        name, following = Path(word).name, list(words[place + 1 :])
        if name in ("accelerate-launch", "accelerate.commands.launch"):
            return following
        if name == "accelerate" and following[:1] == ["launch"]:
            return following[1:]
    return None


def launcher() -> list[str] | None:
    """The arguments of the `accelerate launch` that started this process itself; None if none did."""
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    return launch_arguments([word for word in words if word])


def _asked(launched: list[str]) -> int:
    """The number of processes that arguments of `accelerate launch`, or else its configuration, ask for; 0: none."""
    parsed, _ = launch_command_parser().parse_known_args(launched)
    file = parsed.config_file or (
        default_config_file if Path(default_config_file).is_file() and not parsed.cpu else ""
    )
    return parsed.num_processes or (load_config_from_file(file).num_processes if file else 0)


def _has_accelerator() -> bool:
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return torch.accelerator.is_available() and not on_cpu


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else 0


def check_launch() -> None:
    """Check what the launcher asks for, before any process is set up.

    Raises:
        ValueError: it asks for sharding, or for more processes on this machine than it has GPUs.
    """
    for variable, name in _SHARDING.items():
        if os.environ.get(variable, "").lower() == "true":
            raise ValueError(
                f"`accelerate launch` is set to use {name}, which these runs do not support. To split weights and "
                "optimizer state over the ranks add --sharding fsdp2 to the run, and start it by --config_file "
                f"configs/accelerate/one_node.yaml, or after `accelerate config` without {name}; {PAGE}"
            )
    here, devices = _number("LOCAL_WORLD_SIZE"), torch.cuda.device_count()
    if _has_accelerator() and torch.cuda.is_available() and here > devices:
        raise ValueError(
            f"{here} processes were started on this machine, but it shows {devices} GPUs to them: start one process "
            f"for each GPU, and let every process see all of them; {PAGE}"
        )


def idle_note() -> str | None:
    """What to know if this machine has more GPUs than the one of this process; otherwise None."""
    devices = torch.cuda.device_count() if _has_accelerator() else 0
    if devices < 2:
        return None
    return f"note: this run uses one of {devices} GPUs; start it by `accelerate launch` to use all of them"


def check_processes(processes: int) -> None:
    """Compare the number of processes of this run with the number that was asked for.

    Raises:
        ValueError: this is one of several processes that know nothing of each other, or the only one of several.
    """
    script = shlex.join(sys.argv)
    asked = _asked(launched) if (launched := launcher()) is not None else 0
    if asked > 1 == processes:
        devices = torch.accelerator.device_count() if _has_accelerator() else 0
        raise ValueError(
            f"`accelerate launch` was asked for {asked} processes but started one: it starts several only where it "
            f"finds several GPUs (here: {devices}). For processes on a CPU: "
            f"torchrun --standalone --nproc_per_node {asked} {script}"
        )
    tasks = {
        "torchrun": _number("WORLD_SIZE"),
        "MPI": _number("OMPI_COMM_WORLD_SIZE") or _number("PMI_SIZE"),
        "srun": _number("SLURM_STEP_NUM_TASKS"),
    }
    for name, asked in tasks.items():
        if asked > 1 == processes:
            raise ValueError(
                f"{name} started {asked} processes, and each would train alone: under Slurm start `torchrun` once on "
                f"each machine, elsewhere `accelerate launch` or `torchrun`; {PAGE}"
            )


def settled_precision(arguments: TrainingArguments, say: Callable[[str], None] = lambda text: None) -> str:
    """The precision of a run: of its configuration, or else of `accelerate launch`; float32 where a CPU has no other.

    say: is told where it is not what one of them says.

    Raises:
        ValueError: the configuration names none of `PRECISIONS`.
    """
    launched, own = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower(), arguments.mixed_precision
    launched = launched if launched in PRECISIONS else "no"
    if own is not None and own not in PRECISIONS:
        raise ValueError(f"mixed_precision must be one of {', '.join(PRECISIONS)}, not {own!r}")
    if own is not None and launched not in ("no", own):
        say(f"note: mixed_precision is {own}, as configured; `accelerate launch` says {launched}")
    chosen = launched if own is None else own
    if chosen == "fp16" and not _has_accelerator():
        say("note: mixed_precision fp16 needs a GPU: this run computes in float32")
        return "no"
    return chosen


def check_sharding(sharding: str | None, precision: str) -> None:
    """Check what a sharded run cannot do. precision: as `settled_precision` says.

    Raises:
        ValueError: float16, whose scaling of gradients would need all of them on every rank.
    """
    if sharding and precision == "fp16":
        raise ValueError(
            f"sharding {sharding} does not go with float16: set mixed_precision to bf16 or no, or leave sharding out"
        )


def _join_after_restart() -> None:
    """After a restart by `torchrun`: meet the other ranks under names of this restart.

    The store that ranks meet in outlives a restart, and torch looks up addresses of processes that are gone.
    """
    count = _number("TORCHELASTIC_RESTART_COUNT")
    if not count or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or dist.is_initialized():
        return
    address, ranks = (os.environ["MASTER_ADDR"], _number("MASTER_PORT")), _number("WORLD_SIZE")
    store = dist.PrefixStore(f"restart {count}", dist.TCPStore(*address, ranks, is_master=False))
    backend = "nccl" if _has_accelerator() and torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=_number("RANK"), world_size=ranks)


def start_processes(**options: Any) -> Accelerator:
    """Make an Accelerator for the processes that were started, on the CPU where there is no GPU.

    Raises:
        ValueError: see `check_launch` and `check_processes`.
    """
    check_launch()
    _join_after_restart()
    # Its successor broadcasts the queues once more and is not in all supported versions.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    accelerator = Accelerator(cpu=not _has_accelerator(), **options)
    check_processes(accelerator.num_processes)
    return accelerator


def build_accelerator(arguments: TrainingArguments) -> Accelerator:
    """Make the Accelerator of a run. It does not broadcast buffers: queues are equal on all ranks already.

    `deterministic` holds for the whole process.

    Raises:
        ValueError: the tracker is unknown or not installed; and as `start_processes` and `check_sharding`.
    """
    if arguments.report_to != "none":
        installed = [tracker.value for tracker in get_available_trackers()]
        if arguments.report_to not in installed:
            raise ValueError(
                f"report_to {arguments.report_to!r}: no such tracker is installed (there are: "
                f'{", ".join(installed) or "none"}); pip install "albef-hf[train]" for tensorboard, or set it to none'
            )
    if arguments.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
    precision = settled_precision(arguments)
    check_sharding(arguments.sharding, precision)
    return start_processes(
        mixed_precision=precision,
        log_with=None if arguments.report_to == "none" else arguments.report_to,
        project_dir=arguments.output_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
