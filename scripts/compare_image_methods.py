"""Run every image-only method of a config over several seeds, and write one table:

python scripts/compare_image_methods.py configs/compare_emoji.yaml --seeds 1 2 3

The config is one of `scripts/pretrain.py` with `methods` beside it: for each method the arguments that are its own.
Each run is a run folder under `output_dir`; the baselines (raw pixels, the same network untrained, the same network
trained with labels for `supervised_epochs`) are measured with the same seeds. What has been run is not run again.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from albef_hf.reporting.log import read_log

SCRIPTS = Path(__file__).resolve().parent
COLUMNS = {"knn_20": "20 neighbours", "knn_200": "200 neighbours", "logistic_regression": "logistic regression"}


def run(script: str, *arguments: Any) -> None:
    command = [sys.executable, *(["-m", "accelerate.commands.launch"] if script == "pretrain.py" else [])]
    subprocess.run([*command, str(SCRIPTS / script), *map(str, arguments)], check=True)


def measure(config: dict[str, Any], seeds: list[int], folder: Path) -> list[dict[str, Any]]:
    """A row {name, seed, accuracies} for every method, baseline and seed."""
    methods, epochs = config.pop("methods"), config.pop("supervised_epochs")
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in seeds:
        for name, own in methods.items():
            place, description = folder / f"{name}-{seed}", folder / f"{name}.yaml"
            if not (place / "report.html").is_file():
                description.write_text(yaml.safe_dump({**config, "method": name, **own}), encoding="utf-8")
                run("pretrain.py", description, "--seed", seed, "--output_dir", place)
            found.append({"name": name, "seed": seed, **read_log(place / "log.jsonl").evaluations[-1]["metrics"]})
        baselines, description = folder / f"baselines-{seed}.jsonl", folder / "baselines.yaml"
        if not baselines.is_file():
            description.write_text(yaml.safe_dump(config), encoding="utf-8")
            partial = baselines.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            options = ("--baselines", "--supervised_epochs", epochs, "--seed", seed, "--output", partial)
            run("evaluate_features.py", description, *options)
            os.replace(partial, baselines)
        found += [json.loads(line) for line in baselines.read_text().splitlines()]
    return found


def table(rows: list[dict[str, Any]], columns: dict[str, str], what: str) -> str:
    """Mean and (of several seeds) standard deviation in percent, as Markdown. columns: of a row, and their titles."""
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
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    own = parser.parse_args()
    config = yaml.safe_load(own.config.read_text(encoding="utf-8"))
    for key in ("methods", "supervised_epochs", "output_dir"):
        if key not in config:
            raise ValueError(f"{own.config}: {key} is missing")
    folder = Path(config.pop("output_dir"))
    rows = measure(config, own.seeds, folder)
    text = table(rows, COLUMNS, "features")
    (folder / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
