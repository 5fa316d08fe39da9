"""report.html: a run on one page that opens without a network.

Pictures are inside the file, there is no script, and text from data or configuration is escaped.
"""

from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from ..data.lines import read_lines
from ..data.retrieval import RetrievalData
from ..evaluation.recall import CUTOFFS, NO_RIGHT_ANSWER
from ..evaluation.retrieval import RERANKED, RetrievalResult
from .curves import TITLES, plot_curves
from .gallery import GALLERY_SEED, gallery_section
from .html import (
    STYLE,
    code_tag,
    data_address,
    duration_text,
    html_row,
    html_table,
    short_number,
    shown_text,
    small_percent,
    thousands,
)
from .log import RunLog
from .run_folder import RunFolder

REASONS_SHOWN = 12


def write_report(
    run_folder: Path | str,
    result: RetrievalResult | None,
    data: RetrievalData | None,
    sections: Sequence[str] = (),
) -> Path:
    """Write report.html and curves.png into a run folder. A missing file leaves its part of the report out.

    Args:
        run_folder: may hold log.jsonl, config.yaml, versions.json and rejected.jsonl.
        result: retrieval with the final weights; None leaves out its table and gallery.
        data: the images and texts of `result`; None leaves out the gallery.
        sections: further sections, such as those of `picture_section` and `table_section`. They follow the losses.

    Returns: the path of report.html.
    """
    run = RunFolder.read(run_folder)
    folder, log = run.path, run.log
    log_path = folder / "log.jsonl"
    curves = plot_curves(log_path, folder / "curves.png") if log_path.exists() else None
    parts = [_header(run, result), _warnings(log), _losses(log, curves), *sections]
    if result is not None:
        parts.append(_retrieval(log, result))
        if data is not None:
            parts.append(gallery_section(result, data))
    parts += [_rejected(folder), _origins(folder)]
    title = escape(_method(log))
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}: training report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


# ---------------------------------------------------------------------------------------------------------------------
# What was trained
# ---------------------------------------------------------------------------------------------------------------------


def _method(log: RunLog) -> str:
    return str(log.run.get("method", "model")).upper()


def _header(run: RunFolder, result: RetrievalResult | None) -> str:
    config, log = run.config, run.log
    mixed = [str(entry.get("dataset", config.get("dataset"))) for entry in config.get("mixture") or []]
    trained_on = ", ".join(mixed) or config.get("dataset")
    last = log.train[-1] if log.train else {}
    sentence = f"Trained on {code_tag(str(trained_on))}" if trained_on else "Trained"
    if "step" in last:
        sentence += f" for {thousands(last['step'])} optimizer steps"
    if result is not None:
        sentence += (
            f"; retrieval measured on {code_tag(result.name)}, {thousands(result.images)} images and "
            f"{thousands(result.texts)} texts"
        )
    tiles = []
    if "parameters" in log.run:
        tiles.append((short_number(log.run["parameters"]), "trainable parameters"))
    if "step" in last:
        total = log.run.get("total_steps")
        tiles.append(
            (thousands(last["step"]), f"of {thousands(total)} optimizer steps" if total else "optimizer steps")
        )
    if "epoch" in last:
        tiles.append((f"{last['epoch']:.4g}", "epochs"))
    if "seconds" in last:
        tiles.append((duration_text(last["seconds"]), "training time"))
    speeds = log.series("samples_per_second")[1]
    if len(speeds):
        tiles.append((f"{np.median(speeds):,.4g}", "samples per second (median)"))
    if result is not None:
        name = f"{result.final_prefix}mean_recall"
        value, chance = result.metrics[name], result.chance[name]
        tiles.append((f"{value:.1%}", f"mean recall (chance {chance:.2%})"))
    boxes = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in tiles
    )
    return (
        f'<header>\n<h1>{escape(_method(log))}: training report</h1>\n<p class="lead">{sentence}.</p>\n'
        f'<div class="tiles">{boxes}</div>\n</header>'
    )


def _losses(log: RunLog, curves: Path | None) -> str:
    if not log.train:
        return ""
    averaged = max(1, len(log.train) // 20)
    rows = []
    for name in log.loss_names():
        values = log.series(name)[1]
        if not len(values):
            continue
        final, chance = float(values[-averaged:].mean()), log.chance(name)
        cells = [f"{values[0]:.3f}", f"{final:.3f}", "", ""]
        if chance is not None:
            cells[2:] = [f"{chance:.3f}", f"{final / chance:.0%}" if chance > 0 else ""]
        label = TITLES.get(name, name.removeprefix("loss_").replace("_", " "))
        rows.append(html_row(label, cells, "mean" if name == "loss" else ""))
    rows = rows[1:] + rows[:1] if len(rows) > 1 else rows  # the total last
    window = "the last logged step" if averaged == 1 else f"the mean of the last {averaged} logged steps"
    picture = ""
    if curves is not None:
        picture = (
            f'\n<h3>Curves</h3>\n<figure class="curves"><img alt="Training curves against optimizer steps" '
            f'src="{data_address(curves.read_bytes(), "png")}"></figure>'
        )
    return (
        "<section>\n<h2>Losses</h2>\n<p>Chance is what a model that knows nothing would have: the same score for "
        f"every candidate, every label, every word. Final is {window}.</p>\n"
        + html_table(["Loss", "At start", "Final", "Chance", "Final / chance"], rows)
        + picture
        + "\n</section>"
    )


def _warnings(log: RunLog) -> str:
    if not log.warnings:
        return ""
    steps_of: dict[str, list[int]] = {}  # by the text before the bracket, whose numbers change
    for row in log.warnings:
        steps_of.setdefault(str(row["text"]).split("(")[0].strip(), []).append(row["step"])
    items = []
    for text, steps in steps_of.items():
        when = "before the first step" if steps == [0] else f"step {thousands(steps[0])}"
        when += f" and {thousands(len(steps) - 1)} times more" if len(steps) > 1 else ""
        items.append(f'<li class="wrong"><span>{shown_text(text)} <i class="soft">({when})</i></span></li>')
    return f'<section>\n<h2>Warnings</h2>\n<ul class="warnings">{"".join(items)}</ul>\n</section>'


# ---------------------------------------------------------------------------------------------------------------------
# Retrieval
# ---------------------------------------------------------------------------------------------------------------------


def _retrieval(log: RunLog, result: RetrievalResult) -> str:
    orders = [("", "Contrastive")] + ([(RERANKED, f"Top {result.k} re-ranked")] if result.k > 0 else [])
    heads = ["", *(head for _, order in orders for head in (order, "× chance")), "Chance"]
    names = [
        (f"{direction}_r{cutoff}", f"{label} R@{cutoff}")
        for direction, label in (("image_to_text", "Image → text"), ("text_to_image", "Text → image"))
        for cutoff in CUTOFFS
    ]
    rows = []
    for name, label in [*names, ("mean_recall", "Mean of the six")]:
        cells = []
        for prefix, _ in orders:
            value, chance = result.metrics[prefix + name], result.chance[prefix + name]
            cells += [f"{value:.1%}", f"{value / chance:,.1f}"]
        cells.append(small_percent(result.chance[name]))
        rows.append(html_row(label, cells, "mean" if name == "mean_recall" else ""))
    steps = [row["step"] for row in log.evaluations if row.get("name") == result.name]
    measured = f", measured at step {thousands(steps[-1])}" if steps else ""
    unanswerable = int((result.image_ranks == NO_RIGHT_ANSWER).sum() + (result.text_ranks == NO_RIGHT_ANSWER).sum())
    left_out = (
        f" {thousands(unanswerable)} queries have no right answer here and are left out." if unanswerable else ""
    )
    return (
        f"<section>\n<h2>Retrieval: {escape(result.name)}</h2>\n<p>{thousands(result.images)} images, "
        f"{thousands(result.texts)} texts{measured}. R@K: the share of queries with a right answer among the first K; "
        "wrong answers with the same score count as ahead of the right one. Chance is the exact expectation of a "
        f"random order.{left_out}</p>\n" + html_table(heads, rows) + "\n</section>"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Where it came from
# ---------------------------------------------------------------------------------------------------------------------


def _rejected(folder: Path) -> str:
    path = folder / "rejected.jsonl"
    if not path.exists():
        return ""
    rows = read_lines(path)
    if not rows:
        return "<section>\n<h2>Rejected samples</h2>\n<p>None: every sample could be used.</p>\n</section>"
    reasons = Counter((str(row.get("source", "")), str(row.get("reason", ""))) for row in rows)
    lines = []
    for (source, reason), count in reasons.most_common(REASONS_SHOWN):
        lines.append(
            f'<tr><td>{thousands(count)}</td><td class="text">{shown_text(reason)}</td>'
            f'<td class="text">{shown_text(source)}</td></tr>'
        )
    others = len(reasons) - len(lines)
    note = (
        f" The {len(lines)} most frequent are listed, {thousands(others)} more kinds are in the file."
        if others
        else ""
    )
    return (
        f"<section>\n<h2>Rejected samples</h2>\n<p>{thousands(len(rows))} times a sample could not be used; each is "
        f"listed in <code>rejected.jsonl</code>.{note}</p>\n"
        + html_table(["Times", ("Reason", "text"), ("Source", "text")], lines)
        + "\n</section>"
    )


def _origins(folder: Path) -> str:
    blocks = []
    for name, title in (("versions.json", "Versions"), ("config.yaml", "Resolved configuration")):
        path = folder / name
        if path.exists():
            text = escape(path.read_text(encoding="utf-8").strip())
            blocks.append(f"<details><summary>{title}</summary><pre>{text}</pre></details>")
    return f"<section>\n<h2>To repeat this run</h2>\n{''.join(blocks)}\n</section>" if blocks else ""


__all__ = ["GALLERY_SEED", "write_report"]
