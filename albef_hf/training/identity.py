"""Who a run is: its folder, claimed by one process group at a time, and what changed since its checkpoint.

A run folder has a `run.json` with the run's id, and every checkpoint carries the id, the resolved configuration, a
fingerprint of the data and the versions of the packages. So a run that goes on knows what differs.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from .. import __version__
from ..data.fingerprint import data_fingerprint
from ..data.lines import write_text
from .arguments import resolved
from .changes import compare_settings
from .checkpoints import clean_up, newest_valid, saved_checkpoints

try:
    import fcntl
except ImportError:  # not on Windows, where nothing keeps two runs out of one folder
    fcntl = None  # type: ignore[assignment]

PACKAGES = ("torch", "transformers", "datasets", "accelerate", "timm")
# What a run writes into its folder and another would write over. It is moved aside in this order: a start that is
# killed meanwhile leaves no checkpoint that a next start could go on from without its log.
OURS = ("checkpoints", "model", "run.json", "config.yaml", "versions.json", "log.jsonl", "evaluations", "predictions")
REPORTS = ("results.json", "report.html", "curves.png", "views.png", "neighbours.png", "map.png")

T = TypeVar("T")
_claimed: set[str] = set()  # by this process: a lock of the system does not hold against its own process


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Do `work` on the main process. Every rank gets its result, or raises its error."""
    outcome: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            outcome = [work(), None]
        except (ValueError, OSError) as error:
            if accelerator.num_processes == 1:
                raise
            outcome = [None, str(error)]
    if accelerator.num_processes > 1:
        broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise ValueError(outcome[1])
    return outcome[0]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder. A killed process holds none.

    Raises:
        ValueError: another process holds it; says which.
    """
    path, name = folder / "run.lock", str(folder.resolve())
    with path.open("a+", encoding="utf-8") as handle:
        try:
            if name in _claimed:
                raise BlockingIOError
            if fcntl is not None:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            handle.seek(0)
            raise ValueError(
                f"{folder} is in use by another run ({handle.read().strip() or 'unknown process'}); wait until it "
                "ends, or set output_dir to another folder"
            ) from error
        except OSError as error:  # a file system without locks
            print(f"warning: {folder} cannot be locked ({error}): take care that no two runs use it")
        _claimed.add(name)
        try:
            handle.truncate(0)
            handle.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            handle.flush()
            yield
        finally:
            _claimed.discard(name)


@dataclasses.dataclass
class Claim:
    """A run folder and how the run begins in it.

    Attributes:
        folder: of the run.
        checkpoint: to go on from; None: the run starts.
        progress: that the checkpoint was saved with; empty without one.
        notes: to print.
        identity: what every checkpoint carries; filled by `identify`.
        changes: setting -> its values before and now, where the run goes on with another; filled by `identify`.
    """

    folder: Path
    checkpoint: Path | None = None
    progress: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    identity: dict[str, Any] = dataclasses.field(default_factory=dict)
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)


@contextmanager
def claim(folder: Path, resume: bool | str, overwrite: bool, accelerator: Accelerator) -> Iterator[Claim]:
    """Claim a run folder for as long as the context lasts, and decide how the run begins. Called on all ranks.

    Args:
        resume: False: a new run. True: go on from the newest valid checkpoint. "auto": go on if there is one.
        overwrite: a new run may take a used folder; what is there is moved into a folder of it.

    Raises:
        ValueError: the folder is in use, or used and neither `resume` nor `overwrite` is given, or there is no
            checkpoint to go on from; says what to do.
    """
    with ExitStack() as stack:

        def begin() -> Claim:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(
                    f"output_dir {folder} cannot be made ({error.strerror}: {error.filename}); set it to a folder "
                    "that can be written"
                ) from error
            stack.enter_context(locked(folder))
            return _begin(folder, resume, overwrite)

        begun = on_main(accelerator, begin)
        if begun.checkpoint is not None and not begun.checkpoint.is_dir():
            raise ValueError(
                f"rank {accelerator.process_index} does not see {begun.checkpoint}: output_dir must be a folder that "
                "all ranks share"
            )
        for note in begun.notes:
            accelerator.print(note)
        yield begun


def _begin(folder: Path, resume: bool | str, overwrite: bool) -> Claim:
    checkpoints = folder / "checkpoints"
    used = [name for name in (*OURS, *REPORTS) if (folder / name).exists()]
    if not resume:
        if used and not overwrite:
            go_on = "--resume" if saved_checkpoints(checkpoints) else "--resume auto (there is no checkpoint yet)"
            raise ValueError(
                f"{folder} holds a run already ({', '.join(used[:4])}): add {go_on} to go on with it, --overwrite to "
                "move it aside and start anew, or set output_dir to another folder"
            )
        return Claim(folder, notes=[_move_aside(folder, used)] if used else [])
    if overwrite:
        raise ValueError("--resume goes on with the run in output_dir and --overwrite replaces it: give one of them")
    clean_up(checkpoints)
    checkpoint, progress, reasons = newest_valid(checkpoints)
    notes = [f"warning: {reason}" for reason in reasons]
    if checkpoint is not None:
        return Claim(folder, checkpoint, progress, [*notes, f"resuming from {checkpoint}"])
    if resume is True or reasons or (folder / "model").exists():
        found = "; ".join(reasons) or "--resume auto starts a run where there is none to go on with"
        if (folder / "model").exists():
            found = "and model/ holds the result of a run; set output_dir to another folder, or use --overwrite"
        raise ValueError(f"{checkpoints} holds no checkpoint to resume from: {found}")
    return Claim(folder, notes=[f"{checkpoints} holds no checkpoint: a new run starts"])


def _move_aside(folder: Path, names: list[str]) -> str:
    number = 1
    while (folder / f"replaced-{number}").exists():
        number += 1
    aside = folder / f"replaced-{number}"
    aside.mkdir()
    for name in [*names, *(path.name for path in folder.glob("rejected*.jsonl"))]:
        os.rename(folder / name, aside / name)
    return f"the run that was in {folder} is now in {aside}; remove that folder when you do not need it"


def unclaimed(folder: Path, resume: bool | str) -> Claim:
    """How a run begins in a folder without a claim.

    Raises:
        ValueError: there are checkpoints, and `resume` is not set.
    """
    if not resume:
        if saved_checkpoints(folder / "checkpoints"):
            raise ValueError(
                f"{folder} holds checkpoints already: set resume to go on, or output_dir to another folder"
            )
        return Claim(folder)
    checkpoint, progress, notes = newest_valid(folder / "checkpoints")
    for note in notes:
        print(f"warning: {note}")
    return Claim(folder, checkpoint, progress)


def identify(begun: Claim, groups: tuple[Any, ...], data: Any, accelerator: Accelerator) -> None:
    """Give a new run its identity, or compare a run that goes on with its checkpoint. Called on all ranks.

    Args:
        groups: all arguments of the run.
        data: its `TrainingData`.

    Raises:
        ValueError: something differs with which the run cannot go on; names all such settings.
    """

    def work() -> tuple[dict[str, Any], dict[str, Any], list[str]]:
        folder, before = begun.folder, begun.progress.get("run", {})
        settings = {**yaml.safe_load(resolved(*groups)), "ranks": accelerator.num_processes}
        versions = {"python": platform.python_version(), "albef-hf": __version__}
        versions |= {package: importlib.metadata.version(package) for package in PACKAGES}
        now = {"config": settings, "data": data_fingerprint(data), "versions": versions}
        changes = compare_settings(before, now) if before else {}
        record = _read_record(folder / "run.json") if begun.checkpoint is not None else {}
        identity = {"id": record.get("id") or before.get("id") or secrets.token_hex(8), **now}
        notes = [f"{key}: {old!r} before, {new!r} now" for key, (old, new) in changes.items()]
        if begun.checkpoint is not None and before.get("id", identity["id"]) != identity["id"]:
            notes.append(f"warning: {begun.checkpoint} was written by another run ({before['id']}), not by this one")
        if begun.checkpoint is None or not record:
            write_text(folder / "run.json", json.dumps(identity, indent=1))
        if begun.checkpoint is None or not (folder / "config.yaml").exists():
            write_text(folder / "config.yaml", resolved(*groups))
        write_text(folder / "versions.json", json.dumps(versions, indent=2))
        return identity, changes, notes

    begun.identity, begun.changes, notes = on_main(accelerator, work)
    for note in notes:
        accelerator.print(note)


def _read_record(path: Path) -> Mapping[str, Any]:
    try:
        record = json.loads(path.read_bytes())
        return record if isinstance(record, dict) else {}
    except (OSError, ValueError):
        return {}
