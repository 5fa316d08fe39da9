"""Pre-training of ALBEF for `scripts/pretrain.py`: what happens before, during and after the training loop."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from ..data.arguments import DataArguments
from ..data.loading import build_training_data
from ..data.retrieval import build_retrieval_data
from ..evaluation.retrieval import RetrievalResult, check_candidates, evaluate_retrieval
from ..reporting.curves import plot_curves
from ..reporting.log import put_evaluation
from ..reporting.model_card import write_model_card
from ..reporting.report import write_report
from .arguments import ModelArguments, TrainingArguments
from .dry_run import draw_first_batch
from .initialization import build_albef
from .launch import Run, attempt


class AlbefRun(Run):
    """Pre-training of ALBEF, evaluated by retrieval during training and at the end."""

    def __init__(
        self,
        model_arguments: ModelArguments,
        data_arguments: DataArguments,
        arguments: TrainingArguments,
        accelerator: Accelerator,
    ) -> None:
        self.arguments, self.data_arguments, self.accelerator = arguments, data_arguments, accelerator
        self.method, self.processor = build_albef(model_arguments)
        accelerator.print(f"{type(self.method).__name__}: {self.method.loading_report}")
        self.data = build_training_data(
            data_arguments,
            self.processor,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            accumulation=arguments.accumulation,
            fixed_length=model_arguments.gather_negatives,
        )
        self.retrieval = build_retrieval_data(data_arguments)
        self.evaluation_name = "" if self.retrieval is None else self.retrieval.name
        if self.retrieval is not None:  # fail now rather than after hours of training
            check_candidates(arguments.rerank, len(self.retrieval.image_groups), len(self.retrieval.texts))

    def _measure(self, model: nn.Module, k: int = 0) -> RetrievalResult:
        length = self.data_arguments.max_caption_tokens
        assert self.retrieval is not None
        return evaluate_retrieval(
            model,  # type: ignore[arg-type]
            self.processor,
            self.retrieval,
            k=k,
            accelerator=self.accelerator,
            max_length=length,
        )

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Retrieval metrics on the evaluation data; empty without such data. Called on all ranks."""
        return {} if self.retrieval is None else self._measure(model).metrics

    def draw(self, batch: dict[str, Any], path: Path) -> Path:
        """See `Run.draw`."""
        return draw_first_batch(batch, self.processor, path)

    def finish(self, method: nn.Module, folder: Path, step: int) -> None:
        """Save the trained model, evaluate it, and write its report. Called on all ranks."""
        main = self.accelerator.is_main_process
        if main:
            method.save_pretrained(folder / "model")  # type: ignore[operator]
            self.processor.save_pretrained(folder / "model")
        result = None
        if self.retrieval is not None:
            with attempt("the last evaluation", folder, step):
                result = self._measure(method, self.arguments.rerank)
        if not main:
            return
        if result is not None:
            (folder / "evaluations").mkdir(exist_ok=True)
            (folder / "evaluations" / f"step-{step:08d}.json").write_text(result.to_json())
            row = {"kind": "evaluation", "step": step, "name": self.evaluation_name, "metrics": result.metrics}
            put_evaluation(folder / "log.jsonl", row)
            for name, value in result.metrics.items():
                print(f"{name:32} {100 * value:6.2f} %   chance {100 * result.chance.get(name, float('nan')):5.2f} %")
        with attempt("the report", folder, step):
            plot_curves(folder / "log.jsonl", folder / "curves.png")
            write_model_card(folder, folder / "model", result)
            print(f"report: {write_report(folder, result, self.retrieval)}")
