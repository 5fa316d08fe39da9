"""The curves of a run in one picture."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from .log import RunLog, read_log

# Okabe and Ito's palette, which people with any common color blindness can tell apart; without yellow, faint on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
INK = "#333333"
FAINT = "#8a8a8a"
COLUMNS = 3
FEW_POINTS = 40
TITLES = {
    "loss": "Total loss",
    "loss_itc": "Image-text contrast",
    "loss_itm": "Image-text matching",
    "loss_mlm": "Masked language modeling",
    "learning_rate": "Learning rate",
    "temperature": "Temperature",
    "gradient_norm": "Gradient norm",
    "samples_per_second": "Samples per second",
    "momentum": "Momentum",
    "projection_spread": "Spread of projections",
    "effective_rank": "Effective rank of projections",
    "uniformity": "Uniformity",
    "positive_similarity": "Similarity of positives",
    "negative_similarity": "Similarity of negatives",
    "momentum_drift": "Distance of the momentum copy",
    "queue_fill": "Queue fill",
    "correlation_diagonal": "Correlation: diagonal",
    "correlation_off_diagonal": "Correlation: off-diagonal",
    "contrastive_accuracy": "own key in the batch",
    "itc_accuracy": "right caption in the batch",
    "itm_accuracy": "match or not",
}
# Each of these has its own panel, in this order, after the losses. A log without the key has no panel.
HEALTH = (
    "projection_spread",
    "effective_rank",
    "positive_similarity",
    "negative_similarity",
    "uniformity",
    "correlation_diagonal",
    "correlation_off_diagonal",
    "momentum_drift",
    "queue_fill",
)
SINGLE_PANELS = (*HEALTH, "learning_rate", "momentum", "temperature", "gradient_norm", "samples_per_second")
NOT_NOISY = ("learning_rate", "temperature", "momentum", "queue_fill")  # drawn without a running mean


def plot_curves(log_path: Path | str, out_png: Path | str) -> Path:
    """Draw the curves of a run.

    Args:
        log_path: log.jsonl of a run folder.
        out_png: the picture to write.

    Returns: the path of the picture.
    """
    out_png = Path(out_png)
    draw_curves(read_log(log_path)).savefig(out_png)
    return out_png


def draw_curves(log: RunLog) -> Figure:
    """Panels against optimizer steps: each loss with its chance level, health, optimizer, speed, and evaluations."""
    panels: list[tuple[str, Any]] = [(name, _draw_loss) for name in log.loss_names()]
    panels += [(name, _draw_value) for name in SINGLE_PANELS if len(log.series(name)[0])]
    if any(key.endswith("accuracy") for row in log.train for key in row):
        panels.append(("Accuracy in training batches", _draw_accuracies))
    for name in dict.fromkeys(row.get("name", "") for row in log.evaluations):
        rows_of_name = _evaluations(log, name)
        retrieval = any(key.endswith("_r10") for row in rows_of_name for key in row["metrics"])
        panels.append((name, _draw_retrieval if retrieval else _draw_measured_accuracies))

    columns = min(COLUMNS, max(1, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    figure = Figure(figsize=(4.3 * columns, 2.9 * rows), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(rows, columns)
    for index, (name, draw) in enumerate(panels):
        row, column = divmod(index, columns)
        last = index == len(panels) - 1
        axes = figure.add_subplot(grid[row, column:] if last else grid[row, column])  # the last panel fills its row
        _style(axes)
        draw(axes, log, name)
    if not panels:
        figure.text(0.5, 0.5, "nothing logged yet", ha="center", va="center", color=FAINT)
    return figure


def _evaluations(log: RunLog, name: str) -> list[dict[str, Any]]:
    """The rows of one evaluation by its name."""
    return [row for row in log.evaluations if row.get("name", "") == name]


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("optimizer step", fontsize=8, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=10, color=INK, loc="left", fontweight="bold")


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a twentieth of the points, around each point; near the ends, over those that exist."""
    half = len(values) // 40
    sums = np.concatenate([[0.0], np.cumsum(values)])
    positions = np.arange(len(values))
    first, end = np.maximum(positions - half, 0), np.minimum(positions + half + 1, len(values))
    return (sums[end] - sums[first]) / (end - first)


def _line(axes: Axes, steps: np.ndarray, values: np.ndarray, color: str, label: str | None = None) -> None:
    """A faint line through all points, and their running mean; where there are few points, the points themselves."""
    if len(values) < FEW_POINTS:
        axes.plot(steps, values, color=color, linewidth=1.8, marker="o", markersize=4, label=label)
        return
    axes.plot(steps, values, color=color, linewidth=0.7, alpha=0.3)
    axes.plot(steps, _smooth(values), color=color, linewidth=1.8, label=label)


def _chance_line(axes: Axes, level: float, label: str, color: str = FAINT) -> None:
    axes.axhline(level, color=color, linestyle=(0, (5, 3)), linewidth=1.3, zorder=1)
    # The label stands above its line, at the right edge: x in units of the axes, y in units of the data.
    axes.annotate(
        label,
        xy=(0.995, level),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=7.5,
        color=INK,
    )


def _note_last(axes: Axes, values: Sequence[float]) -> None:
    axes.set_title(f"last {values[-1]:.3g}", fontsize=8.5, color=FAINT, loc="right")


def _draw_loss(axes: Axes, log: RunLog, name: str) -> None:
    _title(axes, TITLES.get(name, name.removeprefix("loss_").replace("_", " ")))
    steps, values = log.series(name)
    if not len(values):
        axes.text(0.5, 0.5, "no finite value", transform=axes.transAxes, ha="center", color=FAINT)
        return
    _line(axes, steps, values, COLORS[0])
    _note_last(axes, _smooth(values).tolist())
    level = log.chance(name)
    if level is not None:
        _chance_line(axes, level, f"chance {level:.3g}")
    # Leave room for the label, and do not let a peak of the first steps flatten the rest.
    top = max(level or -math.inf, float(np.quantile(values, 0.995)))
    bottom = min(level if level is not None else math.inf, float(values.min()))
    room = (top - bottom) * 0.12 or abs(top) * 0.1 or 1.0
    axes.set_ylim(bottom - room / 2, top + room)


def _draw_value(axes: Axes, log: RunLog, name: str) -> None:
    _title(axes, TITLES.get(name, name.replace("_", " ")))
    steps, values = log.series(name)
    if name in NOT_NOISY and len(values) >= FEW_POINTS:
        axes.plot(steps, values, color=COLORS[2], linewidth=1.8)
    else:
        _line(axes, steps, values, COLORS[2])
    _note_last(axes, values.tolist())
    level = log.run.get("levels", {}).get(name)
    if level is not None:
        _chance_line(axes, level, f"collapse {level:.3g}")
    if name == "learning_rate":
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.set_ylim(bottom=0)
    elif name == "gradient_norm" and values.min() > 0 and values.max() > 30 * float(np.median(values)):
        axes.set_yscale("log")
    elif name == "samples_per_second":
        axes.set_ylim(0, float(values.max()) * 1.15 or 1.0)
    elif level is None and np.ptp(values) < 1e-4 * abs(values[-1]):  # constant but for rounding
        axes.set_ylim(*sorted((0.9 * values[-1], 1.1 * values[-1])))


def _draw_accuracies(axes: Axes, log: RunLog, name: str) -> None:
    _title(axes, name)
    keys = dict.fromkeys(key for row in log.train for key in row if key.endswith("accuracy"))
    for index, key in enumerate(keys):
        steps, values = log.series(key)
        if len(values):
            label = TITLES.get(key, key.removesuffix("_accuracy").replace("_", " "))
            _line(axes, steps, values, COLORS[index % len(COLORS)], label)
        level = log.run.get("levels", {}).get(key)
        if level is not None:
            _chance_line(axes, level, f"chance {level:.2%}", COLORS[index % len(COLORS)])
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.legend(fontsize=7.5, frameon=False, labelcolor=INK)


def _draw_retrieval(axes: Axes, log: RunLog, name: str) -> None:
    """Recall at 10 in both directions, contrastive (solid) and re-ranked (dotted), and the chance level."""
    _title(axes, f"Retrieval R@10: {name}" if name else "Retrieval R@10")
    rows = _evaluations(log, name)
    chance: dict[str, float] = {}
    directions = (("image_to_text_r10", "image → text", "o"), ("text_to_image_r10", "text → image", "s"))
    for index, (key, label, marker) in enumerate(directions):
        for prefix, suffix, style in (("", "", "-"), ("reranked_", ", re-ranked", ":")):
            points = [(row["step"], row["metrics"][prefix + key]) for row in rows if prefix + key in row["metrics"]]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    color=COLORS[index],
                    linestyle=style,
                    marker=marker,
                    markersize=5.5,
                    markerfacecolor="white",
                    linewidth=1.8,
                    label=label + suffix,
                )
        levels = [row["chance"][key] for row in rows if key in row.get("chance", {})]
        if levels:
            chance[key] = levels[-1]
    if chance:
        # The levels of both directions lie close together; where they do not, the higher is the one to beat.
        level = max(chance.values())
        _chance_line(axes, level, f"chance {level:.2%}")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7.5, frameon=False, labelcolor=INK)


def _draw_measured_accuracies(axes: Axes, log: RunLog, name: str) -> None:
    """Accuracies of an evaluation: of a task, or of frozen features."""
    _title(axes, f"Accuracy: {name}")
    rows = _evaluations(log, name)
    for index, key in enumerate(dict.fromkeys(key for row in rows for key in row["metrics"])):
        points = [(row["step"], row["metrics"][key]) for row in rows if key in row["metrics"]]
        axes.plot(*zip(*points, strict=True), color=COLORS[index % len(COLORS)], marker="o", markersize=4, label=key)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=None))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7.5, frameon=False, labelcolor=INK)
