"""``medmap analyze``: the gap between modalities in latent space, as numbers and a picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medmap.bundle.loading import load_bundle
from medmap.commands.names import distinct_names
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
    sampled_voxels: int = 200
    seed: int = 0
    overwrite: bool = False


def analyze_bundles(
    bundles: Sequence[Path], data: Path, output: Path, options: AnalyzeOptions, report: Report
) -> dict[str, dict]:
    """Measure every bundle on the same cases; writes ``latents.json`` and ``tsne.png``.

    Returns:
        The measures by bundle: see ``gap_measures``, with ``bundle``, ``sha256`` and ``tap``.
    """
    make_folder(output)
    measures = {}
    panels = []
    for number, (name, path) in enumerate(_names(bundles).items()):
        report(number / len(bundles), name)
        bundle = load_bundle(path)
        cases = find_cases(data, bundle.task)[: options.cases]
        network = bundle.entry_for(bundle.task.modality_names).network
        tap = options.tap or default_tap(network)
        latents = collect_latents(
            bundle,
            cases,
            tap=tap,
            places=options.sampled_voxels,
            seed=options.seed,
        )
        measures[name] = {
            "bundle": bundle.id,
            "sha256": bundle.sha256,
            "tap": tap,
            **gap_measures(latents, options.seed),
        }
        points, tumor = tsne_map(latents, seed=options.seed)
        titled_points = {bundle.task.modality(key).title: xy for key, xy in points.items()}
        caption = _caption(measures[name])
        panels.append(LatentPanel(name, titled_points, tumor, caption))
    with Transaction(overwrite=options.overwrite) as out:
        text = json.dumps(measures, indent=1) + "\n"
        out.path(output / "latents.json").write_text(text, encoding="utf-8")
        out.path(output / "tsne.png").write_bytes(draw_latents(panels))
    return measures


def _names(bundles: Sequence[Path]) -> dict[str, Path]:
    """The bundles by folder name, with the parent folder's where two are alike."""
    candidates = []
    for path in bundles:
        folder = path.absolute()
        candidates.append((folder.name, f"{folder.parent.name}/{folder.name}", str(folder)))
    return dict(zip(distinct_names(candidates), bundles, strict=True))


def _caption(measures: dict) -> str:
    accuracy = measures["two_sample_accuracy"]["mean"]
    mmd = measures["mmd"]["mean"]
    return (
        f"{measures['tap']}: MMD² {mmd:.2f}\ndomain-classifier accuracy {accuracy:.2f} (chance 0.5)"
    )
