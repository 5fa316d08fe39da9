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

    from albef_hf.data.loading import build_retrieval_data, build_training_data
    from albef_hf.evaluation.curves import plot_curves
    from albef_hf.evaluation.model_card import write_model_card
    from albef_hf.evaluation.report import write_report
    from albef_hf.evaluation.retrieval import evaluate_retrieval
    from albef_hf.training.dry_run import describe_memory, draw_first_batch
    from albef_hf.training.initialization import build_albef
    from albef_hf.training.loop import build_accelerator, run_length, train

    methods = {"albef": build_albef}
    if model_arguments.method not in methods:
        raise ValueError(f"method must be one of {', '.join(methods)}, not {model_arguments.method!r}")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    accelerator = build_accelerator(arguments)
    set_seed(arguments.seed)
    method, processor = methods[model_arguments.method](model_arguments)
    data = build_training_data(
        data_arguments,
        processor,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        fixed_length=model_arguments.gather_negatives,
    )
    retrieval = build_retrieval_data(data_arguments)
    folder = Path(arguments.output_dir)
    trainable = sum(p.numel() for p in method.parameters() if p.requires_grad)
    length = run_length(arguments, data)
    accelerator.print(
        f"{trainable:,} trainable parameters, {data.rows:,} rows, {length.total_steps:,} steps "
        f"({length.steps_per_epoch:,} an epoch)"
    )
    if arguments.dry_run:
        if accelerator.is_main_process:
            batch = next(data.batches())
            print(f"memory of a step: {describe_memory(method, batch)}")
            print(f"first batch: {draw_first_batch(batch, processor, folder / 'first_batch.png')}")
        return
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(resolved(model_arguments, data_arguments, arguments), encoding="utf-8")
        packages = ("albef-hf", "torch", "transformers", "datasets", "accelerate", "timm")
        versions = {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages}
        (folder / "versions.json").write_text(json.dumps(versions, indent=2), encoding="utf-8")
    accelerator.wait_for_everyone()
    if arguments.report_to != "none":
        accelerator.init_trackers("albef")

    def evaluate(model: torch.nn.Module, k: int = 0):
        length = data_arguments.max_caption_tokens
        return evaluate_retrieval(model, processor, retrieval, k=k, accelerator=accelerator, max_length=length)  # type: ignore[arg-type]

    method = train(  # type: ignore[assignment]
        method,
        data,
        arguments,
        accelerator,
        max_rejected_fraction=data_arguments.max_rejected_fraction,
        evaluate=None if retrieval is None else lambda model: evaluate(model).metrics,
        evaluation_name="" if retrieval is None else retrieval.name,
    )
    result = None if retrieval is None else evaluate(method, arguments.rerank)
    if accelerator.is_main_process:
        method.save_pretrained(folder / "model")
        processor.save_pretrained(folder / "model")
        if result is not None:
            (folder / "evaluations").mkdir(exist_ok=True)
            (folder / "evaluations" / f"step-{length.total_steps:08d}.json").write_text(result.to_json())
            row = {"step": length.total_steps, "name": retrieval.name, "metrics": result.metrics}
            with (folder / "log.jsonl").open("a", encoding="utf-8") as handle:
                handle.write(json.dumps({"kind": "evaluation", **row}) + "\n")
            for name, value in result.metrics.items():
                print(f"{name:32} {100 * value:6.2f} %   chance {100 * result.chance.get(name, float('nan')):5.2f} %")
        plot_curves(folder / "log.jsonl", folder / "curves.png")
        write_model_card(folder, folder / "model", result)
        print(f"report: {write_report(folder, result, retrieval)}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
