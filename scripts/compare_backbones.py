"""Start ALBEF from the backbones of image-only runs and from random weights, and compare what it then retrieves:

python scripts/compare_backbones.py configs/emoji.yaml --backbones runs/compare_emoji/*-1/model --epochs 10

The config is one for `scripts/pretrain.py`; its image encoder is replaced by the architecture of the backbones.
Finished runs are not repeated, others go on. Any further flags are passed to every run.
"""

import sys

sys.path.sort(key=lambda folder: folder.endswith("scripts"))  # last: `import evaluate` means the library

import argparse
import json
from pathlib import Path
from typing import Any

import yaml
from compare_image_methods import check_distinct, last_metrics, run, table

from albef_hf.training.finished import is_complete
from albef_hf.training.limits import read_settings

METRICS = {
    "image_to_text_r1": "image to text R@1",
    "image_to_text_r10": "image to text R@10",
    "text_to_image_r1": "text to image R@1",
    "text_to_image_r10": "text to image R@10",
}


def architecture(backbone: Path) -> dict[str, Any]:
    """The fields of a folder's configuration that describe the architecture.

    Raises:
        ValueError: there is no such backbone.
    """
    path = backbone / "config.json"
    if not path.is_file():
        raise ValueError(f"no such backbone: {path} is missing")
    fields = json.loads(path.read_text(encoding="utf-8"))
    return {k: v for k, v in fields.items() if k not in ("architectures", "dtype", "transformers_version")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="YAML file for scripts/pretrain.py")
    parser.add_argument("--backbones", nargs="+", type=Path, required=True, help="model folders of image-only runs")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("runs/compare_backbones"), help="folder of the runs and of table.md"
    )
    options, flags = parser.parse_known_args()
    names = [path.parent.name for path in options.backbones]
    check_distinct("backbones, by the name of the folder around the model", names)
    shape = architecture(options.backbones[0])
    for backbone in options.backbones[1:]:
        if architecture(backbone) != shape:
            raise ValueError(f"{backbone} and {options.backbones[0]} differ in architecture: nothing to compare")
    config = read_settings(options.config)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    starts: dict[str, dict[str, Any]] = {"random weights": {"vision_config": shape}}
    starts |= {path.parent.name: {"vision_config": {}, "vision_model": str(path)} for path in options.backbones}
    rows = []
    for name, start in starts.items():
        run_folder = options.output_dir / name.replace(" ", "_")
        run_config = run_folder.with_suffix(".yaml")
        run_config.write_text(yaml.safe_dump({**config, **start}), encoding="utf-8")
        command = [run_config, "--output_dir", run_folder, *flags]
        if not is_complete(run_folder, command, "report.html"):
            run("pretrain.py", *command, "--resume", "auto")
        rows.append({"name": name, **last_metrics(run_folder)})
    text = table(rows, METRICS, "image encoder started from")
    (options.output_dir / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
