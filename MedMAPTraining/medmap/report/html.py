"""One self-contained page: text, tables, inlined pictures; it needs neither network nor scripts.

Standard library only: 3D Slicer, which has no Matplotlib, writes the same pages.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from medmap import NOTICE

_CSS = """
:root { --ink:#1d2a33; --quiet:#66757f; --rule:#d9e0e4; --accent:#12665f; --paper:#fbfaf7; }
* { box-sizing:border-box; }
body { margin:0; background:var(--paper); color:var(--ink);
  font:15px/1.55 system-ui,-apple-system,"Segoe UI","Helvetica Neue",Arial,sans-serif; }
main { max-width:1320px; margin:0 auto; padding:40px 32px 64px; }
header { border-bottom:3px solid var(--accent); padding-bottom:18px; margin-bottom:28px; }
h1 { font-size:30px; line-height:1.2; margin:0 0 6px; letter-spacing:-.01em; }
h2 { font-size:21px; margin:44px 0 8px; padding-top:18px; border-top:1px solid var(--rule); }
h3 { font-size:16px; margin:26px 0 6px; }
p { margin:6px 0 12px; max-width:82ch; }
.quiet, figcaption, caption { color:var(--quiet); font-size:13px; }
.notice { display:inline-block; background:#fff4d6; border-left:4px solid #c2920e;
  padding:6px 14px; font-size:13.5px; }
nav { margin-top:14px; font-size:14px; } nav a { color:var(--accent); margin-right:18px;
  text-decoration:none; }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(400px,1fr)); gap:18px; }
.card { background:#fff; border:1px solid var(--rule); border-radius:8px; padding:18px 20px; }
.card h3 { margin:0 0 2px; }
.numbers { display:grid; grid-template-columns:repeat(3,1fr); gap:14px 20px; margin:12px 0 4px; }
.number b { display:block; font-size:27px; line-height:1.15; font-variant-numeric:tabular-nums; }
.number span { color:var(--quiet); font-size:12.5px; }
table { border-collapse:separate; border-spacing:2px; font-variant-numeric:tabular-nums;
  background:#fff;
  border:1px solid var(--rule); border-radius:8px; padding:10px 12px; font-size:13.5px; }
th { font-weight:600; text-align:right; padding:3px 8px; color:var(--quiet); font-size:12.5px;
  vertical-align:bottom; }
td { text-align:right; padding:3px 9px; white-space:nowrap; }
td.scan { text-align:center; padding:3px 6px; font-size:15px; } td.scan.off { color:#c3ccd1; }
td.name, th.name { text-align:left; } td small { opacity:.85; }
td.heat { border-radius:4px; min-width:98px; } tr.first td { border-top:1px solid var(--rule); }
td.found { font-weight:700; color:var(--accent); }
figure { margin:14px 0 22px; } figure img { max-width:100%; height:auto; display:block;
  background:#fff;
  border:1px solid var(--rule); border-radius:8px; padding:8px; }
figcaption { margin-top:6px; max-width:110ch; }
.side { display:flex; flex-wrap:wrap; gap:26px; align-items:flex-start; }
.scroll { overflow-x:auto; }
td.plane { text-align:left; vertical-align:top; white-space:normal; } td.plane figure { margin:0; }
td.plane img { max-width:none; border:0; padding:0; }
@media screen { td.plane img { width:auto; } }
footer { margin-top:48px; border-top:1px solid var(--rule); padding-top:12px;
  color:var(--quiet); font-size:13px; }
@media print { body { background:#fff; } main { max-width:none; padding:0; }
  h2 { break-after:avoid; }
  figure, table, .card { break-inside:avoid; } nav { display:none; } }
"""


def page(
    title: str,
    lead: str,
    sections: Sequence[tuple[str, str]],
    foot: str,
    *,
    notice: str = NOTICE,
    language: str = "en",
) -> str:
    """The whole page.

    Args:
        title, lead, foot: plain texts; they are escaped here.
        sections: (title, HTML); those without HTML are left out.
        notice: what the results may be used for, maybe in another language.
        language: tag of the language of all texts (BCP 47), for screen readers and hyphenation.
    """
    filled = [(heading, body) for heading, body in sections if body]
    links = []
    bodies = []
    for number, (heading, body) in enumerate(filled):
        escaped = escape(heading)
        links.append(f'<a href="#s{number}">{escaped}</a>')
        bodies.append(f'<h2 id="s{number}">{escaped}</h2>{body}')
    return (
        f'<!DOCTYPE html><html lang="{escape(language)}"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_CSS}</style></head>"
        f"<body><main><header><h1>{escape(title)}</h1>"
        f'<p class="quiet">{escape(lead)}</p><div class="notice">{escape(notice)}</div>'
        f"<nav>{''.join(links)}</nav></header>"
        f"{''.join(bodies)}<footer>{escape(foot)}</footer></main></body></html>\n"
    )


def paragraph(text: str, *, quiet: bool = False) -> str:
    """A paragraph of plain text."""
    attribute = ' class="quiet"' if quiet else ""
    return f"<p{attribute}>{escape(text)}</p>"


def picture(png: bytes, alt: str, caption: str = "", scale: float = 1.0) -> str:
    """A PNG inlined, ``scale`` of its pixels to a pixel of the page, with a text alternative."""
    # Bytes 16 to 20 of a PNG hold its width (the IHDR chunk).
    width_pixels = int.from_bytes(png[16:20], "big")
    width = round(width_pixels / scale)
    data = base64.b64encode(png).decode()
    below = ""
    if caption:
        below = f"<figcaption>{escape(caption)}</figcaption>"
    source = f"data:image/png;base64,{data}"
    return f'<figure><img alt="{escape(alt)}" width="{width}" src="{source}">{below}</figure>'


def score_card(title: str, subtitle: str, numbers: Mapping[str, str]) -> str:
    """A box of a few large numbers."""
    boxes = []
    for name, value in numbers.items():
        number = f"<b>{escape(value)}</b>"
        caption = f"<span>{escape(name)}</span>"
        boxes.append(f'<div class="number">{number}{caption}</div>')
    all_boxes = "".join(boxes)
    heading = f"<h3>{escape(title)}</h3>"
    quiet = f'<div class="quiet">{escape(subtitle)}</div>'
    body = f'<div class="numbers">{all_boxes}</div>'
    return f'<div class="card">{heading}{quiet}{body}</div>'


def bullets(lines: Sequence[str], *, quiet: bool = True) -> str:
    """A list of plain texts; nothing where there are none."""
    if not lines:
        return ""
    attribute = ""
    if quiet:
        attribute = ' class="quiet"'
    items = [f"<li>{escape(line)}</li>" for line in lines]
    all_items = "".join(items)
    return f"<ul{attribute}>{all_items}</ul>"


def plain_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], bold: Sequence[bool] = ()
) -> str:
    """A table of texts, the first column names; rows marked bold stand out."""
    titles = ""
    for number, text in enumerate(head):
        attribute = ""
        if number == 0:
            attribute = " class=name"
        titles += f"<th{attribute}>{escape(text)}</th>"
    lines = []
    for number, row in enumerate(rows):
        is_bold = number < len(bold) and bold[number]
        score_class = ""
        if is_bold:
            score_class = " found"
        cells = f'<td class="name">{escape(row[0])}</td>'
        for text in row[1:]:
            cells += f'<td class="{score_class}">{escape(text)}</td>'
        lines.append(f"<tr>{cells}</tr>")
    return framed_table(titles, lines)


def framed_table(head: str, lines: Sequence[str]) -> str:
    """A table that scrolls sideways, from the cells of its head and whole rows."""
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )
