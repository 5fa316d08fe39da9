"""Pre-train:  accelerate launch scripts/pretrain.py configs/quickstart.yaml [--key value ...]"""

import importlib.metadata
import json
import platform
from pathlib import Path

from albef_hf.training.arguments import parse_arguments, resolved


def main() -> None:
    model_arguments, data_arguments, arguments = parse_arguments()
    import torch
    from accelerate.utils import set_seed

    from albef_hf.training.albef_run import AlbefRun
    from albef_hf.training.dry_run import describe_memory
    from albef_hf.training.loop import build_accelerator, run_length, train
    from ssl_methods import METHODS
    from ssl_methods.run import ImageRun

    runs = {"albef": AlbefRun} | dict.fromkeys(METHODS, ImageRun)
    if model_arguments.method not in runs:
        raise ValueError(f"method must be one of {', '.join(runs)}, not {model_arguments.method!r}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    accelerator = build_accelerator(arguments)
    set_seed(arguments.seed)
    run = runs[model_arguments.method](model_arguments, data_arguments, arguments, accelerator)
    folder = Path(arguments.output_dir)
    trainable = sum(p.numel() for p in run.method.parameters() if p.requires_grad)
    length = run_length(arguments, run.data)
    accelerator.print(
        f"{trainable:,} trainable parameters, {run.data.rows:,} rows, {length.total_steps:,} steps "
        f"({length.steps_per_epoch:,} an epoch)"
    )
    if arguments.dry_run:
        if accelerator.is_main_process:
            batch = next(run.data.batches())
            batch.pop("rejected")
            print(f"first batch: {run.draw(batch, folder / 'first_batch.png')}")
            print(f"memory of a step: {describe_memory(run.method, run.data.to_device(batch, torch.device('cpu')))}")
        return
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(resolved(model_arguments, data_arguments, arguments), encoding="utf-8")
        packages = ("albef-hf", "torch", "transformers", "datasets", "accelerate", "timm")
        versions = {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages}
        (folder / "versions.json").write_text(json.dumps(versions, indent=2), encoding="utf-8")
    accelerator.wait_for_everyone()
    if arguments.report_to != "none":
        accelerator.init_trackers(model_arguments.method)
    method = train(
        run.method,
        run.data,
        arguments,
        accelerator,
        max_rejected_fraction=data_arguments.max_rejected_fraction,
        evaluate=run.evaluate if run.evaluation_name else None,
        evaluation_name=run.evaluation_name,
    )
    run.finish(method, folder, length.total_steps)
    accelerator.end_training()


if __name__ == "__main__":
    main()
