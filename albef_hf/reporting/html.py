"""The look of a report: one style sheet, no script, nothing fetched. Follows the reader's light or dark setting."""

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
