"""Start ALBEF from the backbones of image-only runs and from random weights, and compare what it then retrieves:

python scripts/compare_backbones.py configs/emoji.yaml --backbones runs/compare_emoji/*-1/model --epochs 10

The config is one of `scripts/pretrain.py`; its image encoder gives way to the backbone's architecture. What has been
run is not run again. Any further flag goes to every run.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import yaml
from compare_image_methods import run, table

from albef_hf.reporting.log import read_log

METRICS = {
    "image_to_text_r1": "image to text R@1",
    "image_to_text_r10": "image to text R@10",
    "text_to_image_r1": "text to image R@1",
    "text_to_image_r10": "text to image R@10",
}


def architecture(backbone: Path) -> dict[str, Any]:
    """The configuration of a folder without what belongs to its file.

    Raises:
        ValueError: no such backbone.
    """
    path = backbone / "config.json"
    if not path.is_file():
        raise ValueError(f"no such backbone: {path} is missing")
    fields = json.loads(path.read_text(encoding="utf-8"))
    return {k: v for k, v in fields.items() if k not in ("architectures", "dtype", "transformers_version")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--backbones", nargs="+", type=Path, required=True, help="model folders of image-only runs")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/compare_backbones"))
    own, flags = parser.parse_known_args()
    shape = architecture(own.backbones[0])
    for backbone in own.backbones[1:]:
        if architecture(backbone) != shape:
            raise ValueError(f"{backbone} and {own.backbones[0]} differ in architecture: nothing to compare")
    config = yaml.safe_load(own.config.read_text(encoding="utf-8"))
    own.output_dir.mkdir(parents=True, exist_ok=True)
    starts: dict[str, dict[str, Any]] = {"random weights": {"vision_config": shape}}
    starts |= {path.parent.name: {"vision_config": {}, "vision_model": str(path)} for path in own.backbones}
    rows = []
    for name, start in starts.items():
        place = own.output_dir / name.replace(" ", "_")
        if not (place / "report.html").is_file():
            description = place.with_suffix(".yaml")
            description.write_text(yaml.safe_dump({**config, **start}), encoding="utf-8")
            run("pretrain.py", description, "--output_dir", place, *flags)
        rows.append({"name": name, **read_log(place / "log.jsonl").evaluations[-1]["metrics"]})
    text = table(rows, METRICS, "image encoder started from")
    (own.output_dir / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
