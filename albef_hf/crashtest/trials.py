"""The trials: each group disturbs runs in one way, and says how many of them became what they should be."""

import shutil
import signal
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..training.checkpoints import saved_checkpoints, step_of
from .compare import differences, fingerprint
from .damage import DAMAGES
from .inside import Fault
from .runs import Outcome, Recipe, Strike

STATUS = {signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGINT: 130}
LEFT = {143, -signal.SIGTERM, 1}  # how ranks end that the launcher asks to, or that lose the others
TRIES = 12  # attempts after which a run should be complete
DURABLE = 10.0  # seconds from a signal to the end of a run, beside the steps under way


@dataclass
class Group:
    """The outcome of a group of trials.

    Attributes:
        passed: trials in which all was as it should be. tried: all trials.
        faults: what was wrong, a line each.
        notes: for the verdict.
        uncovered: what could not be tried with this recipe.
    """

    name: str
    tried: int = 0
    passed: int = 0
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    uncovered: list[str] = field(default_factory=list)

    def count(self, what: str, wrong: list[str]) -> None:
        """Add a trial. wrong: empty if all was as it should be."""
        self.tried += 1
        self.passed += not wrong
        if wrong:
            self.faults.append(f"{what}: {'; '.join(wrong[:6])}{' ...' if len(wrong) > 6 else ''}")
            print(f"  FAILED {self.faults[-1]}", flush=True)


class Bench:
    """A recipe, its undisturbed run, and one that was killed after two checkpoints.

    Args:
        recipe: to be tried.
        random: chooses moments.
    """

    def __init__(self, recipe: Recipe, random: np.random.Generator) -> None:
        self.recipe, self.random, self.notes = recipe, random, recipe.folder / "notes"
        self.calls: list[str] = []
        self.reference = self.middle = recipe.folder

    def prepare(self, saved: int) -> list[str]:
        """Make the undisturbed run twice, and one that ends after two checkpoints, of which step `saved` is the last.

        Returns: what differs between the two undisturbed runs.
        """
        first = self.recipe.attempt("--resume=auto", notes=self.notes)
        if not first.complete:
            raise ValueError(f"the run does not end undisturbed ({first.codes}):\n{first.text[-2000:]}")
        self.reference = self.recipe.keep("reference")
        self.recipe.learn(first)
        second = self.recipe.attempt("--resume=auto")
        self.recipe.learn(second)
        self.calls = [line.removeprefix("call ") for line, _ in second.told if line.startswith("call ")]
        wrong = differences(self.reference, self.recipe.run)
        self.recipe.clear()
        self.recipe.attempt("--resume=auto", fault=Fault("stop", saved))
        self.middle = self.recipe.keep("middle")
        return wrong

    def from_middle(self) -> None:
        """Put the run that ended after two checkpoints into the place of the run."""
        self.recipe.clear()
        shutil.copytree(self.middle, self.recipe.run)

    def finish(self, *flags: str, disturbed: bool = False) -> list[str]:
        """Go on until the run is complete. Returns: what differs from the undisturbed one."""
        outcome = Outcome([], "")
        for _ in range(TRIES):
            outcome = self.recipe.attempt("--resume=auto", *flags)
            if outcome.complete:
                return differences(self.reference, self.recipe.run, disturbed)
            if not disturbed:
                break
        return [f"it does not go on to the end ({outcome.codes}): {last_lines(outcome.text)}"]

    def keep_faulty(self, wrong: list[str], name: str) -> None:
        """Leave the folder of a run that is not as it should be for the user to look at."""
        if wrong and self.recipe.run.exists():
            self.recipe.keep(f"failed-{name}")
        self.recipe.clear()


def last_lines(text: str) -> str:
    """The end of what a run printed, on one line."""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return " / ".join(lines[-3:])[-400:]


def kills(bench: Bench, number: int) -> Group:
    """Random SIGKILLs in every phase, up to eight in one run, each followed by a resume; second starts between."""
    group, phases, recipe, total, refused = Group("kills"), Counter[str](), bench.recipe, 0, 0
    while total < number:
        wrong: list[str] = []
        left = min(int(bench.random.integers(1, 9)), number - total)
        attempts = 0
        while True:
            strike = recipe.moment(bench.random, signal.SIGKILL) if left and attempts < 4 * TRIES else None
            outcome = recipe.attempt("--resume=auto", strike=strike)
            attempts += 1
            if outcome.struck:
                phases[outcome.struck] += 1
                left, total = left - 1, total + 1
                if recipe.run.exists() and bench.random.random() < 0.25:
                    wrong += second_start(bench)
                    refused += 1
                continue
            if not outcome.complete:
                wrong.append(f"it does not go on ({outcome.codes}): {last_lines(outcome.text)}")
            break
        wrong = wrong or differences(bench.reference, recipe.run)
        group.count(f"run {group.tried + 1}", wrong)
        bench.keep_faulty(wrong, f"kills-{group.tried}")
        print(f"  {total} of {number} kills, {group.passed} of {group.tried} runs equal", flush=True)
    group.notes.append(f"{total} kills ({', '.join(f'{n} in {name}' for name, n in phases.items())})")
    group.notes.append(f"{refused} second starts in a used folder")
    return group


def second_start(bench: Bench) -> list[str]:
    """Start without --resume in a used folder: refused, and nothing changes."""
    before = fingerprint(bench.recipe.run)
    if not before:
        return []
    outcome = bench.recipe.attempt()
    after = fingerprint(bench.recipe.run)
    wrong = (
        [] if 0 not in outcome.codes and "holds a run already" in outcome.text else ["a second start was not refused"]
    )
    return wrong + ([] if before == after else ["a second start changed the folder"])


def file_calls(bench: Bench, number: int, kind: str) -> Group:
    """Exit, or an error of the file system, at file calls of the run."""
    group, recipe = Group("exits at file calls" if kind == "exit" else f"{kind} at file calls"), bench.recipe
    chosen = spread(range(len(bench.calls)), number)
    for at in chosen:
        recipe.clear()
        broken = recipe.attempt("--resume=auto", fault=Fault(kind, at))
        wrong = (
            [] if len([line for line, _ in broken.told if line.startswith("call ")]) > at else ["it was not reached"]
        )
        wrong = wrong or bench.finish(disturbed=kind != "exit")
        group.count(f"call {at}, {bench.calls[at]}", wrong)
        bench.keep_faulty(wrong, f"{kind}-{at}")
    group.notes.append(f"{len(chosen)} of {len(bench.calls)} calls that may write")
    return group


def spread(things: Iterable[Any], number: int) -> list[Any]:
    """`number` of the things, evenly spread; below 0: all."""
    every = list(things)
    count = len(every) if number < 0 else min(number, len(every))
    return [every[int(at)] for at in np.linspace(0, len(every) - 1, count)] if count else []


def signals(bench: Bench, number: int, workers: tuple[int, ...]) -> Group:
    """SIGTERM, SIGINT and SIGUSR1 at random moments of training: saved in time, the right status, an exact resume."""
    group, phases, slowest = Group("signals"), Counter[str](), 0.0
    names = list(STATUS)
    for trial in range(number):
        count = workers[trial % len(workers)]
        strike = bench.recipe.moment(
            bench.random, names[trial // len(workers) % 3], ("step", "save", "evaluate", "finish")
        )
        outcome = bench.recipe.attempt("--resume=auto", f"--workers={count}", strike=strike)
        phases[f"{outcome.struck or 'after the end'}"] += 1
        wrong = status_faults(bench, outcome, strike)
        slowest = max(slowest, outcome.seconds if outcome.struck else 0.0)
        wrong += bench.finish(f"--workers={count}")
        name = signal.Signals(strike.number).name
        what = f"{name} in {outcome.struck}, {count} workers, rank {strike.rank}, group {strike.group}"
        group.count(what, wrong)
        bench.keep_faulty(wrong, f"signal-{trial}")
    group.notes.append(", ".join(f"{n} in {name}" for name, n in phases.items()))
    group.notes.append(f"the slowest ended after {slowest:.1f} s")
    return group


def status_faults(bench: Bench, outcome: Outcome, strike: Strike) -> list[str]:
    """What is wrong about how a run ended that was asked to stop."""
    if not outcome.struck:
        return []
    ended = any(line == "done" for line, _ in outcome.told)
    status = STATUS[signal.Signals(strike.number)]
    if set(outcome.codes) <= {0, -strike.number} and not differences(bench.reference, bench.recipe.run):
        return []  # it came after the run was complete
    rest = {0, status} | (LEFT if len(outcome.codes) > 1 else set())
    right = set(outcome.codes) <= rest and (status in outcome.codes or ended)
    wrong = [] if right else [f"it ended with {outcome.codes}, not {status}: {last_lines(outcome.text)}"]
    saved = [step_of(path) for path in saved_checkpoints(bench.recipe.run / "checkpoints")]
    steps = outcome.counted("step")
    lost = len(set(outcome.codes)) > 1  # one rank left the others, which cannot end the step that they began
    if saved[-1:] != [steps] and not (lost and saved[-1:] == [steps - 1]):
        wrong.append(f"{steps} steps were made, and the last checkpoints are of {saved}")
    allowed = DURABLE + 3 * sum(bench.recipe.gaps.values())
    return wrong + ([] if outcome.seconds < allowed else [f"it ended after {outcome.seconds:.1f} s"])


def damages(bench: Bench, number: int) -> Group:
    """Damage of the newest checkpoint: the one before is used, the damaged one is kept, and the end is equal."""
    group = Group("damaged checkpoints")
    for what, damage in spread(DAMAGES.items(), number):
        bench.from_middle()
        newest = saved_checkpoints(bench.recipe.run / "checkpoints")[-1]
        damage(newest)
        wrong = bench.finish()
        if not wrong and not newest.with_name(f"{newest.name}.damaged").exists():
            wrong = ["it was not kept aside"]
        group.count(what, wrong)
        bench.keep_faulty(wrong, "damage")
    return group


def poisons(bench: Bench, number: int) -> Group:
    """NaN, infinity and 1e12 in one step: nothing moves in it, on any rank, and the run goes on."""
    group = Group("poisoned steps")
    values = [("pixel", np.nan), ("pixel", np.inf), ("loss", np.nan), ("loss", np.inf), ("loss", 1e12)]
    values += [("gradient", np.nan), ("gradient", np.inf), ("statistic", np.nan), ("statistic", np.inf)]
    for place, value, at in spread(((*bad, at) for bad in values for at in (0, 3)), number):
        rank = int(bench.random.integers(bench.recipe.ranks))
        what = f"{place} {value:g} in step {at + 1} on rank {rank}"
        outcome = bench.recipe.attempt(fault=Fault("poison", at, place, float(value), rank))
        told = [line for line, _ in outcome.told]
        moved = [line.split(" ", 2) for line in told if line.startswith("moved")]
        if "unused" in told:
            group.uncovered.append(f"{place}: this method has no such number")
        else:
            wrong = [] if outcome.complete else [f"it ended with {outcome.codes}: {last_lines(outcome.text)}"]
            wrong += [f"on rank {rank} moved: {names}" for _, rank, names in moved if names]
            wrong += [] if len(moved) == bench.recipe.ranks else ["the step was not reached on every rank"]
            group.count(what, wrong)
        bench.recipe.clear()
    return group
