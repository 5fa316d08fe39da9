"""Try on this machine whether a run of a recipe survives what may happen to it:

python -m albef_hf.crashtest [--kills 20] [--ranks 1] scripts/pretrain.py configs/quickstart.yaml [--key value ...]

It makes short runs of the recipe below a folder of its own, kills them, asks them to stop, breaks their writes,
damages their checkpoints, puts bad numbers into their steps, goes on under other circumstances, and compares each with
a run that nothing disturbed: every tensor of the last checkpoint bit for bit, the log, the report and every other
file. It ends with 0 if all is as it should be, and otherwise with 1.
"""

import argparse
import os
import shutil
import time
from pathlib import Path

import numpy as np

from .changes import circumstances, controls, overwrites, reload
from .runs import Recipe
from .trials import Bench, Group, damages, file_calls, kills, poisons, signals

MARK = "crashtest.txt"
GROUPS = ("reload", "kills", "calls", "writes", "signals", "overwrites", "damages", "poisons", "changes", "controls")
NEVER = (
    "power loss and other losses of what the system had not written to the disk",
    "curves.png and times, which differ from run to run",
)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m albef_hf.crashtest", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs at random moments (default: 20)")
    parser.add_argument("--calls", type=int, default=20, help="file calls at which a run exits; -1: all (default: 20)")
    parser.add_argument("--writes", type=int, default=10, help="file calls that fail, -1: all (default: 10)")
    parser.add_argument("--signals", type=int, default=12, help="requests to stop (default: 12)")
    parser.add_argument("--each", type=int, default=-1, help="trials of each other kind, -1: all (default: -1)")
    parser.add_argument("--workers", default="0,2", help="data workers of the runs that get signals (default: 0,2)")
    parser.add_argument("--ranks", type=int, default=1, help="processes of a run (default: 1)")
    parser.add_argument("--steps", type=int, default=8, help="steps of a run, at least 8 (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the moments (default: 0)")
    parser.add_argument("--only", default=",".join(GROUPS), help=f"groups of trials (default: {','.join(GROUPS)})")
    parser.add_argument("--folder", default="runs/crashtest", help="for all that is written (default: runs/crashtest)")
    parser.add_argument("script", help="the training script")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="its configuration and flags")
    return parser.parse_args(argv)


def own_folder(path: Path) -> Path:
    """An empty folder for this test, in place of what an earlier one left.

    Raises:
        ValueError: the folder holds something else.
    """
    if path.exists() and any(path.iterdir()) and not (path / MARK).is_file():
        raise ValueError(f"{path} holds something that is not from this test: set --folder to a new folder")
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    (path / MARK).write_text("made by python -m albef_hf.crashtest; the next test here removes this folder\n")
    return path.resolve()


def chosen_groups(arguments: argparse.Namespace) -> list[str]:
    """The names of the groups to try.

    Raises:
        ValueError: one is unknown.
    """
    names = arguments.only.split(",")
    unknown = [name for name in names if name not in GROUPS]
    if unknown:
        raise ValueError(f"--only {','.join(unknown)}: there are {', '.join(GROUPS)}")
    return names


def try_all(bench: Bench, arguments: argparse.Namespace) -> list[Group]:
    """Every chosen group of trials, in turn."""
    trials = {
        "reload": lambda: [reload(bench)],
        "kills": lambda: [kills(bench, arguments.kills)],
        "calls": lambda: [file_calls(bench, arguments.calls, "exit")],
        "writes": lambda: [file_calls(bench, arguments.writes, kind) for kind in ("ENOSPC", "EIO")],
        "signals": lambda: [signals(bench, arguments.signals, tuple(map(int, arguments.workers.split(","))))],
        "overwrites": lambda: [overwrites(bench, arguments.each)],
        "damages": lambda: [damages(bench, arguments.each)],
        "poisons": lambda: [poisons(bench, arguments.each)],
        "changes": lambda: [circumstances(bench, arguments.each)],
        "controls": lambda: [controls(bench, arguments.each)],
    }
    groups = []
    for name in chosen_groups(arguments):
        print(f"{name} ...", flush=True)
        begun = time.monotonic()
        groups += trials[name]()
        for group in groups[-2 if name == "writes" else -1 :]:
            print(f"{group.name}: {group.passed} of {group.tried} as they should be; {'; '.join(group.notes)}")
        print(f"  ({time.monotonic() - begun:.0f} s)", flush=True)
    return groups


def main(argv: list[str] | None = None) -> int:
    """Returns: the exit status."""
    arguments = parse(argv)
    chosen_groups(arguments)
    if not arguments.script.endswith(".py") or not Path(arguments.script).is_file():
        raise ValueError(f"{arguments.script!r} is no script: give, e.g., scripts/pretrain.py and its configuration")
    if not hasattr(os, "fork"):
        raise ValueError("the crash test forks processes, which this system cannot: run it on Linux or macOS")
    folder, steps = own_folder(Path(arguments.folder)), max(8, arguments.steps)
    save_every = (steps - 1) // 2
    short = {"max_steps": steps, "save_every": save_every, "evaluate_every": steps // 2, "log_every": 2}
    short |= {"keep_checkpoints": 2, "keep_every": 0, "evaluate_epochs": 0, "report_to": "none", "overwrite": "false"}
    words = [arguments.script, *arguments.words, *(f"--{key}={value}" for key, value in short.items())]
    bench = Bench(Recipe(words, folder, arguments.ranks), np.random.default_rng(arguments.seed))
    print(f"two undisturbed runs of {steps} steps on {arguments.ranks} ranks, below {folder} ...", flush=True)
    wrong = bench.prepare(2 * save_every)
    if wrong:
        print(f"verdict: FAILED: two undisturbed runs differ, so nothing can be compared here: {'; '.join(wrong[:8])}")
        return 1
    groups = try_all(bench, arguments)
    print("\nnot covered:")
    for line in [*NEVER, *(f"{group.name}: {each}" for group in groups for each in dict.fromkeys(group.uncovered))]:
        print(f"  {line}")
    faults = [f"{group.name}: {fault}" for group in groups for fault in group.faults]
    tried = sum(group.tried for group in groups)
    if faults:
        print(f"\nverdict: FAILED: {len(faults)} of {tried} trials, see {folder}", *faults, sep="\n  ")
        return 1
    print(f"\nverdict: passed: {tried} trials, each as an undisturbed run, bit for bit, or refused by name")
    return 0
