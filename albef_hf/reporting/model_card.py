"""README.md of a model folder, for ALBEF models and for the backbones of image-only methods.

It has metadata for the Hub and says what the model is, how to use it, how well it does, how it was made, and under
which terms its data came.
"""

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml

from ..data.sources import BUILT_IN
from ..evaluation.recall import CUTOFFS
from ..evaluation.retrieval import RERANKED, RetrievalResult
from ..model_folder import read_json
from .card_facts import CITATIONS, DESCRIPTIONS, DataSource, built_in_sources
from .card_usage import albef_usage, backbone_usage, task_usage
from .markdown import markdown_table, markdown_text
from .published import deviations
from .published_recipes import PUBLISHED
from .run_folder import RunFolder

# Arguments that make a recipe, with the words of the card. A run without a value for one has no row for it.
RECIPE = {
    "task": "task",
    "vision_model": "image encoder from",
    "text_model": "text encoder from",
    "image_size": "image size (pixels)",
    "max_caption_tokens": "text length (tokens)",
    "batch_size": "samples per device and micro-batch",
    "accumulation": "micro-batches per optimizer step",
    "epochs": "epochs",
    "max_steps": "optimizer steps asked for",
    "learning_rate": "peak learning rate",
    "minimum_learning_rate": "last learning rate",
    "weight_decay": "weight decay",
    "warmup_steps": "warm-up steps",
    "warmup_epochs": "warm-up epochs",
    "mixed_precision": "precision",
    "seed": "seed",
}


@dataclass(frozen=True)
class CardText:
    """What a card says of a model that was fine-tuned for a task.

    Args:
        description: one paragraph.
        pipeline_tag, tags: for the Hub.
        usage: lines of code that follow those which define `name` and `picture`.
        imports: what the code imports from albef_hf.
        results: a finished section; empty for none.
    """

    description: str
    pipeline_tag: str | None
    tags: Sequence[str]
    usage: Sequence[str]
    imports: str
    results: str = ""


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
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write README.md into a model folder, and a copy of the run's curves beside it.

    `.eval_results/` is written too, if the evaluation data set is on the Hub.

    Args:
        run_folder: of the training run. Its config.yaml, versions.json, log.jsonl and curves.png may be missing.
        model_folder: has what `save_pretrained` of the model and of the processor wrote.
        result: retrieval with these weights.
        probes: accuracies of frozen features with these weights, by name, for an image-only backbone.
        license: identifier for the metadata, such as "apache-2.0"; None leaves it to the publisher of the model.
        sources: the training data and its terms. Left out, those of built-in data if the run used it.
        repository: id on the Hub for the code example; the name of the model folder where left out.
        task: the text of a model that was fine-tuned for a task; None for a pre-trained model.
        settings: arguments of the run that config.yaml does not hold in full, such as `method_options` with defaults.

    Returns: the path of README.md.

    Raises:
        ValueError: a file of the run or of the model is damaged; names it.
    """
    run, model_folder = RunFolder.read(run_folder), Path(model_folder)
    config_file = model_folder / "config.json"
    model_config = read_json(config_file) if config_file.exists() else {}
    is_albef = model_config.get("model_type", "albef") == "albef"
    if sources is None:
        sources = built_in_sources(run.config, texts=is_albef)
    title = (repository or run.path.resolve().name).split("/")[-1]
    parts = [_metadata(run, license, is_albef, task), f"# {title}", _description(run, is_albef, task)]
    parts.append(
        f"## Use\n\n```python\n{_usage(repository or model_folder.name, model_folder, model_config, task)}\n```"
    )
    if task is not None and task.results:
        parts.append(task.results)
    if result is not None:
        parts.append(_retrieval(result))
    if probes:
        parts.append(_probes(probes, run))
    parts.append(_recipe(run, pretrains_albef=is_albef and task is None and not run.config.get("task")))
    if run.config.get("published_recipe") in PUBLISHED:
        parts.append(_beside_published(run, settings or {}))
    if (run.path / "curves.png").exists():
        shutil.copyfile(run.path / "curves.png", model_folder / "curves.png")
        parts.append("## Training\n\n![Losses and metrics by optimizer step](curves.png)")
    parts += [_data(run, sources), _LIMITS, *_versions(run), *_citations(run, is_albef)]
    path = model_folder / "README.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    _write_evaluations(run, model_folder, result, probes or {})
    return path


_LIMITS = (
    "## Limits\n\nThe model knows what its training data shows, with the biases of that data, and has not been "
    "checked for any use in which a mistake does harm. Scores are comparable within one image or one text, not as "
    "probabilities of their own."
)


def is_hub_id(name: str) -> bool:
    """Whether a name is an id `owner/name`, and not a folder of this machine."""
    owner, _, rest = name.partition("/")
    return bool(owner.strip(".~") and rest) and "/" not in rest and not Path(name).exists()


def _hub_datasets(run: RunFolder) -> list[str]:
    """The training data sets that are on the Hub."""
    names = [run.config.get("dataset")]
    names += [entry.get("dataset") for entry in run.config.get("mixture") or []]
    return [name for name in names if isinstance(name, str) and is_hub_id(name)]


def _metadata(run: RunFolder, license: str | None, is_albef: bool, task: CardText | None) -> str:
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
    hub_names = _hub_datasets(run)
    if hub_names:
        metadata["datasets"] = hub_names
    bases = [run.config.get(key) for key in ("vision_model", "text_model", "model_path")]
    bases = [base for base in bases if isinstance(base, str) and is_hub_id(base)]
    if bases:
        metadata["base_model"] = bases
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---"


def _description(run: RunFolder, is_albef: bool, task: CardText | None) -> str:
    if task is not None:
        return task.description
    if is_albef:
        return DESCRIPTIONS["albef"]
    description = DESCRIPTIONS.get(run.method, f"A vision backbone pre-trained without labels by {run.method}.")
    return (
        f"{description} The model is the online encoder alone, without its projector. The feature of a whole picture "
        f"is {run.config.get('vision_pooling', 'cls')!r} of its tokens."
    )


def _usage(name: str, model_folder: Path, model_config: Mapping[str, Any], task: CardText | None) -> str:
    if task is not None:
        return task_usage(name, task.imports, task.usage)
    if model_config.get("model_type", "albef") == "albef":
        return albef_usage(name, carries_code=(model_folder / "modeling_albef.py").exists())
    return backbone_usage(name, model_config)


def _retrieval(result: RetrievalResult) -> str:
    orders = [("", "contrastive")] + ([(RERANKED, f"top {result.k} re-ranked")] if result.k > 0 else [])
    rows = []
    for direction, label in (("image_to_text", "image to text"), ("text_to_image", "text to image")):
        for cutoff in CUTOFFS:
            rows.append((f"{direction}_r{cutoff}", f"{label} R@{cutoff}"))
    rows.append(("mean_recall", "mean of the six"))
    body = [
        [label, *(f"{result.metrics[prefix + name]:.2%}" for prefix, _ in orders), f"{result.chance[name]:.2%}"]
        for name, label in rows
    ]
    return (
        f"## Results\n\nZero-shot retrieval on {markdown_text(result.name)}: {result.images:,} images, "
        f"{result.texts:,} texts. A query is a hit at K when a right answer is among its first K; wrong "
        "answers with the same score count as ahead. Chance is the exact expectation of a random order.\n\n"
        + markdown_table(["", *(order for _, order in orders), "chance"], body, numbers=True)
    )


def _probes(probes: Mapping[str, float], run: RunFolder) -> str:
    data = run.config.get("evaluation_dataset") or run.config.get("dataset") or "the test part"
    rows = [[markdown_text(name), f"{value:.2%}"] for name, value in probes.items()]
    return f"## Results\n\nFrozen features, {_shown_data(data)}:\n\n" + markdown_table(
        ["probe", "accuracy"], rows, numbers=True
    )


def _recipe(run: RunFolder, pretrains_albef: bool) -> str:
    last = run.log.train[-1] if run.log.train else {}
    rows = [["method", markdown_text(run.method)]]
    if "parameters" in run.log.run:
        rows.append(["trainable parameters", f"{run.log.run['parameters']:,}"])
    if "step" in last:
        rows.append(["optimizer steps done", f"{last['step']:,}"])
    rows += [[RECIPE[key], markdown_text(value)] for key, value in _recipe_values(run, pretrains_albef)]
    if "device" in run.log.run:
        rows.append(["hardware", f"{run.log.run.get('devices', 1)} x {markdown_text(run.log.run['device'])}"])
    if "seconds" in last and not run.log.run.get("start"):  # of a resumed run only the time of its last part is known
        rows.append(["training time", f"{last['seconds']:,.0f} s"])
    return "## Recipe\n\n" + markdown_table(["", ""], rows)


def _recipe_values(run: RunFolder, pretrains_albef: bool) -> Iterator[tuple[str, Any]]:
    """The arguments of the recipe that had an effect, and their values."""
    without_effect = {
        "max_caption_tokens": not pretrains_albef,  # tasks have their own lengths, image-only methods no texts
        "max_steps": not run.config.get("max_steps"),  # 0: as many as the epochs have
        "warmup_epochs": not run.config.get("warmup_epochs"),  # 0: see warmup_steps
        "warmup_steps": bool(run.config.get("warmup_epochs")),
    }
    for key in RECIPE:
        value = run.config.get(key)
        if isinstance(value, str | int | float) and not without_effect.get(key, False):
            yield key, value


def _beside_published(run: RunFolder, settings: Mapping[str, Any]) -> str:
    """What the published recipe of a run reached, and everything that the run does otherwise."""
    recipe = PUBLISHED[run.config["published_recipe"]]
    config = {**run.config, **settings}
    counts = [int(config.get(key) or 1) for key in ("batch_size", "accumulation")]
    found = deviations(recipe, config, math.prod(counts) * int(run.log.run.get("devices") or 1))
    names = [entry.get("dataset") for entry in run.config.get("mixture") or []] or [run.config.get("dataset")]
    rows = [["training data", markdown_text(recipe.data), ", ".join(dict.fromkeys(map(_shown_data, names)))]]
    rows += [[markdown_text(value) for value in row] for row in found]
    rows += [["of the code", markdown_text(text), ""] for text in recipe.remains]
    return (
        f"## Beside the published recipe\n\n{recipe.source}. It reached {recipe.reached}, on {recipe.hardware}. These "
        "figures are not of this model. What this run does otherwise:\n\n"
        + markdown_table(["", "published", "here"], rows)
    )


def _versions(run: RunFolder) -> list[str]:
    rows = [
        [markdown_text(name), markdown_text(value)]
        for name, value in run.versions.items()
        if isinstance(value, str | int | float)
    ]
    return ["## Versions\n\n" + markdown_table(["", ""], rows)] if rows else []


def _citations(run: RunFolder, is_albef: bool) -> list[str]:
    methods = dict.fromkeys((["albef"] if is_albef else []) + [run.method])
    citations = [CITATIONS[method] for method in methods if method in CITATIONS]
    return ["## Citation\n\n```bibtex\n" + "\n\n".join(citations) + "\n```"] if citations else []


def _shown_data(name: Any) -> str:
    """A data set by its public name. Paths of this machine are not shown."""
    if isinstance(name, str) and is_hub_id(name):
        return f"[{name}](https://huggingface.co/datasets/{name})"
    return markdown_text(name) if name in BUILT_IN else "local data"


def _data(run: RunFolder, sources: Sequence[DataSource]) -> str:
    text = "## Training data\n\n"
    if sources:
        rows = []
        for source in sources:
            name = f"[{markdown_text(source.name)}]({source.url})" if source.url else markdown_text(source.name)
            rows.append([name, markdown_text(source.license), markdown_text(source.attribution)])
        return text + markdown_table(["data", "license", "attribution"], rows)
    names = [entry.get("dataset") for entry in run.config.get("mixture") or []] or [run.config.get("dataset")]
    shown = list(dict.fromkeys(_shown_data(name) for name in names if name))
    return text + (f"{', '.join(shown)}. See there for its terms." if shown else "Not recorded.")


def _write_evaluations(
    run: RunFolder, folder: Path, result: RetrievalResult | None, probes: Mapping[str, float]
) -> Path | None:
    """Write `.eval_results/results.yaml`, which the Hub shows beside the model. The data set must be on the Hub.

    Values are percentages. Those of retrieval are for the final order of candidates.
    """
    data = run.config.get("evaluation_dataset") or run.config.get("dataset")
    if not (isinstance(data, str) and is_hub_id(data)) or not hasattr(huggingface_hub, "EvalResultEntry"):
        return None
    metrics, notes = dict(probes), "accuracy of frozen features"
    if result is not None:
        metrics = {
            name: result.metrics[result.final_prefix + name] for name in result.chance if not name.startswith(RERANKED)
        }
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
