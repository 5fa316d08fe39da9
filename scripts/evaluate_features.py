"""Probe frozen features of a vision folder:

python scripts/evaluate_features.py configs/digits_byol.yaml --model runs/digits_byol/model --baselines
python scripts/evaluate_features.py configs/digits_byol.yaml --model google/vit-base-patch16-224-in21k --image_size 224

The config says which labelled pictures, at which size, and how tokens are pooled; any flag of it can follow. The model
is any folder or Hub id that `AutoModel` loads as a vision model.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from albef_hf.training.arguments import parse_arguments

PROBES = ("knn", "logistic", "linear")


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id; left out: only the baselines")
    parser.add_argument("--baselines", action="store_true", help="raw pixels, and the same architecture untrained")
    parser.add_argument("--supervised_epochs", type=int, default=0, help="also train the architecture with labels")
    parser.add_argument("--probes", nargs="+", choices=PROBES, default=["knn", "logistic"])
    parser.add_argument("--knn_protocol", default="dino-knn", help="dino-knn or instdisc-knn")
    parser.add_argument("--output", type=Path, help="JSON lines to add the results to")
    parser.add_argument("--name", default="", help="what to call this in the output")
    return parser.parse_known_args(argv)


def main() -> None:
    own, rest = parse(sys.argv[1:])
    model_arguments, data_arguments, arguments = parse_arguments(rest)
    import torch

    from albef_hf.evaluation.probes import KNN_PROTOCOLS, knn_accuracy, linear_probe, logistic_regression
    from albef_hf.training.initialization import build_vision_backbone
    from ssl_methods.augment import view_recipes
    from ssl_methods.pictures import load_pictures
    from ssl_methods.supervised import train_supervised

    if own.knn_protocol not in KNN_PROTOCOLS:
        raise ValueError(f"knn_protocol must be one of {', '.join(KNN_PROTOCOLS)}, not {own.knn_protocol!r}")
    if not (own.model or own.baselines or own.supervised_epochs):
        raise ValueError("nothing to do: give --model, --baselines or --supervised_epochs")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    untrained = build_vision_backbone(model_arguments).eval()
    channels = getattr(untrained.backbone.config, "num_channels", 3)
    loaded = load_pictures(data_arguments, model_arguments.image_size, channels)
    if loaded is None:
        raise ValueError("probes need labels: set label_column")
    train, test = loaded
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def encoded(backbone: Any) -> list[torch.Tensor]:
        return [part.features(backbone.to(device), device) for part in loaded]

    found: dict[str, Any] = {}
    if own.baselines:
        found["raw pixels"] = [part.encode(lambda pixels: pixels.flatten(1)) for part in loaded]
        found["random initialisation"] = encoded(untrained)
    if own.model:
        model_arguments.vision_model, model_arguments.vision_config = own.model, {}
        found[own.name or own.model] = encoded(build_vision_backbone(model_arguments).eval())
    if own.supervised_epochs:
        recipe = view_recipes(data_arguments.augmentation, **data_arguments.augmentation_options)[0]
        options = {"epochs": own.supervised_epochs, "batch_size": arguments.batch_size, "seed": arguments.seed}
        found["supervised"] = encoded(train_supervised(untrained, train, recipe, **options))
    for name, (a, b) in found.items():
        results: dict[str, Any] = {}
        if "knn" in own.probes:
            accuracies = knn_accuracy(a, train.labels, b, test.labels, *KNN_PROTOCOLS[own.knn_protocol])
            results |= {f"knn_{k}": value for k, value in accuracies.items()}
        if "logistic" in own.probes:
            results["logistic_regression"] = logistic_regression(a, train.labels, b, test.labels)["accuracy"]
        if "linear" in own.probes:
            results["linear_probe"] = linear_probe(a, train.labels, b, test.labels)["accuracy"]
        print(f"{name:40} " + "  ".join(f"{key} {100 * value:5.1f} %" for key, value in results.items()))
        if own.output is not None:
            own.output.parent.mkdir(parents=True, exist_ok=True)
            with own.output.open("a", encoding="utf-8") as handle:
                row = {"name": name, "seed": arguments.seed, "dataset": data_arguments.dataset, **results}
                handle.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
