"""One self-contained page: text, tables and inlined pictures; it opens without a network and without scripts."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from matplotlib.colors import to_hex

from medmap import NOTICE
from medmap.report.figures import HEAT
from medmap.task import Task

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
.notice { display:inline-block; background:#fff4d6; border-left:4px solid #c2920e; padding:6px 14px; font-size:13.5px; }
nav { margin-top:14px; font-size:14px; } nav a { color:var(--accent); margin-right:18px; text-decoration:none; }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(400px,1fr)); gap:18px; }
.card { background:#fff; border:1px solid var(--rule); border-radius:8px; padding:18px 20px; }
.card h3 { margin:0 0 2px; }
.numbers { display:grid; grid-template-columns:repeat(3,1fr); gap:14px 20px; margin:12px 0 4px; }
.number b { display:block; font-size:27px; line-height:1.15; font-variant-numeric:tabular-nums; }
.number span { color:var(--quiet); font-size:12.5px; }
table { border-collapse:separate; border-spacing:2px; font-variant-numeric:tabular-nums; background:#fff;
  border:1px solid var(--rule); border-radius:8px; padding:10px 12px; font-size:13.5px; }
th { font-weight:600; text-align:right; padding:3px 8px; color:var(--quiet); font-size:12.5px; vertical-align:bottom; }
td { text-align:right; padding:3px 9px; white-space:nowrap; }
td.scan { text-align:center; padding:3px 6px; font-size:15px; } td.scan.off { color:#c3ccd1; }
td.name, th.name { text-align:left; } td small { opacity:.85; }
td.heat { border-radius:4px; min-width:98px; } tr.first td { border-top:1px solid var(--rule); }
td.found { font-weight:700; color:var(--accent); }
figure { margin:14px 0 22px; } figure img { max-width:100%; height:auto; display:block; background:#fff;
  border:1px solid var(--rule); border-radius:8px; padding:8px; }
figcaption { margin-top:6px; max-width:110ch; }
.side { display:flex; flex-wrap:wrap; gap:26px; align-items:flex-start; }
.scroll { overflow-x:auto; }
footer { margin-top:48px; border-top:1px solid var(--rule); padding-top:12px; color:var(--quiet); font-size:13px; }
@media print { body { background:#fff; } main { max-width:none; padding:0; } h2 { break-after:avoid; }
  figure, table, .card { break-inside:avoid; } nav { display:none; } }
"""


def page(title: str, lead: str, sections: Sequence[tuple[str, str]], foot: str) -> str:
    """The whole page; sections are (title, HTML), those without HTML are left out. Texts besides are escaped here."""
    shown = [(words, body) for words, body in sections if body]
    links = "".join(f'<a href="#s{n}">{escape(words)}</a>' for n, (words, _) in enumerate(shown))
    bodies = "".join(
        f'<h2 id="s{n}">{escape(words)}</h2>{body}' for n, (words, body) in enumerate(shown)
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_CSS}</style></head><body><main><header><h1>{escape(title)}</h1>"
        f'<p class="quiet">{escape(lead)}</p><div class="notice">{escape(NOTICE)}</div><nav>{links}</nav></header>'
        f"{bodies}<footer>{escape(foot)}</footer></main></body></html>\n"
    )


def paragraph(text: str, *, quiet: bool = False) -> str:
    """A paragraph of plain text."""
    return f'<p class="quiet">{escape(text)}</p>' if quiet else f"<p>{escape(text)}</p>"


def picture(png: bytes, alt: str, caption: str = "", scale: float = 1.0) -> str:
    """A PNG inlined, ``scale`` of its pixels to a pixel of the page, with words for those who do not see it."""
    width = round(int.from_bytes(png[16:20], "big") / scale)  # as the PNG's header states it
    data = base64.b64encode(png).decode()
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{escape(alt)}" width="{width}" src="data:image/png;base64,{data}">{below}</figure>'


def score_card(title: str, words: str, numbers: Mapping[str, str]) -> str:
    """A box of a few large numbers."""
    shown = "".join(
        f'<div class="number"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for name, value in numbers.items()
    )
    head = f'<h3>{escape(title)}</h3><div class="quiet">{escape(words)}</div>'
    return f'<div class="card">{head}<div class="numbers">{shown}</div></div>'


def bullets(lines: Sequence[str]) -> str:
    """A list of plain texts."""
    return (
        f'<ul class="quiet">{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul>'
        if lines
        else ""
    )


def plain_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], bold: Sequence[bool] = ()
) -> str:
    """A table of texts, the first column names; rows marked bold stand out."""
    titles = "".join(
        f"<th{' class=name' if not n else ''}>{escape(words)}</th>" for n, words in enumerate(head)
    )
    lines = []
    for n, row in enumerate(rows):
        kind = " found" if n < len(bold) and bold[n] else ""
        cells = "".join(
            f'<td class="{"name" if not c else kind}">{escape(words)}</td>'
            for c, words in enumerate(row)
        )
        lines.append(f"<tr>{cells}</tr>")
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def subset_table(summary: Mapping, task: Task) -> str:
    """The subset table as papers lay it out: dots for scans, Dice as a heat map, rule and HD95 where they are known."""
    regions = [region.name for region in task.regions]
    ruled = [r for r in regions if r in summary.get("least_mm3", {}) and "dice_rule" in summary]
    distances, ruled_distances = summary.get("hd95", {}), summary.get("hd95_rule", {})
    head = "".join(f"<th>{escape(m.title)}</th>" for m in task.modalities)
    for score, there in (("Dice", True), ("HD95 mm", bool(distances))):
        head += "".join(f"<th>{escape(r)}<br>{score}</th>" for r in regions if there)
        head += "".join(f"<th>{escape(r)}<br>{score}, rule</th>" for r in ruled if there)

    def cells(kind: str, name: str, scores: Mapping) -> str:
        made = "".join(_heat(scores[r]) for r in regions)
        made += "".join(_heat(summary["dice_rule"][kind][name][r]) for r in ruled)
        for table, names in ((distances, regions), (ruled_distances, ruled)):
            made += "".join(_distance(table[kind][name][r]) for r in names if kind in table)
        return made

    lines, size = [], 0
    for key, scores in summary["subsets"].items():
        names = key.split("+")
        dots = "".join(
            f'<td class="scan{"" if m.name in names else " off"}">{"●" if m.name in names else "○"}</td>'
            for m in task.modalities
        )
        first = " class=first" if size and len(names) != size else ""
        lines.append(f"<tr{first}>{dots}{cells('subsets', key, scores)}</tr>")
        size = len(names)
    for n, (name, scores) in enumerate(summary.get("averages", {}).items()):
        words = f"mean, {name} ({scores[regions[0]]['subsets']} subset{'s' * (scores[regions[0]]['subsets'] != 1)})"
        label = f'<td class="name" colspan="{len(task.modalities)}">{escape(words)}</td>'
        lines.append(
            f"<tr{' class=first' if not n else ''}>{label}{cells('averages', name, scores)}</tr>"
        )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _heat(score: Mapping) -> str:
    mean = score["mean"]
    color = "#fff" if mean > 0.5 else "#1d2a33"
    style = f"background:{to_hex(HEAT(mean))};color:{color}"
    return f'<td class="heat" style="{style}"><b>{mean:.3f}</b> <small>± {score["sd"]:.3f}</small></td>'


def _distance(score: Mapping) -> str:
    if score["mean"] is None:
        return "<td>–</td>"
    undefined = (
        f' <small title="undefined in so many cases">({score["undefined"]})</small>'
        if score["undefined"]
        else ""
    )
    spread = "" if score["sd"] is None or score["n"] < 2 else f" <small>± {score['sd']:.1f}</small>"
    return f"<td>{score['mean']:.1f}{spread}{undefined}</td>"
