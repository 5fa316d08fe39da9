"""README.md of a model folder: metadata for the Hub, what the model is, how it was made, how well it does, how to use
it, under which terms its data came. ALBEF models and the backbones of image-only methods alike."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml

from ..data.sources import BUILT_IN
from ..evaluation.recall import CUTOFFS
from ..evaluation.retrieval import RERANKED, RetrievalResult
from .card_facts import CITATIONS, DataSource, built_in_sources
from .log import RunLog, read_log

# Configuration keys that make a recipe, with the words of the card; a run without a key has no row.
RECIPE = {
    "method": "method",
    "task": "task",
    "vision_model": "image encoder from",
    "text_model": "text encoder from",
    "image_size": "image size (pixels)",
    "max_length": "text length (tokens)",
    "batch_size": "samples per device",
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
# A pushed card names the repository where this line names the folder.
NAME_LINE = re.compile(r'^name = ".*"  # this folder, or its id on the Hub$', re.MULTILINE)


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


@dataclass
class _Run:
    """What a run folder tells: config.yaml, versions.json and log.jsonl, where they exist."""

    config: dict[str, Any]
    versions: dict[str, Any]
    log: RunLog
    method: str
    title: str

    @classmethod
    def read(cls, folder: Path, repository: str | None) -> "_Run":
        log = read_log(folder / "log.jsonl") if (folder / "log.jsonl").exists() else RunLog()
        config = _read_yaml(folder / "config.yaml")
        method = str(log.run.get("method") or config.get("method") or "albef")
        title = (repository or folder.resolve().name).split("/")[-1]
        return cls(config, _read_json(folder / "versions.json"), log, method, title)

    def hub_datasets(self, *keys: str) -> list[str]:
        """Data sets of the Hub under these keys and in the mixture."""
        names = [self.config.get(key) for key in keys]
        names += [entry.get("dataset") for entry in self.config.get("mixture") or []]
        return [name for name in names if isinstance(name, str) and is_hub_id(name)]


def write_model_card(
    run_folder: Path | str,
    model_folder: Path | str,
    result: RetrievalResult | None = None,
    *,
    probes: Mapping[str, float] | None = None,
    license: str | None = None,
    sources: Sequence[DataSource] | None = None,
    repository: str | None = None,
    task: CardText | None = None,
) -> Path:
    """Write README.md into a model folder, a copy of the run's curves beside it, and `.eval_results/` where what was
    measured is a data set of the Hub.

    Args:
        run_folder: of the training run; config.yaml, versions.json, log.jsonl and curves.png are used where they are.
        model_folder: what `save_pretrained` of the model and of the processor wrote.
        result: retrieval of these weights, for the table.
        probes: accuracies of frozen features of these weights, by name, for the table of an image-only backbone.
        license: identifier for the metadata, such as "apache-2.0"; None leaves it to who publishes the model.
        sources: the training data and its terms. Left out, those of built-in data where the run used it.
        repository: id on the Hub for the usage example; the folder's own name where left out.
        task: of a model that was fine-tuned for a task, what it is; left out, the model is one of pre-training.

    Returns:
        The path of README.md.
    """
    run_folder, model_folder = Path(run_folder), Path(model_folder)
    run = _Run.read(run_folder, repository)
    model_config = _read_json(model_folder / "config.json")
    is_albef = model_config.get("model_type", "albef") == "albef"
    if sources is None:
        sources = built_in_sources(run.config, texts=is_albef)
    name = repository or model_folder.name
    if task is not None:
        what, usage = task.description, _task_usage(name, task)
    elif is_albef:
        what, usage = _ALBEF, _albef_usage(name, (model_folder / "modeling_albef.py").exists())
    else:
        what = (
            f"A vision backbone pre-trained without labels by {run.method}: the online encoder alone, without its "
            f"projector. The feature of a whole picture is {run.config.get('vision_pooling', 'cls')!r} of its tokens."
        )
        usage = _backbone_usage(name, model_config)
    parts = [_metadata(run, license, is_albef, task), f"# {run.title}", what, f"## Use\n\n```python\n{usage}\n```"]
    if task is not None and task.results:
        parts.append(task.results)
    if result is not None:
        parts.append(_retrieval(result))
    if probes:
        parts.append(_probes(probes, run))
    parts.append(_recipe(run))
    if (run_folder / "curves.png").exists():
        shutil.copyfile(run_folder / "curves.png", model_folder / "curves.png")
        parts.append("## Training\n\n![Losses and metrics by optimizer step](curves.png)")
    parts += [_data(run, sources), _LIMITS]
    rows = [(name, value) for name, value in run.versions.items() if isinstance(value, str | int | float)]
    if rows:
        parts.append("## Versions\n\n" + _table(["", ""], [[_cell(name), _cell(value)] for name, value in rows]))
    citations = [CITATIONS[run.method]] if run.method in CITATIONS else []
    if is_albef and run.method != "albef":
        citations.insert(0, CITATIONS["albef"])
    if citations:
        parts.append("## Citation\n\n```bibtex\n" + "\n\n".join(citations) + "\n```")
    path = model_folder / "README.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    _write_evaluations(run, model_folder, result, probes or {})
    return path


_ALBEF = (
    "A vision-language model trained with ALBEF (*Align before Fuse*, Li et al. 2021): an image encoder and a text "
    "encoder aligned by contrast, and a fusion encoder that reads the text while it looks at the image. It scores "
    "captions against pictures, retrieves either with the other, and classifies images by a list of labels without "
    "having been trained on them."
)
_LIMITS = (
    "## Limits\n\nThe model knows what its training data shows, with the biases of that data, and has not been "
    "checked for any use in which a mistake does harm. Scores are comparable within one image or one text, not as "
    "probabilities of their own."
)


def is_hub_id(name: str) -> bool:
    """An id `owner/name`, and not a folder of this machine."""
    owner, _, rest = name.partition("/")
    return bool(owner.strip(".~") and rest) and "/" not in rest and not Path(name).exists()


def _metadata(run: _Run, license: str | None, is_albef: bool, task: CardText | None) -> str:
    pipeline: str | None = "zero-shot-image-classification" if is_albef else "image-feature-extraction"
    tags = ["albef", "vision-language", "image-text-retrieval", "image-text-matching"] if is_albef else [run.method]
    if task is not None:
        pipeline, tags = task.pipeline_tag, ["albef", "vision-language", *task.tags]
    metadata: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": pipeline, "tags": tags}
    if pipeline is None:
        del metadata["pipeline_tag"]
    if is_albef:
        metadata["language"] = "en"
    if license is not None:
        metadata["license"] = license
    hub_names = run.hub_datasets("dataset")
    if hub_names:
        metadata["datasets"] = hub_names
    bases = [run.config.get(key) for key in ("vision_model", "text_model", "model_path")]
    bases = [base for base in bases if isinstance(base, str) and is_hub_id(base)]
    if bases:
        metadata["base_model"] = bases
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---"


def _name_line(name: str) -> str:
    return f"name = {json.dumps(name)}  # this folder, or its id on the Hub"


def _task_usage(name: str, task: CardText) -> str:
    lines = ["import torch", "from PIL import Image", f"from albef_hf import {task.imports}", "", _name_line(name)]
    lines += ['picture = Image.new("RGB", (256, 256), "red")  # or Image.open("your_picture.jpg")', *task.usage]
    return "\n".join(lines)


def _albef_usage(name: str, carries_code: bool) -> str:
    trust = ", trust_remote_code=True" if carries_code else ""
    lines = ["import torch", "from PIL import Image", "from transformers import AutoModel, AutoProcessor", ""]
    if not carries_code:
        lines.insert(2, "import albef_hf  # registers the classes")
    lines += [
        _name_line(name),
        f"model = AutoModel.from_pretrained(name{trust})",
        f"processor = AutoProcessor.from_pretrained(name{trust})",
        "",
        'picture = Image.new("RGB", (256, 256), "red")  # or Image.open("your_picture.jpg")',
        'captions = ["a red square", "a green tree"]',
        'inputs = processor(images=picture, text=captions, return_tensors="pt", padding=True)',
        "with torch.no_grad():",
        "    print(model(**inputs).logits_per_image.softmax(-1))",
    ]
    return "\n".join(lines)


def _backbone_usage(name: str, config: Mapping[str, Any]) -> str:
    channels, size = config.get("num_channels", 3), config.get("image_size", 224)
    if channels == 3:
        lines = [
            "from PIL import Image",
            "from transformers import pipeline",
            "",
            _name_line(name),
            'extract = pipeline("image-feature-extraction", model=name)',
            'picture = Image.new("RGB", (256, 256), "red")  # or the path of a picture',
            "print(extract(picture, return_tensors=True).shape)",
        ]
    else:  # the pipeline makes every picture RGB
        lines = [
            "import torch",
            "from transformers import AutoModel",
            "",
            _name_line(name),
            "model = AutoModel.from_pretrained(name)",
            f"print(model(torch.zeros(1, {channels}, {size}, {size})).last_hidden_state.shape)",
        ]
    return "\n".join(lines)


def _retrieval(result: RetrievalResult) -> str:
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


def _probes(probes: Mapping[str, float], run: _Run) -> str:
    data = run.config.get("evaluation_dataset") or run.config.get("dataset") or "the test part"
    rows = [[_cell(name), f"{value:.2%}"] for name, value in probes.items()]
    return f"## Results\n\nFrozen features, {_shown_data(data)}:\n\n" + _table(["probe", "accuracy"], rows, True)


def _recipe(run: _Run) -> str:
    last = run.log.train[-1] if run.log.train else {}
    rows = [["method", _cell(run.method)]]
    if "parameters" in run.log.run:
        rows.append(["trainable parameters", f"{run.log.run['parameters']:,}"])
    if "step" in last:
        rows.append(["optimizer steps done", f"{last['step']:,}"])
    for key, words in RECIPE.items():
        value = run.config.get(key)
        if value is not None and key != "method" and isinstance(value, str | int | float):
            rows.append([words, _cell(value)])
    if "device" in run.log.run:
        rows.append(["hardware", f"{run.log.run.get('devices', 1)} x {_cell(run.log.run['device'])}"])
    if "seconds" in last and not run.log.run.get("start"):  # of a run that was resumed only the last part is known
        rows.append(["training time", f"{last['seconds']:,.0f} s"])
    return "## Recipe\n\n" + _table(["", ""], rows)


def _shown_data(name: Any) -> str:
    """A data set by the name it has for everybody; paths of a machine are nobody else's business."""
    if isinstance(name, str) and is_hub_id(name):
        return f"[{name}](https://huggingface.co/datasets/{name})"
    return _cell(name) if name in BUILT_IN else "local data"


def _data(run: _Run, sources: Sequence[DataSource]) -> str:
    text = "## Training data\n\n"
    if sources:
        rows = []
        for source in sources:
            name = f"[{_cell(source.name)}]({source.url})" if source.url else _cell(source.name)
            rows.append([name, _cell(source.license), _cell(source.attribution)])
        return text + _table(["data", "licence", "attribution"], rows)
    names = [entry.get("dataset") for entry in run.config.get("mixture") or []] or [run.config.get("dataset")]
    shown = list(dict.fromkeys(_shown_data(name) for name in names if name))
    return text + (f"{', '.join(shown)}. See there for its terms." if shown else "Not recorded.")


def _write_evaluations(
    run: _Run, folder: Path, result: RetrievalResult | None, probes: Mapping[str, float]
) -> Path | None:
    """`.eval_results/results.yaml`, which the Hub shows beside the model. Only a data set that it knows can be named.
    Values are percentages of the last stage."""
    data = run.config.get("evaluation_dataset") or run.config.get("dataset")
    if not (isinstance(data, str) and is_hub_id(data)) or not hasattr(huggingface_hub, "EvalResultEntry"):
        return None
    metrics, notes = dict(probes), "accuracy of frozen features"
    if result is not None:
        prefix = RERANKED if result.k > 0 else ""
        metrics = {name: result.metrics[prefix + name] for name in result.chance if not name.startswith(RERANKED)}
        notes = f"zero-shot retrieval, {f'top {result.k} re-ranked by matching' if result.k else 'contrastive scores'}"
    if not metrics:
        return None
    entries = [
        huggingface_hub.EvalResultEntry(dataset_id=data, task_id=name, value=round(100 * value, 2), notes=notes)
        for name, value in metrics.items()
    ]
    path = folder / ".eval_results" / "results.yaml"
    path.parent.mkdir(exist_ok=True)
    rows = huggingface_hub.eval_result_entries_to_yaml(entries)
    path.write_text(yaml.safe_dump(rows, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


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
