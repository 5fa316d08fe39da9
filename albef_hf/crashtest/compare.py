"""What differs between two runs of the same settings: tensors, log, report and every other file."""

import json
import re
from pathlib import Path
from typing import Any

import torch

from ..data.hashing import file_digest
from ..data.lines import read_lines
from ..training.checkpoints import check_checkpoint, saved_checkpoints
from ..training.parts import KINDS, Saved

# What is new in each start of a run, or measures time, or says how it was started.
TIMES = ("seconds", "samples_per_second")
OWN = re.compile(r"(checkpoints/.*|run\.json|run\.lock|log\.jsonl|(model/)?curves\.png|replaced-\d+/.*)")
TIMED = re.compile(
    r'<div class="tile"><b>[^<]*</b><span>(training time|samples per second \(median\))</span></div>'
    r'|<figure class="curves">.*?</figure>|\n\| training time \| [^\n]*|\n(workers|resume|overwrite): \w+',
    re.DOTALL,
)
WARNED = re.compile(r"<section>\n<h2>Warnings</h2>.*?</section>\n", re.DOTALL)


def differences(reference: Path, other: Path, disturbed: bool = False) -> list[str]:
    """Compare two run folders.

    Args:
        disturbed: `other` had a fault of which it warns: warnings may differ.

    Returns: what differs; empty: all tensors of the last checkpoint are bit for bit equal, and so is everything else.
    """
    found = final_state(reference, other) + log_rows(reference / "log.jsonl", other / "log.jsonl", disturbed)
    names = [{path.relative_to(folder).as_posix() for path in folder.rglob("*")} for folder in (reference, other)]
    for name in sorted(names[0] | names[1]):
        if OWN.fullmatch(name) or (reference / name).is_dir() or re.fullmatch(r"checkpoints|replaced-\d+", name):
            continue
        if name not in names[1]:
            found.append(f"{name} is missing")
        elif name not in names[0]:
            found.append(f"{name} is left over")
        elif content(reference / name, disturbed) != content(other / name, disturbed):
            found.append(f"{name} differs")
    return found


def content(path: Path, disturbed: bool) -> Any:
    """What a file says, without times."""
    if path.suffix not in (".html", ".md", ".yaml"):
        return file_digest(path)
    text = TIMED.sub("", path.read_text(encoding="utf-8"))
    return WARNED.sub("", text) if disturbed else text


def final_state(reference: Path, other: Path) -> list[str]:
    """What differs between the last checkpoints of two runs."""
    last = [saved_checkpoints(folder / "checkpoints")[-1:] for folder in (reference, other)]
    if not last[1] or last[0][0].name != last[1][0].name:
        return [f"the last checkpoint is {last[1][0].name if last[1] else 'missing'}, not {last[0][0].name}"]
    return checkpoint_differences(last[0][0], last[1][0])


def checkpoint_differences(reference: Path, other: Path) -> list[str]:
    """What differs between two checkpoints: names of tensors, keys of `progress`."""
    found = []
    for kind in KINDS:
        with Saved(reference, kind) as first, Saved(other, kind) as second:
            one, two = first.shapes, second.shapes
            for name in sorted(one.keys() | two.keys()):
                if name not in one or name not in two or not same_bits(first.whole(name), second.whole(name)):
                    found.append(f"{kind}: {name}")
    one, two = (leaves(check_checkpoint(path)) for path in (reference, other))
    return found + [f"progress: {key}" for key in sorted(one.keys() | two.keys()) if one.get(key) != two.get(key)]


def same_bits(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Equal type, shape and bits: unlike `torch.equal`, a NaN equals itself and 0 is not -0."""
    if one.dtype != two.dtype or one.shape != two.shape:
        return False
    return torch.equal(one.contiguous().reshape(-1).view(torch.uint8), two.contiguous().reshape(-1).view(torch.uint8))


def leaves(progress: dict[str, Any]) -> dict[str, Any]:
    """`progress` of a checkpoint by keys such as `position.sample`, without the run's identity."""
    found: dict[str, Any] = {}
    for key, value in progress.items():
        if key != "run":
            found |= (
                {f"{key}.{name}": each for name, each in value.items()} if isinstance(value, dict) else {key: value}
            )
    return found


def log_rows(reference: Path, other: Path, disturbed: bool) -> list[str]:
    """What differs between two logs: rows of training and evaluation, and which warnings there are."""

    def rows(path: Path, kind: str) -> list[str]:
        return [
            json.dumps({key: value for key, value in row.items() if key not in TIMES}, sort_keys=True)
            for row in read_lines(path)
            if row["kind"] == kind
        ]

    found = []
    for kind in ("train", "evaluation", *(() if disturbed else ("warning",))):
        one, two = rows(reference, kind), rows(other, kind)
        if one != two:
            wrong = next(
                (n for n, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two))
            )
            found.append(f"log: {kind} row {wrong + 1} ({len(two)} rows, not {len(one)})")
    return found


def fingerprint(folder: Path) -> dict[str, str]:
    """The digest of every file in a run folder but its lock."""
    return {
        path.relative_to(folder).as_posix(): file_digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.lock"
    }
