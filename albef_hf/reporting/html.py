"""Parts of an HTML page: sections, tables, pictures inside the file, text; and the style sheet.

A page fetches nothing and runs no script. It follows the reader's light or dark setting. Text from data or
configuration is escaped here.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from PIL import Image

THUMBNAIL = 144  # pixels, the longer side
TEXT_SHOWN = 240  # characters
EXAMPLE_SIDE = 240  # pixels of an example

STYLE = """
:root {
  --page: #fbfaf8; --card: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #dedbd5;
  --right: #00664a; --right-back: #e3f4ed; --wrong: #a8420f; --wrong-back: #fbeee6; --accent: #0a5c94;
  color-scheme: light dark;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --card: #1d2125; --ink: #e7e9eb; --soft: #a3adb7; --line: #363c42;
    --right: #5fd3a9; --right-back: #16332a; --wrong: #f4a071; --wrong-back: #3a2418; --accent: #7cc0f0;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "DejaVu Sans",
    sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .35rem; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; margin: 2.8rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.8rem 0 .7rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
.soft, figcaption, caption { color: var(--soft); }
.lead { font-size: 1.08rem; color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; margin: 1.4rem 0 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.35rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; background: var(--card);
  border: 1px solid var(--line); border-radius: .6rem; overflow: hidden; }
caption { text-align: left; font-size: .9rem; padding: 0 0 .5rem; }
th, td { padding: .5rem .9rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-size: .82rem; font-weight: 600; color: var(--soft); }
th:first-child, td:first-child, th.text, td.text { text-align: left; }
td.text { white-space: normal; overflow-wrap: anywhere; }
tr:last-child td, tr:last-child th[scope=row] { border-bottom: 0; }
th[scope=row] { color: var(--ink); font-size: 1rem; font-weight: 500; }
tr.mean td, tr.mean th { font-weight: 650; border-top: 2px solid var(--line); }
figure { margin: 0; }
figure.curves img { width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: .6rem;
  padding: .6rem; display: block; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(30rem, 1fr)); gap: .9rem; }
.query { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .9rem; }
.query.by-image { display: grid; grid-template-columns: 6.5rem 1fr; gap: 1rem; align-items: start; }
.query > img, .query > figure > img { width: 6.5rem; height: 6.5rem; }
img.picture { object-fit: contain; background: #fff; border-radius: .4rem; border: 1px solid var(--line); }
.query ol { list-style: none; margin: 0; padding: 0; font-size: .92rem; }
.query li { display: flex; gap: .5rem; padding: .13rem .5rem; margin-bottom: .2rem; border-left: 4px solid transparent;
  border-radius: .25rem; }
.query li span:last-child { overflow-wrap: anywhere; }
.right { background: var(--right-back); border-color: var(--right) !important; }
.wrong { border-left-style: dotted !important; border-color: var(--wrong) !important; }
.mark { font-weight: 700; flex: none; width: 1.1rem; text-align: center; }
.right .mark { color: var(--right); } .wrong .mark { color: var(--wrong); }
.query blockquote { margin: 0 0 .7rem; font-weight: 600; overflow-wrap: anywhere; }
.warnings { list-style: none; padding: 0; margin: 0; }
.warnings li { padding: .4rem .8rem; margin-bottom: .4rem; border-left: 4px solid; border-radius: .25rem; }
.row { display: grid; grid-template-columns: repeat(5, 1fr); gap: .5rem; }
.pair { display: flex; gap: .5rem; margin-bottom: .7rem; }
.pair img { width: 50%; max-width: 12rem; height: auto; }
.row figure { border: 2px solid; border-radius: .45rem; padding: .2rem; text-align: center; }
.row figure.right { border-width: 4px; padding: calc(.2rem - 2px); }
.row figure.wrong { border-style: dotted; border-left-style: dotted; }
.row img { width: 100%; aspect-ratio: 1; display: block; }
.row figcaption { font-size: 1.05rem; line-height: 1.25; }
.place { font-size: .85rem; color: var(--soft); margin: .45rem 0 0; }
.by-image .place { grid-column: 1 / -1; margin: -.3rem 0 0; }
details { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .7rem 1rem;
  margin-top: .7rem; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font: .84rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  margin: .7rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 40rem) { .gallery { grid-template-columns: 1fr; }
  .query.by-image { grid-template-columns: 4.5rem 1fr; } .query > img { width: 4.5rem; height: 4.5rem; } }
@media print { main { max-width: none; } .query, .tile, tr { break-inside: avoid; } }
"""


def picture_section(title: str, caption: str, picture: Path) -> str:
    """A section with one PNG, which is put inside the page."""
    return (
        f"<section>\n<h2>{escape(title)}</h2>\n<p>{escape(caption)}</p>\n"
        f'<figure class="curves"><img alt="{escape(caption)}" src="{data_address(picture.read_bytes(), "png")}">'
        "</figure>\n</section>"
    )


def table_section(title: str, caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A section with one table. The first cell of each row is its name."""
    lines = [html_row(row[0], list(row[1:])) for row in rows]
    return f"<section>\n<h2>{escape(title)}</h2>\n<p>{escape(caption)}</p>\n{html_table(heads, lines)}\n</section>"


@dataclass
class Example:
    """An example: pictures, a text, and lines about it. A line is (text, whether it is right; None: neither)."""

    pictures: Sequence[Image.Image]
    text: str
    lines: list[tuple[str, bool | None]] = field(default_factory=list)


def example_section(title: str, caption: str, examples: Sequence[Example]) -> str:
    """A section with examples."""
    articles = []
    for example in examples:
        pictures = "".join(
            f'<img class="picture" alt="picture {number}: {escape(example.text)}" '
            f'src="{thumbnail(each, EXAMPLE_SIDE)}">'
            for number, each in enumerate(example.pictures, start=1)
        )
        items = []
        for text, right in example.lines:
            kind, mark = ("", "") if right is None else (verdict(right), verdict_mark(right))
            items.append(f'<li class="{kind}">{mark}<span>{escape(text)}</span></li>')
        body = f"<blockquote>{escape(example.text)}</blockquote><ol>{''.join(items)}</ol>"
        if len(example.pictures) == 1:
            articles.append(f'<article class="query by-image">{pictures}<div>{body}</div></article>')
        else:
            articles.append(f'<article class="query"><div class="pair">{pictures}</div>{body}</article>')
    return (
        f"<section>\n<h2>{escape(title)}</h2>\n<p>{escape(caption)}</p>\n"
        f'<div class="gallery">{"".join(articles)}</div>\n</section>'
    )


def thumbnail(picture: Image.Image, side: int = THUMBNAIL) -> str:
    """The address of a small copy of a picture, inside the page. side: the most pixels of its longer side."""
    picture = picture.convert("RGB")
    picture.thumbnail((side, side))
    encoded = {}
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 88})):
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        encoded[kind] = buffer.getvalue()
    kind = min(encoded, key=lambda each: len(encoded[each]))  # drawings as PNG, photographs as JPEG
    return data_address(encoded[kind], kind)


def data_address(content: bytes, kind: str) -> str:
    """The address of a picture inside the page. kind: png or jpeg."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def verdict(right: bool) -> str:
    """The class of an element that shows a right or a wrong answer."""
    return "right" if right else "wrong"


def verdict_mark(right: bool) -> str:
    """A check mark or a cross."""
    return f'<span class="mark" role="img" aria-label="{verdict(right)}">{"✓" if right else "✗"}</span>'


def shown_text(text: str) -> str:
    """Text for the page, cut where it is long."""
    return escape(text if len(text) <= TEXT_SHOWN else text[:TEXT_SHOWN].rstrip() + "…")


def html_table(heads: Sequence[str | tuple[str, str]], rows: Sequence[str]) -> str:
    """A table. heads: texts, or (text, class). rows: finished <tr> elements."""
    cells = []
    for head in heads:
        text, kind = (head, "") if isinstance(head, str) else head
        cells.append(f'<th scope="col"{f" class={kind!r}" if kind else ""}>{escape(text)}</th>')
    head, body = "".join(cells), "".join(rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def html_row(label: str, cells: list[str], kind: str = "") -> str:
    """A row of a table. kind: its class."""
    data = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f'<tr{f" class={kind!r}" if kind else ""}><th scope="row">{escape(label)}</th>{data}</tr>'


def code_tag(text: str) -> str:
    return f"<code>{escape(text)}</code>"


def thousands(number: float) -> str:
    return f"{int(number):,}"


def short_number(number: float) -> str:
    """209937725 -> '209.9 M'."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.4g} {letter}"
    return f"{number:.0f}"


def small_percent(share: float) -> str:
    """A share in percent, with one more digit where it is below 10 %."""
    return f"{share:.1%}" if share >= 0.1 else f"{share:.2%}"


def duration_text(seconds: float) -> str:
    """3725 -> '1 h 02 min'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
