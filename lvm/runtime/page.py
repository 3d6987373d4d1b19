"""Pieces of a self-contained page: one style for light and dark ground, sections, tiles, tables. Nothing is loaded."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, CanvasText 16%, transparent);
  --soft: color-mix(in srgb, CanvasText 65%, transparent); --wash: color-mix(in srgb, CanvasText 5%, transparent); }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1060px; padding: 24px 16px 64px; background: Canvas; color: CanvasText;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 8px 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 44px 0 4px; padding-top: 10px; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 18px 0 6px; }
p { margin: 4px 0 12px; max-width: 76ch; } .soft { color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 10px; margin: 18px 0; }
.tile { background: var(--wash); border-radius: 10px; padding: 10px 14px; }
.tile b { display: block; font-size: 1.45rem; line-height: 1.25; } .tile span { color: var(--soft); font-size: .85rem; }
.wide { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: 5px 10px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); } th:first-child, td:first-child { text-align: left; }
td.good { font-weight: 700; } td.bad { color: #d64545; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); gap: 14px 22px;
  margin-bottom: 14px; }
.beside { display: flex; flex-wrap: wrap; gap: 14px 28px; align-items: center; } .beside > div { flex: 1 1 340px; }
svg { display: block; width: 100%; height: auto; }
.grid { display: grid; gap: 3px; min-width: 600px; margin-bottom: 12px; }
.grid span { font-size: .78rem; color: var(--soft); text-align: center; align-self: end; }
.grid img { width: 100%; display: block; border-radius: 2px; } img.small { image-rendering: pixelated; }
.grid img.answer { outline: 2px solid #d9822b; outline-offset: -1px; }
.chart { max-width: 620px; }
.strip { display: flex; flex-wrap: wrap; gap: 6px; margin: 4px 0 8px; }
.strip figure { margin: 0; width: 96px; } .strip.prompt figure { width: 58px; }
.strip img { width: 100%; display: block; border-radius: 2px; } .strip .answer img { outline: 2px solid #d9822b; }
figcaption { font-size: .74rem; line-height: 1.3; text-align: center; color: var(--soft); }
figcaption b { color: CanvasText; font-weight: 600; }
td.text, th.text { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 220px; }
details { margin-top: 20px; } pre { overflow-x: auto; font-size: .8rem; background: var(--wash); padding: 10px; }
"""


def number(value: Any, digits: int = 3) -> str:
    """Three significant digits; a dash where there is none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if abs(value) < 100 else f"{value:.0f}"


def section(title: str, explanation: str, *parts: str) -> str:
    body = "".join(parts)
    return f"<section><h2>{escape(title)}</h2><p class=soft>{explanation}</p>{body}</section>" if body else ""


def tile(value: str, caption: str) -> str:
    return f"<div class=tile><b>{escape(value)}</b><span>{escape(caption)}</span></div>"


def table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Cells are text, or (text, class)."""
    drawn = ["<tr>" + "".join(_cell("td", cell) for cell in row) + "</tr>" for row in rows]
    if not drawn:
        return ""
    top = "".join(_cell("th", name) for name in head)
    return f"<div class=wide><table><thead><tr>{top}</tr></thead><tbody>{''.join(drawn)}</tbody></table></div>"


def _cell(tag: str, cell: str | tuple[str, str]) -> str:
    words, kind = (cell, "") if isinstance(cell, str) else cell
    return f'<{tag} class="{kind}">{escape(words)}</{tag}>' if kind else f"<{tag}>{escape(words)}</{tag}>"


def document(title: str, body: str) -> str:
    """The whole page around what stands in its body."""
    head = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}</style></head>'
    )
    return f"{head}<body>{body}</body></html>\n"
