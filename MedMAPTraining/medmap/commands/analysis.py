"""``medmap analyze``: bundles and a cohort to the gap between modalities, as numbers and as a picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medmap.bundle.loading import load_bundle
from medmap.evaluation.modality_gap import collect_latents, default_tap, gap_measures, tsne_map
from medmap.io.atomic import Transaction, make_folder
from medmap.io.cohorts import find_cases
from medmap.report.latents import LatentPanel, draw_latents

Report = Callable[[float, str], None]


@dataclass(frozen=True)
class AnalyzeOptions:
    """Options of ``medmap analyze``; see its help."""

    tap: str | None = None
    cases: int = 10
    places: int = 200
    seed: int = 0
    overwrite: bool = False


def analyze_bundles(
    bundles: Sequence[Path], data: Path, output: Path, options: AnalyzeOptions, report: Report
) -> dict[str, dict]:
    """Measure every bundle on the same cases; writes ``latents.json`` and ``tsne.png``; returns the measures."""
    make_folder(output)
    found, panels = {}, []
    plain = [path.name for path in bundles]
    names = (
        plain
        if len(set(plain)) == len(plain)
        else [f"{path.parent.name}/{path.name}" for path in bundles]
    )
    for n, (path, name) in enumerate(zip(bundles, names, strict=True)):
        report(n / len(bundles), name)
        bundle = load_bundle(path)
        cases = find_cases(data, bundle.task)[: options.cases]
        network = bundle.entry_for(bundle.task.modality_names).network
        tap = options.tap or default_tap(network)
        latents = collect_latents(bundle, cases, tap=tap, places=options.places, seed=options.seed)
        measures = {
            "bundle": bundle.id,
            "sha256": bundle.sha256,
            "tap": tap,
            **gap_measures(latents, options.seed),
        }
        found[name] = measures
        points, tumor = tsne_map(latents, seed=options.seed)
        titled = {bundle.task.modality(key).title: value for key, value in points.items()}
        caption = (
            f"{tap}: told apart {measures['two_sample_accuracy']['mean']:.2f} (chance 0.5), "
            f"MMD² {measures['mmd']['mean']:.2f}"
        )
        panels.append(LatentPanel(name, titled, tumor, caption))
    with Transaction(overwrite=options.overwrite) as out:
        out.path(output / "latents.json").write_text(
            json.dumps(found, indent=1) + "\n", encoding="utf-8"
        )
        out.path(output / "tsne.png").write_bytes(draw_latents(panels))
    return found
