"""Measure frozen features of a vision model with probes:

python scripts/evaluate_features.py configs/digits_byol.yaml --model runs/digits_byol/model --baselines
python scripts/evaluate_features.py configs/digits_byol.yaml --model google/vit-base-patch16-224-in21k --image_size 224

The config names labeled pictures, their size, and how tokens are pooled; flags override it. The model is any folder or
Hub id that `AutoModel` loads as a vision model.
"""

import sys

sys.path.sort(key=lambda folder: folder.endswith("scripts"))  # last: `import evaluate` means the library

import argparse
import json
import os
from pathlib import Path
from typing import Any

from albef_hf.training.arguments import parse_arguments

OTHERS = ("raw pixels", "random initialisation", "supervised")  # what is measured beside the model
PROBES = ("knn", "logistic", "linear")


def own_flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--model", help="folder or Hub id of the model; where left out, only the baselines are measured"
    )
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="also measure raw pixels, and the architecture of --model (or of the config) untrained",
    )
    parser.add_argument(
        "--supervised_epochs", type=int, default=0, help="also train that architecture with labels; 0: do not"
    )
    parser.add_argument("--probes", nargs="+", choices=PROBES, default=["knn", "logistic"], help="what to measure")
    parser.add_argument("--output", type=Path, help="file to append the results to, as JSON lines")
    parser.add_argument("--name", default="", help="name of the model in the output; --model where left out")
    return parser


def check_flags(options: argparse.Namespace, model_arguments: Any) -> None:
    """Check what is asked for, and that results can be written, before any work.

    Raises:
        ValueError: there is nothing to do, a flag has no effect, or results cannot be written.
    """
    if model_arguments.model_path:
        raise ValueError("model_path would have no effect: --model names what is measured")
    if options.supervised_epochs < 0:
        raise ValueError(f"--supervised_epochs must be 0 or more, not {options.supervised_epochs}")
    if not (options.model or options.baselines or options.supervised_epochs):
        raise ValueError("nothing to do: give --model, --baselines or --supervised_epochs")
    if options.name in OTHERS or (options.name and not options.model):
        raise ValueError(f"--name {options.name!r} is the name of --model in the results, and none of {OTHERS}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "probes run in one process, and every other would measure the same: start it with python alone"
        )
    if options.output is None:
        return
    if options.output.is_dir():
        raise ValueError(f"--output {options.output} is a folder: name a file")
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.open("a", encoding="utf-8").close()
    except OSError as error:
        raise ValueError(f"--output {options.output} cannot be written: {error.strerror}") from error


def main() -> None:
    parser = own_flags()
    options, rest = parser.parse_known_args()
    model_arguments, data_arguments, arguments = parse_arguments(rest, script=parser)
    import torch

    from albef_hf.evaluation.probes import KNN_PROTOCOLS, knn_accuracy, linear_probe, logistic_regression
    from albef_hf.training.initialization import build_vision_backbone
    from ssl_methods.augment import view_recipes
    from ssl_methods.pictures import load_pictures, saved_statistics
    from ssl_methods.supervised import train_supervised

    check_flags(options, model_arguments)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    trained = None
    if options.model:
        model_arguments.vision_model, model_arguments.vision_config = options.model, {}
        trained = build_vision_backbone(model_arguments).eval()
    torch.manual_seed(arguments.seed)
    untrained = build_vision_backbone(model_arguments, trained=False).eval()
    channels = getattr(untrained.backbone.config, "num_channels", 3)
    loaded = load_pictures(data_arguments, model_arguments.image_size, channels)
    if loaded is None:
        raise ValueError("probes need labels: set label_column")
    train, test = loaded
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def encoded(backbone: Any, statistics: Any = None) -> list[torch.Tensor]:
        parts = loaded if statistics is None else [part.normalized(*statistics) for part in loaded]
        return [part.features(backbone.to(device), device) for part in parts]

    features: dict[str, Any] = {}
    if options.baselines:
        features["raw pixels"] = [part.encode(lambda pixels: pixels.flatten(1)) for part in loaded]
        features["random initialisation"] = encoded(untrained)
    if trained is not None:
        configured = data_arguments.image_mean is not None or data_arguments.image_std is not None
        statistics = None if configured else saved_statistics(options.model)
        if statistics:
            print(f"pictures are normalized as {options.model} says: mean {statistics[0]}, deviation {statistics[1]}")
        features[options.name or options.model] = encoded(trained, statistics)
    if options.supervised_epochs:
        recipe = view_recipes(data_arguments.augmentation, **data_arguments.augmentation_options)[0]
        settings = {"epochs": options.supervised_epochs, "batch_size": arguments.batch_size, "seed": arguments.seed}
        features["supervised"] = encoded(train_supervised(untrained, train, recipe, **settings))
    for name, (train_features, test_features) in features.items():
        results: dict[str, Any] = {}
        if "knn" in options.probes:
            accuracies = knn_accuracy(
                train_features, train.labels, test_features, test.labels, *KNN_PROTOCOLS[data_arguments.knn_protocol]
            )
            results |= {f"knn_{k}": value for k, value in accuracies.items()}
        if "logistic" in options.probes:
            regression = logistic_regression(train_features, train.labels, test_features, test.labels)
            results["logistic_regression"] = regression["accuracy"]
        if "linear" in options.probes:
            probe = linear_probe(train_features, train.labels, test_features, test.labels)
            results["linear_probe"] = probe["accuracy"]
        print(f"{name:40} " + "  ".join(f"{key} {100 * value:5.1f} %" for key, value in results.items()))
        if options.output is not None:
            with options.output.open("a", encoding="utf-8") as handle:
                row = {"name": name, "seed": arguments.seed, "dataset": data_arguments.dataset, **results}
                handle.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
