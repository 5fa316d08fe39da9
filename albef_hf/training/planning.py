"""What a run needs before it is started: memory, traffic, time. See docs/scaling.md, "Planning".

Memory, operations and traffic are counted in steps without data (`simulation.simulate`); time is a stated model of
them.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

import torch

from ..configuration_albef import AlbefConfig
from ..data.hints import nearest_hint
from ..modeling_albef_loading import AlbefPreTrainedModel
from ..modeling_albef_pretraining import AlbefForPreTraining
from ..modeling_albef_retrieval import AlbefForImageTextRetrieval
from ..trainable import Trainable
from .arguments import ModelArguments, TrainingArguments
from .foreign import foreign_config
from .initialization import RECIPE
from .simulation import StepCount
from .text_encoder import text_encoder_fields
from .vision_weights import set_image_size, vision_part

GIB = 2**30
# Share of the peak that matrix products, convolutions and attention reach, by type of number.
UTILIZATION = {"float32": 0.68, "tf32": 0.35, "bfloat16": 0.68, "float16": 0.68}
MEMORY_SHARE = 0.33  # of the memory's bandwidth that all other operations reach
HOST_SECONDS = 34e-6  # that Python needs to start an operation
LATENCY = 20e-6  # seconds of a collective, whatever it sends
OVERLAP = 2 / 3  # share of the computation, the backward pass, during which gradients are summed


@dataclass(frozen=True)
class Device:
    """A GPU: dense tera-operations per second by type of number, and bytes per second of its memory."""

    tflops: dict[str, float]
    bandwidth: float
    memory: float  # GiB


DEVICES = {
    "v100": Device({"float32": 15.7, "float16": 125, "bfloat16": 15.7}, 0.9e12, 32),
    "a100": Device({"float32": 19.5, "tf32": 156, "bfloat16": 312, "float16": 312}, 2.0e12, 80),
    "h100": Device({"float32": 67, "tf32": 495, "bfloat16": 989, "float16": 989}, 3.35e12, 80),
    "h200": Device({"float32": 67, "tf32": 495, "bfloat16": 989, "float16": 989}, 4.8e12, 141),
}


@dataclass(frozen=True)
class Cluster:
    """Where a run is planned. Bandwidths: bytes per second that a GPU sends.

    Args:
        gpus: in all. per_node: of a machine.
        gpu: one of `DEVICES`. tf32: products of float32 are computed in TF32.
        within: between GPUs of a machine. between: of a GPU to other machines.
    """

    gpus: int = 1
    per_node: int = 8
    gpu: str = "h100"
    tf32: bool = False
    within: float = 300e9
    between: float = 25e9

    def __post_init__(self) -> None:
        if self.gpu not in DEVICES:
            raise ValueError(f"unknown gpu {self.gpu!r}; {nearest_hint(self.gpu, DEVICES)}")
        if self.tf32 and "tf32" not in DEVICES[self.gpu].tflops:
            raise ValueError(f"a {self.gpu} has no TF32; leave tf32 out")
        for name in ("gpus", "per_node", "within", "between"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")


def step_seconds(count: StepCount, cluster: Cluster) -> dict[str, float]:
    """Seconds of an optimizer step by the stated model, and of its parts.

    Computing takes operations / (peak x utilization) and bytes / (bandwidth of the memory x its share), but no less
    than what Python needs to start all operations. Gradients are summed during the backward pass; what takes longer
    than this pass, and everything else that is exchanged, adds to the step.
    """
    device = DEVICES[cluster.gpu]
    rates = {kind: 1e12 * UTILIZATION[kind] * peak for kind, peak in device.tflops.items()}
    if cluster.tf32:
        rates["float32"] = rates["tf32"]
    products = sum(n / rates.get(kind, rates["float32"]) for kind, n in count.flops.items())
    others, host = count.moved / (MEMORY_SHARE * device.bandwidth), count.kernels * HOST_SECONDS
    computing = max(products + others, host)
    link = cluster.within if count.ranks <= cluster.per_node else min(cluster.within, cluster.between)
    gradients = max(0.0, count.gradients_sent / link - OVERLAP * computing)
    exchanged = sum(count.sent.values()) / link + sum(count.calls.values()) * LATENCY
    return {
        "matrix products": products,
        "other operations": others,
        "starting operations": host,
        "summing gradients, beyond the backward pass": gradients,
        "other exchange": exchanged,
        "step": computing + gradients + exchanged,
    }


@dataclass
class Plan:
    """The plan of a run: `count` of a step, `seconds` of `step_seconds`, steps, samples and hours of the run."""

    count: StepCount
    seconds: dict[str, float]
    cluster: Cluster
    batch_size: int
    global_batch: int
    steps: int

    @property
    def samples(self) -> int:
        return self.steps * self.global_batch

    @property
    def hours(self) -> float:
        return self.steps * self.seconds["step"] / 3600

    def as_json(self) -> str:
        values = dataclasses.asdict(self) | {
            "peak": self.count.peak,
            "gradients_sent": self.count.gradients_sent,
            "samples": self.samples,
            "hours": self.hours,
        }
        return json.dumps(values, indent=1)

    def table(self) -> str:
        """The plan as text, a line for each number."""
        count, cluster = self.count, self.cluster
        lines = [("memory of a GPU, GiB", f"{count.peak / GIB:.2f}")]
        lines += [(f"  {name}", f"{size / GIB:.2f}") for name, size in count.memory.items()]
        lines += [("  highest in the", count.phase), ("sent by a GPU in a step, MB", "")]
        lines += [("  gradients", f"{count.gradients_sent / 1e6:,.2f}")]
        lines += [("  beside gradients", f"{sum(count.sent.values()) / 1e6:,.3f}")]
        lines += [
            (f"    {k.replace('_', '-')}, {count.calls[k]} calls", f"{n / 1e6:,.3f}") for k, n in count.sent.items()
        ]
        lines += [(f"operations in {kind}, TFLOP", f"{n / 1e12:,.3f}") for kind, n in count.flops.items()]
        lines += [("step time, ms", f"{1e3 * self.seconds['step']:,.1f}")]
        lines += [(f"  {name}", f"{1e3 * t:,.1f}") for name, t in self.seconds.items() if name != "step"]
        lines += [
            ("samples a second", f"{self.global_batch / self.seconds['step']:,.0f}"),
            ("steps", f"{self.steps:,}"),
            ("samples seen", f"{self.samples:,}"),
            ("hours", f"{self.hours:,.1f}"),
        ]
        title = f"{cluster.gpus} x {cluster.gpu}, {self.batch_size} samples each, global batch {self.global_batch}"
        text = "\n".join([title, *(f"{name:46} {value:>14}".rstrip() for name, value in lines)])
        room = DEVICES[cluster.gpu].memory
        if count.peak > room * GIB:
            text += f"\nThis does not fit: a {cluster.gpu} has {room:g} GiB"
        return text


def plan(count: StepCount, arguments: TrainingArguments, cluster: Cluster, rows: int) -> Plan:
    """The plan of a run on a corpus of `rows` samples.

    Raises:
        ValueError: the corpus does not fill a global batch.
    """
    global_batch = arguments.batch_size * cluster.gpus * arguments.accumulation
    per_epoch = rows // global_batch
    if per_epoch == 0 and not arguments.max_steps:
        raise ValueError(f"a global batch of {global_batch} samples is larger than the corpus of {rows} rows")
    steps = arguments.max_steps or math.ceil(arguments.epochs * per_epoch)
    return Plan(count, step_seconds(count, cluster), cluster, arguments.batch_size, global_batch, steps)


def albef_without_weights(
    arguments: ModelArguments, model_class: type[AlbefPreTrainedModel] = AlbefForPreTraining
) -> Trainable:
    """The configured model on the device `meta`. Configurations are read, from the Hub too, but no weights.

    Raises:
        ValueError: a configuration is neither in a folder nor on the Hub.
    """
    recipe = {name: getattr(arguments, name) for name in RECIPE}
    if arguments.model_path is not None:
        config = foreign_albef(arguments.model_path)
        for name, value in recipe.items():
            setattr(config, name, value)
        fields = config.vision_config.to_dict()
        set_image_size(fields, arguments.image_size)
        config = AlbefConfig(**{**config.to_dict(), "vision_config": fields})
    else:
        text = text_encoder_fields(arguments.text_model) if arguments.text_model else {}
        shared = {name: getattr(arguments, name) for name in ("vision_pooling", "projection_dim", "temperature")}
        text |= arguments.text_config
        config = AlbefConfig(vision_config=vision_fields_alone(arguments), text_config=text, **shared, **recipe)
    with torch.device("meta"):
        model: Any = model_class(config)
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model


def foreign_albef(path: str) -> AlbefConfig:
    """The configuration of a model folder of ours.

    Raises:
        ValueError: there is none.
    """
    try:
        return AlbefConfig.from_pretrained(path)
    except OSError as error:
        raise ValueError(
            f"model_path {path!r} is neither a model folder nor found on the Hub; --model_path null plans with the "
            f"published architecture: {error}"
        ) from error


def vision_fields_alone(arguments: ModelArguments) -> dict[str, Any]:
    """Fields of the image encoder's configuration, without its weights. Raises: ValueError: see `foreign_config`."""
    fields = dict(arguments.vision_config)
    if arguments.vision_model is not None:
        fields = vision_part(foreign_config(arguments.vision_model)).to_dict() | fields
    fields.setdefault("model_type", "vit")
    for name in ("dtype", "torch_dtype"):
        fields.pop(name, None)
    set_image_size(fields, arguments.image_size)
    return fields


def albef_batch(model: Any, batch_size: int, image_size: int, tokens: int, mlm_probability: float) -> dict[str, Any]:
    """A batch as the model's collator makes it, without content: all texts have `tokens` tokens. Question answering
    has one answer of 5 tokens for each question."""
    config = model.config

    def numbers(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=torch.int64, device="meta")

    def reals(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, device="meta")

    images = (
        (2,) if config.text_config.images_per_text == 2 and type(model).__name__ != "AlbefForTextAssignment" else ()
    )
    channels = getattr(config.vision_config, "num_channels", 3)
    batch = {
        "pixel_values": reals(batch_size, *images, channels, image_size, image_size),
        "input_ids": numbers(batch_size, tokens),
        "attention_mask": numbers(batch_size, tokens),
    }
    kind = type(model).__name__
    if isinstance(model, (AlbefForPreTraining, AlbefForImageTextRetrieval)):
        batch |= {"image_ids": numbers(batch_size), "negative_draws": reals(batch_size, 2)}
    if isinstance(model, AlbefForPreTraining):
        masked = round(batch_size * (tokens - 2) * mlm_probability)
        batch |= {name: numbers(batch_size, tokens) for name in ("mlm_input_ids", "mlm_labels")}
        batch |= {"mlm_positions": numbers(masked), "caption_ids": numbers(batch_size)}
    elif kind == "AlbefForQuestionAnswering":
        batch |= {f"answer_{name}": numbers(batch_size, 5) for name in ("input_ids", "attention_mask")}
        batch["answer_weights"] = reals(batch_size)
    elif kind == "AlbefForTextAssignment":
        batch |= {"assignment_draws": reals(batch_size, 3)}
    elif kind != "AlbefForImageTextRetrieval":
        batch["labels"] = numbers(batch_size)
    return batch


def image_batch(batch_size: int, channels: int, image_size: int) -> dict[str, torch.Tensor]:
    """A batch of the image-only methods, without content."""
    views = torch.empty(batch_size, 2, channels, image_size, image_size, device="meta")
    return {"views": views, "shuffle_draws": torch.empty(batch_size, device="meta")}
