"""Each emoji task from a pre-trained model and from scratch over several seeds, beside what needs no model:

python scripts/run_proof_tasks.py --model runs/emoji/model --seeds 1 2 3

Each run is a run folder under `--output_dir`; what has been run is not run again. Figures are of test data, by the
weights that validation chose; every test of a config has a row. What follows `--` goes to every run:
`-- --max_steps 50`.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).resolve().parent
TASKS = {
    "emoji_retrieval": "final_mean_recall",
    "emoji_vqa": "accuracy",
    "emoji_reasoning": "accuracy",
    "emoji_entailment": "accuracy",
    "emoji_grounding": "accuracy",
}


def run_task(name: str, model: str, seed: int, folder: Path, flags: list[str]) -> None:
    script = "finetune_retrieval.py" if name == "emoji_retrieval" else "finetune.py"
    command = [sys.executable, "-m", "accelerate.commands.launch", str(SCRIPTS / script)]
    command += [str(SCRIPTS.parent / "configs" / f"{name}.yaml"), "--model_path", model, "--seed", str(seed)]
    subprocess.run([*command, "--output_dir", str(folder), *flags], check=True)


def measure(
    names: list[str], starts: dict[str, str], seeds: list[int], folder: Path, flags: list[str]
) -> dict[str, Any]:
    """For each test of each task the figures of each start, one a seed, and the baselines.

    Args:
        starts: what to call a start -> its `model_path`; `null` is from scratch.
    """
    found: dict[str, Any] = {}
    for name in names:
        for start, model in starts.items():
            for seed in seeds:
                place = folder / f"{name}-{start.replace(' ', '_')}-{seed}"
                if not (place / "results.json").is_file():
                    run_task(name, model, seed, place, flags)
                results = json.loads((place / "results.json").read_text(encoding="utf-8"))["tests"]
                for test, result in results.items():
                    row = found.setdefault(f"{name.removeprefix('emoji_')}, {test}", {"starts": {}})
                    row["starts"].setdefault(start, []).append(result["chosen"][TASKS[name]])
                    row["baselines"] = result["baselines"]
    return found


def table(found: dict[str, Any]) -> str:
    """Mean and standard deviation over seeds, in percent, as Markdown; baselines are of the test data."""
    starts = list(dict.fromkeys(start for row in found.values() for start in row["starts"]))
    lines = ["| task, test | " + " | ".join(starts) + " | without a model |", "|---" * (2 + len(starts)) + "|"]
    for name, row in found.items():
        cells = []
        for start in starts:
            values = [100 * value for value in row["starts"][start]]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else " (one seed)"
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        baselines = "; ".join(f"{what} {100 * value:.1f}" for what, value in row["baselines"].items())
        lines.append(f"| {name} | " + " | ".join([*cells, baselines]) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/emoji/model", help="folder or Hub id of a pre-trained model")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--output_dir", type=Path, default=Path("runs/proof_tasks"))
    parser.add_argument("flags", nargs="*", help="for every run, after --")
    own = parser.parse_args()
    starts = {"pre-trained": own.model, "from scratch": "null"}
    text = table(measure(own.tasks, starts, own.seeds, own.output_dir, own.flags))
    (own.output_dir / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
