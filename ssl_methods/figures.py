"""Pictures for the report of an image-only run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from albef_hf.losses import unit_vectors

from .bands import displayed, read_picture

SHOWN = 8
NEIGHBORS = 6
MAPPED = 1500
RIGHT, WRONG, PLAIN = "#009E73", "#D55E00", "#0072B2"


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white", dpi=110)
    FigureCanvasAgg(figure)
    return figure


def _show(axes: Any, picture: np.ndarray, color: str | None = None) -> None:
    """Draw a picture, with a frame where a color is given."""
    gray = picture.ndim == 2 or picture.shape[2] == 1
    shown = picture.reshape(*picture.shape[:2]) if gray else picture
    axes.imshow(shown, cmap="gray" if gray else None, vmin=0, vmax=1 if picture.dtype != np.uint8 else 255)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(color is not None)
        side.set_color(color)
        side.set_linewidth(3)


def draw_views(views: torch.Tensor, mean: Sequence[float], std: Sequence[float], path: Path) -> Path:
    """Draw both views of the first eight samples, as the method gets them. views: (batch, 2, channels, h, w)."""
    count = min(SHOWN, len(views))
    figure = _figure(1.35 * count, 3.0)
    average, deviation = (torch.tensor(values)[:, None, None] for values in (mean, std))
    for column in range(count):
        for view in range(2):
            axes = figure.add_subplot(2, count, view * count + column + 1)
            pixels = (views[column, view].cpu() * deviation + average).clamp(0, 1)
            _show(axes, pixels[: 3 if len(pixels) >= 3 else 1].permute(1, 2, 0).numpy())
            if column == 0:
                axes.set_ylabel(f"view {view + 1}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def draw_neighbors(
    features: torch.Tensor, pictures: Any, labels: Sequence[Any] | None, path: Path, seed: int = 0
) -> Path:
    """Draw eight pictures, chosen at random with a fixed seed, and the six nearest neighbors of each.

    Where there are labels, the frame and the caption of a neighbor say whether it has the same class.
    """
    rows = unit_vectors(features.float())
    queries = np.sort(np.random.default_rng(seed).choice(len(rows), min(SHOWN, len(rows)), replace=False))
    figure = _figure(1.15 * (NEIGHBORS + 1), 1.2 * len(queries))
    for line, query in enumerate(queries):
        similarity = rows @ rows[query]
        similarity[query] = -2
        nearest = similarity.topk(min(NEIGHBORS, len(rows) - 1)).indices.tolist()
        for column, index in enumerate([int(query), *nearest]):
            axes = figure.add_subplot(len(queries), NEIGHBORS + 1, line * (NEIGHBORS + 1) + column + 1)
            same = labels is not None and labels[index] == labels[int(query)]
            color = None if column == 0 or labels is None else (RIGHT if same else WRONG)
            _show(axes, displayed(read_picture(pictures[index], pictures.channels)), color)
            if line == 0:
                axes.set_title("query" if column == 0 else f"{column}", fontsize=9)
            if color is not None:
                axes.set_xlabel("same class" if same else "other", fontsize=7, color=color)
    figure.savefig(path)
    return path


def draw_map(features: torch.Tensor, labels: Sequence[Any] | None, names: Sequence[str] | None, path: Path) -> Path:
    """Draw features in two dimensions: by t-SNE where scikit-learn is installed, else by two principal components."""
    chosen = np.sort(np.random.default_rng(0).choice(len(features), min(MAPPED, len(features)), replace=False))
    rows = unit_vectors(features.float())[torch.from_numpy(chosen)]
    centered = rows - rows.mean(0)
    _, _, directions = torch.linalg.svd(centered, full_matrices=False)
    try:
        from sklearn.manifold import TSNE

        start = (centered @ directions[: min(50, len(directions))].T).numpy()
        layout = TSNE(metric="cosine", init="random", random_state=0, perplexity=min(30, len(rows) // 4))
        positions, title = layout.fit_transform(start), "t-SNE"
    except ImportError:
        positions, title = (centered @ directions[:2].T).numpy(), "principal components"
    figure = _figure(7.5, 6)
    axes = figure.add_subplot()
    if labels is None:
        axes.scatter(positions[:, 0], positions[:, 1], s=9, color=PLAIN)
    else:
        shown = np.asarray(labels)[chosen]
        markers = "osD^vPX*<>"
        for number, label in enumerate(np.unique(shown)):
            name = str(names[int(label)]) if names is not None else str(label)
            x, y = positions[shown == label].T
            axes.scatter(x, y, s=14, label=name, marker=markers[number % 10], color=f"C{number % 10}", alpha=0.8)
        if len(np.unique(shown)) <= 20:
            axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_title(f"Features of {len(chosen)} pictures: {title}", fontsize=11, loc="left")
    axes.set_xticks([])
    axes.set_yticks([])
    figure.savefig(path)
    return path
