"""Run every image-only method of a config with several seeds, and write one table:

python scripts/compare_image_methods.py configs/compare_emoji.yaml --seeds 1 2 3

The config is one for `scripts/pretrain.py` with `methods` added: the arguments that each method sets itself. Each run
has its run folder under `output_dir`. The baselines (raw pixels, the same network untrained, the same network trained
with labels for `supervised_epochs`) are measured with the same seeds. Finished runs are not repeated, others go on.
"""

import sys

sys.path.sort(key=lambda folder: folder.endswith("scripts"))  # last: `import evaluate` means the library

import argparse
import json
import os
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from albef_hf.reporting.log import read_log
from albef_hf.training.finished import FREE, is_complete
from albef_hf.training.limits import read_settings

SCRIPTS = Path(__file__).resolve().parent
COLUMNS = {"knn_20": "20 neighbors", "knn_200": "200 neighbors", "logistic_regression": "logistic regression"}


def run(script: str, *arguments: Any) -> None:
    command = [sys.executable, *(["-m", "accelerate.commands.launch"] if script == "pretrain.py" else [])]
    subprocess.run([*command, str(SCRIPTS / script), *map(str, arguments)], check=True)


def check_distinct(flag: str, values: Sequence[Any]) -> None:
    """Raises:
    ValueError: a value stands there twice, which would be counted as two runs.
    """
    twice = {str(value) for value in values if list(values).count(value) > 1}
    if twice:
        raise ValueError(f"--{flag}: {', '.join(sorted(twice))} stands there twice, but is one run")


def last_metrics(run_folder: Path) -> dict[str, Any]:
    """The metrics of the last evaluation of a run.

    Raises:
        ValueError: it was never evaluated.
    """
    evaluations = read_log(run_folder / "log.jsonl").evaluations
    if not evaluations:
        raise ValueError(f"{run_folder} was never evaluated: set evaluation_dataset in the config")
    return evaluations[-1]["metrics"]


def measure(config: dict[str, Any], seeds: list[int], folder: Path) -> list[dict[str, Any]]:
    """Run what is missing. Returns: a row {name, seed, accuracies} for every method, baseline and seed."""
    methods, epochs = config.pop("methods"), config.pop("supervised_epochs")
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in seeds:
        for name, options in methods.items():
            run_folder, run_config = folder / f"{name}-{seed}", folder / f"{name}.yaml"
            run_config.write_text(yaml.safe_dump({**config, "method": name, **(options or {})}), encoding="utf-8")
            command = [run_config, "--seed", seed, "--output_dir", run_folder]
            if not is_complete(run_folder, command, "report.html"):
                run("pretrain.py", *command, "--resume", "auto")
            rows.append({"name": name, "seed": seed, **last_metrics(run_folder)})
        baselines, run_config = folder / f"baselines-{seed}.jsonl", folder / "baselines.yaml"
        record = baselines.with_suffix(".json")
        wanted = json.dumps(
            {key: config[key] for key in sorted(config) if key not in FREE} | {"supervised_epochs": epochs}
        )
        if baselines.is_file() and (not record.is_file() or record.read_text(encoding="utf-8") != wanted):
            raise ValueError(
                f"{baselines} was measured with other settings: remove it to measure again, or choose another "
                "output_dir"
            )
        if not baselines.is_file():
            record.write_text(wanted, encoding="utf-8")
            run_config.write_text(yaml.safe_dump(config), encoding="utf-8")
            partial = baselines.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            flags = ("--baselines", "--supervised_epochs", epochs, "--seed", seed, "--output", partial)
            run("evaluate_features.py", run_config, *flags)
            os.replace(partial, baselines)
        rows += [json.loads(line) for line in baselines.read_text().splitlines()]
    return rows


def table(rows: list[dict[str, Any]], columns: dict[str, str], what: str) -> str:
    """A Markdown table of means in percent, with the standard deviation over seeds where there are several.

    Args:
        columns: key in a row -> title of the column.
        what: title of the first column, which has the names.
    """
    lines = [f"| {what} | " + " | ".join(columns.values()) + " |", "|---" * (1 + len(columns)) + "|"]
    for name in dict.fromkeys(row["name"] for row in rows):
        cells = []
        for column in columns:
            values = [100 * row[column] for row in rows if row["name"] == name]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="YAML file such as configs/compare_emoji.yaml")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="seeds of the runs")
    options = parser.parse_args()
    check_distinct("seeds", options.seeds)
    config = read_settings(options.config)
    for key in ("methods", "supervised_epochs", "output_dir"):
        if key not in config:
            raise ValueError(f"{options.config}: {key} is missing")
    if not config["methods"] or not isinstance(config["methods"], dict):
        raise ValueError(f"{options.config}: methods names each method with what it sets, such as {{byol: {{}}}}")
    folder = Path(config.pop("output_dir"))
    rows = measure(config, options.seeds, folder)
    text = table(rows, COLUMNS, "features")
    (folder / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
