"""Attempts of a run: forked from a process that has imported everything, watched, struck by a signal, waited for."""

import importlib
import os
import runpy
import select
import shutil
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from .inside import Fault, install

PHASES = ("start", "step", "save", "evaluate", "finish")
GRACE = 5.0  # seconds that a launcher leaves to the ranks that are left


@dataclass(frozen=True)
class Strike:
    """A signal after the `count`-th time that a phase begins, and a share of the usual time until the next phase.

    Args:
        rank: that gets it; -1: all.
        group: the whole process group gets it, data workers included.
    """

    number: int
    phase: str
    count: int
    share: float
    rank: int = -1
    group: bool = False


@dataclass
class Outcome:
    """How an attempt ended.

    Attributes:
        codes: exit status of each rank, negative: the signal that ended it.
        text: what the ranks printed.
        told: lines of `inside.install`, each with the seconds since the start.
        struck: the phase in which a signal was sent; empty: the attempt ended before.
        seconds: from the signal, or else from the start, to the end.
    """

    codes: list[int]
    text: str
    told: list[tuple[str, float]] = field(default_factory=list)
    struck: str = ""
    seconds: float = 0.0

    @property
    def complete(self) -> bool:
        """The run reached its end, and nothing that can be made again is missing."""
        return set(self.codes) == {0} and "Traceback" not in self.text and " failed: " not in self.text

    def counted(self, phase: str) -> int:
        """How often a phase began."""
        return sum(line == phase for line, _ in self.told)


class Recipe:
    """What the user runs, below a folder of ours.

    Args:
        words: the script, and what follows it on the command line.
        folder: for everything that is written; the run is always in `folder / "run"`.
        ranks: processes of a run.

    Attributes:
        gaps: the usual seconds from the beginning of a phase to the next one.
        counts: how often each phase begins in an undisturbed run.
    """

    def __init__(self, words: list[str], folder: Path, ranks: int) -> None:
        self.script, self.words = words[0], words[1:]
        self.folder, self.run, self.ranks = folder, folder / "run", ranks
        self.gaps: dict[str, float] = {}
        self.counts: Counter[str] = Counter()
        self.limit = 900.0

    def learn(self, outcome: Outcome) -> None:
        """Take the length of each phase from an undisturbed attempt, and import what it imported."""
        phases = [("start", 0.0), *((line, at) for line, at in outcome.told if line in (*PHASES, "train", "done"))]
        found: dict[str, list[float]] = {}
        for (name, at), (_, later) in zip(phases, phases[1:], strict=False):
            found.setdefault(name, []).append(later - at)
        self.gaps = {name: float(np.mean(values)) for name, values in found.items()}
        self.counts = Counter(name for name, _ in phases)
        self.limit = 60 + 20 * outcome.seconds
        for name in (self.folder / "notes" / "modules.txt").read_text().split():
            if name.split(".")[0] in ("albef_hf", "ssl_methods", "matplotlib", "sklearn", "datasets", "transformers"):
                with suppress(Exception):
                    importlib.import_module(name)

    def moment(self, random: np.random.Generator, number: int, phases: tuple[str, ...] = PHASES) -> Strike:
        """A random moment in a random phase."""
        phase = str(random.choice([name for name in phases if self.counts[name]]))
        count = 1 + int(self.counts[phase] * random.random() ** 2)
        rank = int(random.integers(-1, self.ranks)) if self.ranks > 1 else -1
        return Strike(number, phase, count, float(random.random()), rank, bool(random.random() < 0.5))

    def attempt(
        self,
        *flags: str,
        fault: Fault | None = None,
        strike: Strike | None = None,
        ranks: int = 0,
        notes: Path | None = None,
    ) -> Outcome:
        """Start the script once and wait for its end."""
        ranks = ranks or self.ranks
        output = self.folder / "output.txt"
        output.write_bytes(b"")
        reader, writer = os.pipe()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        sys.stdout.flush()
        sys.stderr.flush()
        pids = []
        for rank in range(ranks):
            pid = os.fork()
            if pid == 0:
                os.close(reader)
                _become(self, list(flags), fault or Fault(), rank, ranks, port, writer, notes)
            pids.append(pid)
        os.close(writer)
        try:
            outcome = Watch(pids, reader, strike, self.gaps, self.limit).wait()
        finally:
            os.close(reader)
        outcome.text = output.read_text(errors="replace")
        return outcome

    def keep(self, name: str) -> Path:
        """Rename the run's folder, so that the next attempt finds none."""
        kept = self.folder / name
        shutil.rmtree(kept, ignore_errors=True)
        self.run.rename(kept)
        return kept

    def clear(self) -> None:
        """Remove the run's folder."""
        shutil.rmtree(self.run, ignore_errors=True)


def _become(
    recipe: Recipe, flags: list[str], fault: Fault, rank: int, ranks: int, port: int, writer: int, notes: Path | None
) -> None:
    """In the forked process: run the script, and exit with its status."""
    code = 1
    try:
        os.setsid()
        handle = os.open(recipe.folder / "output.txt", os.O_WRONLY | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if ranks > 1:
            os.environ |= {} if torch.cuda.is_available() else {"ACCELERATE_USE_CPU": "true"}
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        install(fault, lambda line: os.write(writer, f"{line}\n".encode()), recipe.run, rank, notes)
        sys.argv = [recipe.script, *recipe.words, f"--output_dir={recipe.run}", *flags]
        sys.path.insert(0, str(Path(recipe.script).parent))
        runpy.run_path(recipe.script, run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


class Watch:
    """Waits for the ranks of an attempt, strikes them, and ends those that are left when one fails: see `GRACE`."""

    def __init__(
        self, pids: list[int], reader: int, strike: Strike | None, gaps: dict[str, float], limit: float
    ) -> None:
        self.pids, self.reader, self.strike, self.gaps, self.limit = pids, reader, strike, gaps, limit
        self.codes: dict[int, int] = {}
        self.begun, self.rest = time.monotonic(), b""
        self.told: list[tuple[str, float]] = []
        self.phase, self.due, self.seen = "start", 0.0, 0
        self.struck, self.struck_at, self.failed_at = "", 0.0, 0.0
        self._phase("start")

    def wait(self) -> Outcome:
        """Until every rank has ended."""
        while len(self.codes) < len(self.pids):
            now = time.monotonic()
            pause = min(0.02, max(0.0, self.due - now)) if self.due and not self.struck else 0.02
            if select.select([self.reader], [], [], pause)[0]:
                self._read()
            if self.due and not self.struck and time.monotonic() >= self.due:
                self._hit()
            self._reap()
            self._end_the_rest()
        self._read()
        for pid in self.pids:  # data workers whose process is gone
            with suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
        seconds = time.monotonic() - (self.struck_at or self.begun)
        return Outcome([self.codes[pid] for pid in self.pids], "", self.told, self.struck, seconds)

    def _read(self) -> None:
        while select.select([self.reader], [], [], 0)[0]:
            piece = os.read(self.reader, 65536)
            if not piece:
                time.sleep(0.001)
                return
            *lines, self.rest = (self.rest + piece).split(b"\n")
            for line in lines:
                text = line.decode()
                self.told.append((text, time.monotonic() - self.begun))
                if not text.startswith(("call", "moved", "unused")):
                    self._phase(text)

    def _phase(self, name: str) -> None:
        self.phase = name
        if self.strike is not None and not self.due and name == self.strike.phase:
            self.seen += 1
            if self.seen == self.strike.count:
                self.due = time.monotonic() + self.strike.share * self.gaps.get(name, 0.0)

    def _hit(self) -> None:
        assert self.strike is not None
        self._read()
        self.struck, self.struck_at = self.phase, time.monotonic()
        targets = self.pids if self.strike.rank < 0 else [self.pids[self.strike.rank]]
        for pid in targets:
            if pid not in self.codes:
                try:
                    (os.killpg if self.strike.group else os.kill)(pid, self.strike.number)
                except ProcessLookupError:  # it has no group yet
                    os.kill(pid, self.strike.number)

    def _reap(self) -> None:
        for pid in self.pids:
            if pid not in self.codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self.codes[pid] = os.waitstatus_to_exitcode(status)

    def _end_the_rest(self) -> None:
        now, left = time.monotonic(), [pid for pid in self.pids if pid not in self.codes]
        asked = self.struck and self.strike is not None and self.strike.number != signal.SIGKILL
        if left and any(self.codes.values()) and not self.failed_at:
            self.failed_at = now
            for pid in left:
                os.kill(pid, signal.SIGTERM)
        late = self.failed_at and now > self.failed_at + (6 * GRACE if asked else GRACE)
        if left and (late or now > self.begun + self.limit):
            for pid in left:
                os.kill(pid, signal.SIGKILL)
