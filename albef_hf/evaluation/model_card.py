"""README.md of a model folder: metadata for the Hub, what the model is, how it was made, how well it does, how to use
it, under which terms its data came."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .curves import read_log
from .recall import CUTOFFS
from .retrieval import RERANKED, RetrievalResult

# Configuration keys that make a recipe, with the words of the card; a run without a key has no row.
RECIPE = {
    "method": "method",
    "task": "task",
    "vision_model": "image encoder from",
    "text_model": "text encoder from",
    "image_size": "image size (pixels)",
    "max_length": "text length (tokens)",
    "batch_size": "pairs per device",
    "gradient_accumulation_steps": "accumulated batches",
    "epochs": "epochs",
    "max_steps": "optimizer steps asked for",
    "learning_rate": "peak learning rate",
    "minimum_learning_rate": "last learning rate",
    "weight_decay": "weight decay",
    "warmup_steps": "warm-up steps",
    "mixed_precision": "precision",
    "seed": "seed",
}
CITATION = """@inproceedings{li2021align,
  title     = {Align before Fuse: Vision and Language Representation Learning with Momentum Distillation},
  author    = {Li, Junnan and Selvaraju, Ramprasaath R. and Gotmare, Akhilesh and Joty, Shafiq and Xiong, Caiming and
               Hoi, Steven},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2021}
}"""


DESCRIPTION = (
    "A vision-language model trained with ALBEF (*Align before Fuse*, Li et al. 2021): an image encoder and a "
    "text encoder aligned by contrast, and a fusion encoder that reads the text while it looks at the image. "
    "It scores captions against pictures, retrieves either with the other, and classifies images by a list of "
    "labels without having been trained on them."
)


@dataclass(frozen=True)
class DataSource:
    """What a corpus is and under which terms it came. url: where its authors are found."""

    name: str
    license: str
    attribution: str
    url: str | None = None


@dataclass(frozen=True)
class CardText:
    """What a card says of a kind of model.

    Args:
        description: in a paragraph.
        pipeline_tag, tags: for the Hub.
        usage: code that follows `name = ...`, a picture being at hand as `picture`.
        imports: what the code needs besides torch and PIL.
        results: a finished part; empty for none.
    """

    description: str
    pipeline_tag: str | None
    tags: Sequence[str]
    usage: Sequence[str]
    imports: str
    results: str = ""


# Designs of the built-in corpus. Those not listed are the property of their vendors.
EMOJI_DESIGNS = {
    "google": DataSource("Noto Emoji", "Apache-2.0", "Google", "https://github.com/googlefonts/noto-emoji"),
    "twitter": DataSource(
        "Twemoji", "CC BY 4.0", "Twitter, Inc. and other contributors", "https://github.com/twitter/twemoji"
    ),
}


def emoji_sources(designs: Sequence[str]) -> list[DataSource]:
    """Artwork and names of the built-in corpus."""
    art = [
        EMOJI_DESIGNS.get(
            design.lower(), DataSource(f"{design} emoji", "proprietary", "its vendor; for local experiments only")
        )
        for design in designs
    ]
    names = [
        DataSource("emoji (names and aliases)", "BSD-3-Clause", "its authors", "https://pypi.org/project/emoji/"),
        DataSource("em-keyboard (keywords)", "ISC and MIT", "its authors", "https://pypi.org/project/em-keyboard/"),
    ]
    return art + names


def write_model_card(
    run_folder: Path | str,
    model_folder: Path | str,
    result: RetrievalResult | None = None,
    *,
    license: str | None = None,
    sources: Sequence[DataSource] | None = None,
    repository: str | None = None,
    task: CardText | None = None,
) -> Path:
    """Write README.md into a model folder.

    Args:
        run_folder: of the training run; config.yaml, versions.json and log.jsonl are used where they exist.
        model_folder: what `save_pretrained` of the model and of the processor wrote.
        result: retrieval of these weights, for the table.
        license: identifier for the metadata, such as "apache-2.0"; None leaves it to who publishes the model.
        sources: the training data and its terms. Left out, those of the built-in corpus where the run used it.
        repository: id on the Hub for the usage example; the folder's own name where left out.
        task: of a model that was fine-tuned for a task, what it is; left out, the model is one of pre-training.

    Returns:
        The path of README.md.
    """
    run_folder, model_folder = Path(run_folder), Path(model_folder)
    config = _read_yaml(run_folder / "config.yaml")
    if sources is None:
        options = config.get("dataset_options") or {}
        built_in = str(config.get("dataset")).startswith("emoji") and not config.get("mixture")
        sources = emoji_sources(options.get("designs") or list(EMOJI_DESIGNS)) if built_in else []
    log_path = run_folder / "log.jsonl"
    log = read_log(log_path) if log_path.exists() else None
    method = str(log.run.get("method", "albef")) if log else "albef"
    parts = [
        _metadata(config, license, task),
        f"# {(repository or run_folder.resolve().name).split('/')[-1]}",
        DESCRIPTION if task is None else task.description,
        "## Use\n\n" + _usage(repository or model_folder.name, model_folder, task),
    ]
    if task is not None and task.results:
        parts.append(task.results)
    if result is not None:
        parts.append(_results(result))
    parts.append(_recipe(config, log.run if log else {}, log.train[-1] if log and log.train else {}, method))
    parts.append(_data(config, sources))
    parts.append(
        "## Limits\n\nThe model knows what its training data shows, with the biases of that data, and has not been "
        "checked for any use in which a mistake does harm. Scores are comparable within one image or one text, not as "
        "probabilities of their own."
    )
    versions = _read_json(run_folder / "versions.json")
    if versions:
        rows = [(name, value) for name, value in versions.items() if isinstance(value, str | int | float)]
        parts.append("## Versions\n\n" + _table(["", ""], [[_cell(name), _cell(value)] for name, value in rows]))
    parts.append(f"## Citation\n\n```bibtex\n{CITATION}\n```")
    path = model_folder / "README.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _metadata(config: Mapping[str, Any], license: str | None, task: CardText | None) -> str:
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["albef", "vision-language", "image-text-retrieval", "image-text-matching"],
        "language": "en",
    }
    if task is not None:
        metadata["tags"] = ["albef", "vision-language", *task.tags]
        metadata["pipeline_tag"] = task.pipeline_tag
        if task.pipeline_tag is None:
            del metadata["pipeline_tag"]
    if license is not None:
        metadata["license"] = license
    dataset = config.get("dataset")
    names = [dataset] if isinstance(dataset, str) else []
    hub_names = [name for name in names if _is_hub_id(name)]
    if hub_names:
        metadata["datasets"] = hub_names
    bases = [config.get(key) for key in ("vision_model", "text_model", "model_path")]
    bases = [base for base in bases if isinstance(base, str) and _is_hub_id(base)]
    if bases:
        metadata["base_model"] = bases
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---"


def _is_hub_id(name: str) -> bool:
    """An id `owner/name`, and not a folder of this machine."""
    owner, _, rest = name.partition("/")
    return bool(owner.strip(".~") and rest) and "/" not in rest and not Path(name).exists()


def _usage(model_name: str, model_folder: Path, task: CardText | None) -> str:
    if task is not None:
        lines = ["import torch", "from PIL import Image", f"from albef_hf import {task.imports}", ""]
        lines += [f"name = {json.dumps(model_name)}  # this folder, or its id on the Hub"]
        lines += ['picture = Image.new("RGB", (256, 256), "red")  # or Image.open("your_picture.jpg")', *task.usage]
        return "```python\n" + "\n".join(lines) + "\n```"
    carries_code = (model_folder / "modeling_albef.py").exists()
    lines = ["import torch", "from PIL import Image"]
    trust = ", trust_remote_code=True" if carries_code else ""
    lines += ["from transformers import AutoModel, AutoProcessor", ""]
    if not carries_code:
        lines[2:2] = ["import albef_hf  # registers the classes"]
    lines += [
        f"name = {json.dumps(model_name)}  # this folder, or its id on the Hub",
        f"model = AutoModel.from_pretrained(name{trust})",
        f"processor = AutoProcessor.from_pretrained(name{trust})",
        "",
        'picture = Image.new("RGB", (256, 256), "red")  # or Image.open("your_picture.jpg")',
        'captions = ["a red square", "a green tree"]',
        'inputs = processor(images=picture, text=captions, return_tensors="pt", padding=True)',
        "with torch.no_grad():",
        "    print(model(**inputs).logits_per_image.softmax(-1))",
    ]
    return "```python\n" + "\n".join(lines) + "\n```"


def _results(result: RetrievalResult) -> str:
    stages = [("", "contrastive")] + ([(RERANKED, f"top {result.k} re-ranked")] if result.k > 0 else [])
    rows = []
    for direction, label in (("image_to_text", "image to text"), ("text_to_image", "text to image")):
        for cutoff in CUTOFFS:
            rows.append((f"{direction}_r{cutoff}", f"{label} R@{cutoff}"))
    rows.append(("mean_recall", "mean of the six"))
    body = [
        [label, *(f"{result.metrics[prefix + name]:.2%}" for prefix, _ in stages), f"{result.chance[name]:.2%}"]
        for name, label in rows
    ]
    return (
        f"## Results\n\nZero-shot retrieval on {_cell(result.name)}: {result.images:,} images, "
        f"{result.texts:,} texts. A query is a hit at K when a right answer is among its first K; wrong "
        "answers with the same score count as ahead. Chance is the exact expectation of a random order.\n\n"
        + _table(["", *(stage for _, stage in stages), "chance"], body, numbers=True)
    )


def _recipe(config: Mapping[str, Any], run: Mapping[str, Any], last: Mapping[str, Any], method: str) -> str:
    rows = [["method", _cell(method)]]
    if "parameters" in run:
        rows.append(["trainable parameters", f"{run['parameters']:,}"])
    if "step" in last:
        rows.append(["optimizer steps done", f"{last['step']:,}"])
    for key, words in RECIPE.items():
        value = config.get(key)
        if value is not None and key != "method" and isinstance(value, str | int | float):
            rows.append([words, _cell(value)])
    return "## Recipe\n\n" + _table(["", ""], rows)


def _data(config: Mapping[str, Any], sources: Sequence[DataSource]) -> str:
    text = "## Training data\n\n"
    if not sources:
        dataset = config.get("dataset")
        return text + (f"{_cell(dataset)}. See there for its terms." if dataset else "Not recorded.")
    rows = []
    for source in sources:
        name = f"[{_cell(source.name)}]({source.url})" if source.url else _cell(source.name)
        rows.append([name, _cell(source.license), _cell(source.attribution)])
    return text + _table(["data", "licence", "attribution"], rows)


def _cell(value: Any) -> str:
    """A value as text of a Markdown table; of a path on this machine, its last part."""
    text = str(value)
    if text.startswith(("/", "~")) or (len(text) > 2 and text[1:3] == ":\\"):
        text = text.replace("\\", "/").rstrip("/").split("/")[-1]
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = False) -> str:
    """A Markdown table; with `numbers` all columns but the first stand to the right."""
    rule = ["---"] + ["---:" if numbers else "---"] * (len(heads) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, rule, *rows])


def _read_yaml(path: Path) -> dict[str, Any]:
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
