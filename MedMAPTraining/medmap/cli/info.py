"""``medmap info`` and ``verify``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medmap.cli.base import app, loaded_bundle, out
from medmap.cli.tables import print_table

if TYPE_CHECKING:
    from medmap.bundle.loading import Bundle, Entry


@app.command()
def info(
    bundle: Annotated[Path | None, typer.Argument(help="Bundle folder.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print everything as JSON, for programs.")
    ] = False,
) -> None:
    """Show a bundle's description, training data and measured Dice for each modality subset."""
    loaded = loaded_bundle(bundle)
    if as_json:
        typer.echo(json.dumps(_content(loaded), indent=1))
        return
    out.print(f"{loaded.id}  SHA-256 {loaded.sha256}", soft_wrap=True, markup=False)
    for key in ("description", "data", "training", "limits"):
        text = loaded.card.get(key)
        if text:
            out.print(f"{key.capitalize()}: {text}", markup=False)
    modalities = ", ".join(f"{m.name} ({m.title})" for m in loaded.task.modalities)
    out.print(f"Task: {loaded.task.name}; modalities: {modalities}", markup=False)
    labels = ", ".join(f"{label.value} {label.name}" for label in loaded.task.labels)
    regions = ", ".join(f"{r.name} ({' + '.join(r.labels)})" for r in loaded.task.regions)
    out.print(f"Labels: {labels}; regions: {regions}", markup=False)
    for entry in loaded.entries:
        millions = _parameters(entry) / 1e6
        out.print(
            f"Network: {entry.network_spec.name}, {millions:.2f} M parameters, "
            f"for {_subset(loaded, entry)}"
        )
    _print_scores(loaded)


def _print_scores(loaded: Bundle) -> None:
    """The card's table of Dice."""
    table = loaded.card.get("dice")
    if not table:
        out.print("Validation: none.")
        return
    regions = [region.name for region in loaded.task.regions]
    rows = []
    for subset, scores in table["subsets"].items():
        cells = [subset]
        for name in regions:
            score = scores[name]
            cells.append(f"{score['mean']:.3f} ± {score['sd']:.3f}")
        rows.append(cells)
    title = f"Dice, mean ± SD over {table['cases']} cases: {table['data']}"
    print_table(title, ["modalities", *regions], rows)


def _content(loaded: Bundle) -> dict[str, Any]:
    """What ``info --json`` prints."""
    networks = []
    for entry in loaded.entries:
        networks.append(
            {
                "name": entry.network_spec.name,
                "parameters": _parameters(entry),
                "modalities": list(entry.modalities),
                "any_subset": entry.network.needs is None,
            }
        )
    return {
        "id": loaded.id,
        "sha256": loaded.sha256,
        "task": loaded.task.to_dict(),
        "networks": networks,
        "preprocess": loaded.preprocess.to_dict(),
        "card": loaded.card,
    }


def _parameters(entry: Entry) -> int:
    return sum(parameter.numel() for parameter in entry.network.parameters())


def _subset(loaded: Bundle, entry: Entry) -> str:
    if entry.network.needs is None:
        return f"any subset of {loaded.task.titles(entry.modalities)}"
    return loaded.task.titles(entry.modalities)


@app.command()
def verify(bundle: Annotated[Path | None, typer.Argument(help="Bundle folder.")] = None) -> None:
    """Check every byte of a bundle against its SHA-256, then build and load it."""
    loaded = loaded_bundle(bundle)
    network_count = f" ({len(loaded.entries)} networks)" if loaded.further_networks else ""
    out.print(
        f"{loaded.id} is intact{network_count}. SHA-256 {loaded.sha256}",
        soft_wrap=True,
        markup=False,
    )
