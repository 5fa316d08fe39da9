"""Trials of a run that goes on under other circumstances, and of the comparison itself."""

import itertools
import shutil
from pathlib import Path

import yaml

from ..training.changes import FIXED
from ..training.checkpoints import saved_checkpoints, step_of
from .compare import checkpoint_differences, differences, fingerprint
from .damage import Controls
from .inside import Fault
from .trials import Bench, Group, last_lines, spread

# Settings that change nothing of the final state, with another value.
FREE = {"workers": 1, "log_every": 3, "save_every": 4, "evaluate_every": 3, "keep_checkpoints": 1, "keep_every": 2}

# How differences of the final state begin, beside those of rows, reports and weights chosen at other steps.
STATE = ("the last checkpoint", "model: ", "optimizer: ", "progress: step", "progress: position", "progress: guard")
MOVED = 16  # file calls in which --overwrite moves a run aside and the next begins
SEEDS = ("random numbers", "learning rates")  # what `inside.describe` writes of each step


def settings(bench: Bench) -> dict:
    """The resolved configuration of the undisturbed run."""
    return yaml.safe_load((bench.reference / "config.yaml").read_text(encoding="utf-8"))


def other_value(key: str, value: object) -> object | None:
    """Another value for a setting; None: there is none that is sure to be accepted."""
    if key == "optimizer":
        return "sgd" if value != "sgd" else "adamw"
    if key == "method":
        return "byol" if value != "byol" else "barlow_twins"
    if isinstance(value, bool):
        return not value
    if key in ("image_size", "projection_dim", "queue_size") and isinstance(value, int):
        return 2 * value or 8
    return value + 1 if isinstance(value, int) else None


def circumstances(bench: Bench, number: int) -> Group:
    """Changed settings: exact, or refused by name with nothing touched."""
    group = Group("changed circumstances")
    for key, value in spread(FREE.items(), number):
        bench.from_middle()
        outcome = bench.recipe.attempt("--resume=auto", f"--{key}={value}")
        found = differences(bench.reference, bench.recipe.run, disturbed=True) if outcome.complete else []
        wrong = [line for line in found if key == "workers" or line.startswith(STATE)]
        group.count(f"{key} = {value}", wrong if outcome.complete else [last_lines(outcome.text)])
    others = {key: other_value(key, settings(bench).get(key)) for key in sorted(FIXED)}
    unknown = [key for key, other in others.items() if other is None]
    group.uncovered.append(f"settings of which no other value is known: {', '.join(unknown)}")
    for key, other in spread(((key, other) for key, other in others.items() if other is not None), number):
        bench.from_middle()
        before = fingerprint(bench.recipe.run)
        outcome = bench.recipe.attempt("--resume=auto", f"--{key}={other}")
        wrong = [] if 0 not in outcome.codes and key in outcome.text else [f"not refused: {last_lines(outcome.text)}"]
        wrong += [] if fingerprint(bench.recipe.run) == before else ["the folder was changed"]
        group.count(f"{key} = {other}, to be refused", wrong)
    batches(bench, group, number)
    bench.recipe.clear()
    return group


def batches(bench: Bench, group: Group, number: int) -> None:
    """Other batches, accumulations and ranks: the samples that follow are those of the undisturbed run, in order."""
    values, ranks = settings(bench), bench.recipe.ranks
    size, times = values["batch_size"], values["accumulation"]
    tried = [(size * 2, times, ranks), (size, times * 2, ranks), (size, times, 3 - min(ranks, 2))]
    tried += [(size // 2, times * 2, ranks), (size // 2, times, ranks * 2)] if size % 2 == 0 and size > 2 else []
    for batch_size, accumulation, processes in spread(tried, number):
        notes = bench.recipe.folder / "notes-of-other-batches"
        shutil.rmtree(notes, ignore_errors=True)
        bench.from_middle()
        flags = (f"--batch_size={batch_size}", f"--accumulation={accumulation}", "--workers=0")
        outcome = bench.recipe.attempt("--resume=auto", *flags, ranks=processes, notes=notes)
        what = f"batch {batch_size} x {accumulation} accumulated x {processes} ranks"
        if not outcome.complete:
            named = all(name in outcome.text for name in ("cannot go on with other settings", "before"))
            group.count(f"{what}, refused", [] if named else [last_lines(outcome.text)])
            continue
        group.count(what, other_samples(bench, samples(notes, processes)))


def samples(notes: Path, ranks: int) -> list[str]:
    """Epoch and position of each sample that all ranks drew, in order."""
    lines = [(notes / f"samples-{rank}.txt") for rank in range(ranks)]
    drawn = [path.read_text().splitlines() if path.exists() else [] for path in lines]
    return " ".join(itertools.chain.from_iterable(zip(*drawn, strict=False))).split()


def reload(bench: Bench) -> Group:
    """Go on, and compare the state before the first step with the checkpoint, and seeds, rates and samples with those
    of the undisturbed run. This names what is not restored."""
    group, notes, ranks = Group("reload"), bench.recipe.folder / "notes-of-a-resume", bench.recipe.ranks
    middle = saved_checkpoints(bench.middle / "checkpoints")[-1]
    bench.from_middle()
    outcome = bench.recipe.attempt("--resume=auto", notes=notes)
    wrong = [] if outcome.complete else [last_lines(outcome.text)]
    if not wrong:
        wrong = checkpoint_differences(middle, notes / "checkpoints" / middle.name)
        for rank in range(ranks):
            expected, found = (
                [line.split(" ", 1) for line in (folder / f"steps-{rank}.txt").read_text().splitlines()]
                for folder in (bench.notes, notes)
            )
            later = zip(expected[step_of(middle) :], found, strict=False)
            names = {name for one, two in later for name, a, b in zip(SEEDS, one, two, strict=True) if a != b}
            wrong += [f"rank {rank}: other {name}" for name in sorted(names)]
        wrong += other_samples(bench, samples(notes, ranks))
    group.count(f"from {middle.name}", wrong)
    bench.recipe.clear()
    return group


def other_samples(bench: Bench, drawn: list[str]) -> list[str]:
    """What is wrong with the samples that a run drew which went on from the middle."""
    values, ranks = settings(bench), bench.recipe.ranks
    step = step_of(saved_checkpoints(bench.middle / "checkpoints")[-1])
    used = step * values["batch_size"] * values["accumulation"] * ranks
    expected = samples(bench.notes, ranks)[used:]
    common = min(len(drawn), len(expected))
    return [] if drawn[:common] == expected[:common] else ["other samples follow"]


def overwrites(bench: Bench, number: int) -> Group:
    """Exits at file calls of a start with --overwrite in the folder of another run: nothing of that run stays."""
    group, recipe = Group("overwritten runs"), bench.recipe
    anew = ("--resume=false", "--overwrite=true")
    other = recipe.attempt(f"--seed={settings(bench)['seed'] + 1}")
    used = {"another seed": recipe.keep("used"), "the same settings": bench.reference}
    for at, what in spread(itertools.product(range(MOVED), used), number if other.complete else 0):
        shutil.copytree(used[what], recipe.run)
        recipe.attempt(*anew, fault=Fault("exit", at))
        outcome = recipe.attempt("--resume=auto")
        if not outcome.complete and ("seed: " in outcome.text or "--overwrite" in outcome.text):
            outcome = recipe.attempt(*anew)  # refused, since what is there is of the other run
        wrong = differences(bench.reference, recipe.run) if outcome.complete else [last_lines(outcome.text)]
        group.count(f"call {at}, over a run of {what}", wrong)
        bench.keep_faulty(wrong, f"overwrite-{at}")
    return group


def controls(bench: Bench, number: int) -> Group:
    """Negative controls: a component of state is put back to the start, and the comparison has to notice."""
    group = Group("negative controls")
    initial = saved_checkpoints(bench.notes / "checkpoints")[0]
    middle = saved_checkpoints(bench.middle / "checkpoints")[-1]
    named = yaml.safe_load((bench.notes / "components.json").read_text())
    known = Controls(initial, middle, named)
    for component in spread(known.names, number):
        bench.from_middle()
        known.put_back(bench.recipe.run / "checkpoints" / middle.name, component)
        noticed(bench, group, component)
    for kind, what in (("random", "random numbers"), ("rates", "learning rates")):
        bench.from_middle()
        if kind == "random" and not (bench.notes / "random").exists():
            group.uncovered.append("random numbers: no step of this recipe draws any on the training device")
            continue
        noticed(bench, group, what, Fault(kind))
    bench.recipe.clear()
    if known.unmoved:
        group.uncovered.append(f"state that had not changed: {', '.join(known.unmoved)}")
    return group


def noticed(bench: Bench, group: Group, what: str, fault: Fault | None = None) -> None:
    """Go on, and count whether the comparison notices."""
    outcome = bench.recipe.attempt("--resume=auto", fault=fault)
    if any(line == "unused" for line, _ in outcome.told):
        group.uncovered.append(f"{what}: the same at the start and later")
        return
    found = differences(bench.reference, bench.recipe.run) if outcome.complete else ["refused"]
    found = found or [f"{path.name} was set aside" for path in bench.recipe.run.glob("checkpoints/*.damaged")]
    group.count(what, [] if found else ["put back to the start, and nothing noticed"])
    print(f"  {what}: {found[0] if found else 'not noticed'}{f' and {len(found) - 1} more' if len(found) > 1 else ''}")
