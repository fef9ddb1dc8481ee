"""Writes the table of measured Dice of the default model into README.md and the model card.

usage: python docs/_tools/performance.py [--check]

``--check`` writes nothing and exits with 1 if a table is out of date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
METADATA = ROOT / "Resources/bundles/default/metadata.json"
PAGES = {
    ROOT / "README.md": ("dice",),
    ROOT / "docs/model_card.md": ("dice", "dice_synthetic"),
}
"""Pages, and the tables of the bundle's card that they show, real cases first."""

START = "<!-- performance: written by docs/_tools/performance.py -->"
END = "<!-- end of performance -->"

REGIONS = ("WT", "TC", "ET")


def title(subset: str, titles: dict[str, str]) -> str:
    """``t1ce+flair`` -> ``T1ce + FLAIR``."""
    return " + ".join(titles[name] for name in subset.split("+"))


KINDS = {"dice": "held-out real cases", "dice_synthetic": "synthetic cases"}
"""Tables of the card, and what their cases are."""


def tables(keys: Sequence[str]) -> str:
    """Those of the tables that the card has."""
    metadata = json.loads(METADATA.read_text(encoding="utf-8"))["medmap"]
    titles = {m["name"]: m["title"] for m in metadata["task"]["modalities"]}
    card = metadata["card"]
    return "\n\n".join(table(card[key], titles, KINDS[key]) for key in keys if key in card)


def table(dice: dict, titles: dict[str, str], kind: str) -> str:
    """One row per modality subset: mean and SD of Dice for each region."""
    lines = [f"| Modalities ({dice['cases']} {kind}) | WT | TC | ET |", "|---|--:|--:|--:|"]
    for subset, scores in dice["subsets"].items():
        cells = [f"{scores[r]['mean']:.2f} ± {scores[r]['sd']:.2f}" for r in REGIONS]
        lines.append(f"| {title(subset, titles)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(path: Path) -> str:
    """The text of a page with today's table between its markers."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{tables(PAGES[path])}\n{END}{after}"


if __name__ == "__main__":
    outdated = [p for p in PAGES if page(p) != p.read_text(encoding="utf-8")]
    if "--check" in sys.argv:
        sys.exit(bool(outdated))
    for path in outdated:
        path.write_text(page(path), encoding="utf-8")
