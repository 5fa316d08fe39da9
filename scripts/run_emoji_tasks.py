"""Fine-tune on each emoji task from a pre-trained model and from scratch with several seeds, beside baselines:

python scripts/run_emoji_tasks.py --model runs/emoji/model --seeds 1 2 3

Each run has its run folder under `--output_dir`. Finished runs are not repeated, others go on. The table has a row for
every test of a config, measured with the weights that validation chose. Flags after `--` go to every run:
`-- --max_steps 50`.
"""

import sys

sys.path.sort(key=lambda folder: folder.endswith("scripts"))  # last: `import evaluate` means the library

import argparse
import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

from compare_image_methods import check_distinct

from albef_hf.training.finished import is_complete
from albef_hf.training.task_arguments import TASK_GROUPS

SCRIPTS = Path(__file__).resolve().parent
TASKS = {
    "emoji_retrieval": "final_mean_recall",
    "emoji_vqa": "accuracy",
    "emoji_reasoning": "accuracy",
    "emoji_entailment": "accuracy",
    "emoji_grounding": "accuracy",
}


def run_task(command: list[str]) -> None:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", str(SCRIPTS / "finetune.py")]
    subprocess.run([*launcher, *command, "--resume", "auto"], check=True)


def measure(
    names: list[str], starts: dict[str, str], seeds: list[int], folder: Path, flags: list[str]
) -> dict[str, Any]:
    """For each test of each task, the metric of each start for every seed, and the baselines.

    Args:
        starts: name of a start -> its `model_path`; `null` is from scratch.
    """
    figures: dict[str, Any] = {}
    for name in names:
        for start, model in starts.items():
            for seed in seeds:
                run_folder = folder / f"{name}-{start.replace(' ', '_')}-{seed}"
                command = [str(SCRIPTS.parent / "configs" / f"{name}.yaml"), "--model_path", model]
                command += ["--seed", str(seed), "--output_dir", str(run_folder), *flags]
                if not is_complete(run_folder, command, "results.json", TASK_GROUPS):
                    run_task(command)
                results = json.loads((run_folder / "results.json").read_text(encoding="utf-8"))["tests"]
                for test, result in results.items():
                    row = figures.setdefault(f"{name.removeprefix('emoji_')}, {test}", {"starts": {}})
                    row["starts"].setdefault(start, []).append(result["chosen"][TASKS[name]])
                    row["baselines"] = result["baselines"]
    return figures


def table(figures: dict[str, Any]) -> str:
    """A Markdown table of means and standard deviations over seeds, in percent, with the baselines."""
    starts = list(dict.fromkeys(start for row in figures.values() for start in row["starts"]))
    lines = ["| task, test | " + " | ".join(starts) + " | without a model |", "|---" * (2 + len(starts)) + "|"]
    for name, row in figures.items():
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
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="seeds of the runs")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), help="configs to run")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/emoji_tasks"), help="folder of the runs")
    parser.add_argument("flags", nargs="*", help="flags for every run, after --")
    arguments = parser.parse_args()
    check_distinct("seeds", arguments.seeds)
    check_distinct("tasks", arguments.tasks)
    starts = {"pre-trained": arguments.model, "from scratch": "null"}
    text = table(measure(arguments.tasks, starts, arguments.seeds, arguments.output_dir, arguments.flags))
    (arguments.output_dir / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
