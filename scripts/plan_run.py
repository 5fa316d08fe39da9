"""Plan a run before it is started: memory of a GPU, bytes that it sends in a step, step time, hours, samples.

python scripts/plan_run.py configs/albef_4m.yaml --gpus 8 --gpu a100 --tf32 --rows 5100000 [--key value ...]

Nothing is trained, no data set and no weights are read. docs/scaling.md, "Planning", says what is counted and what is
a model. With --fine_tune the run is one of fine-tuning on `task`.
"""

import sys

sys.path.sort(key=lambda folder: folder.endswith("scripts"))  # last: `import evaluate` means the library

import argparse
import dataclasses
from typing import Any

from albef_hf.training.arguments import parse_arguments
from albef_hf.training.task_arguments import TASK_GROUPS


def own_flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False
    )
    parser.add_argument("--rows", type=int, default=0, help="samples of the corpus (needed)")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs in all (default: 1)")
    parser.add_argument("--gpus_per_node", type=int, default=8, help="GPUs of a machine (default: 8)")
    parser.add_argument("--gpu", default="h100", help="v100, a100, h100 or h200 (default: h100)")
    parser.add_argument("--tf32", action="store_true", help="products of float32 are computed in TF32")
    parser.add_argument("--within", type=float, default=300, help="GB/s a GPU sends within a machine (default: 300)")
    parser.add_argument("--between", type=float, default=25, help="GB/s a GPU sends to other machines (default: 25)")
    parser.add_argument("--fine_tune", action="store_true", help="plan fine-tuning on `task`")
    parser.add_argument("--tokens", type=int, default=0, help="tokens of a text (default: the longest that is kept)")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    return parser


def method_and_batch(options: argparse.Namespace, groups: Any) -> tuple[Any, dict[str, Any]]:
    """The configured method without weights, and a batch without content."""
    import torch

    from albef_hf.tasks import task_named
    from albef_hf.training.planning import albef_batch, albef_without_weights, image_batch, vision_fields_alone
    from ssl_methods import METHODS
    from ssl_methods.run import build_method

    model_arguments, data_arguments, arguments, task_arguments = groups
    size, batch_size = model_arguments.image_size, arguments.batch_size
    if model_arguments.method in METHODS:
        fields = vision_fields_alone(model_arguments)
        alone = dataclasses.replace(model_arguments, vision_config=fields, vision_model=None)
        with torch.device("meta"):
            method = build_method(alone)
        return method, image_batch(batch_size, getattr(method.backbone.backbone.config, "num_channels", 3), size)
    if model_arguments.method != "albef":
        raise ValueError(f"method must be one of albef, {', '.join(METHODS)}, not {model_arguments.method!r}")
    if options.fine_tune:
        model = albef_without_weights(model_arguments, task_named(task_arguments.task).model_class)
    else:
        model = albef_without_weights(model_arguments)
    tokens = options.tokens or data_arguments.max_caption_tokens
    return model, albef_batch(model, batch_size, size, tokens, data_arguments.mlm_probability)


def main() -> None:
    parser = own_flags()
    options, rest = parser.parse_known_args()
    if options.rows <= 0 and not {"-h", "--help"} & set(rest):
        raise ValueError(f"--rows must be the number of samples of the corpus, not {options.rows}")
    groups = parse_arguments(rest, TASK_GROUPS, script=parser)
    from albef_hf.training.planning import Cluster, plan
    from albef_hf.training.simulation import simulate

    cluster = Cluster(
        gpus=options.gpus,
        per_node=options.gpus_per_node,
        gpu=options.gpu,
        tf32=options.tf32,
        within=1e9 * options.within,
        between=1e9 * options.between,
    )
    method, batch = method_and_batch(options, groups)
    planned = plan(simulate(method, batch, groups[2], ranks=cluster.gpus), groups[2], cluster, options.rows)
    print(planned.as_json() if options.json else planned.table())


if __name__ == "__main__":
    main()
