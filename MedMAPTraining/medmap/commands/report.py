"""``medmap report``: evaluations, bundles, runs and pictures to one HTML page and its figures as PNG."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np

from medmap import __version__
from medmap.bundle.loading import METADATA, Bundle, load_bundle
from medmap.errors import InputDataError, UsageError
from medmap.evaluation import Evaluation, compare, groups, significance, table
from medmap.evaluation.store import ABOUT
from medmap.evaluation.summary import per_case_averages
from medmap.io.atomic import Transaction, check_output, make_folder
from medmap.report import html
from medmap.report.curves import TrainingLog, modality_curves, read_log, training_curves
from medmap.report.figures import SCALE, by_missing, forest, heat_map
from medmap.report.subset_grid import case_strip, subset_grid
from medmap.task import BRATS, Task

Report = Callable[[float, str], None]

_SHOWN_CASES = 4
_WORST = 4


@dataclass
class Sources:
    """What a report is made of."""

    evaluations: list[Evaluation] = field(default_factory=list)
    bundles: list[Bundle] = field(default_factory=list)
    logs: list[TrainingLog] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)

    @property
    def task(self) -> Task:
        """Of the first that has one."""
        return next((one.task for one in (*self.evaluations, *self.bundles)), BRATS)


def read_sources(paths: Sequence[Path]) -> Sources:
    """Sort what was given: evaluation folders, bundles, runs (or their ``log.jsonl``), PNG files, folders of PNG files.

    Raises UsageError for anything else.
    """
    found, logs = Sources(), []
    for path in paths:
        if (path / ABOUT).is_file():
            found.evaluations.append(Evaluation.read(path))
        elif (path / METADATA).is_file():
            found.bundles.append(load_bundle(path))
        elif (path / "log.jsonl").is_file() or path.suffix == ".jsonl":
            logs.append(path / "log.jsonl" if path.is_dir() else path)
        elif path.suffix.lower() == ".png" and path.is_file():
            found.pictures.append(path)
        elif path.is_dir() and any(path.glob("*.png")):
            found.pictures += sorted(path.glob("*.png"))
        else:
            raise UsageError(
                f"{path.name} is no evaluation, bundle, run or picture.",
                "Give folders of medmap evaluate --output, bundles, training runs, or PNG files.",
            )
    found.logs = [read_log(path, found.task.modality_names) for path in logs]
    return found


def write_report(
    paths: Sequence[Path],
    output: Path,
    *,
    title: str,
    figures: Path | None,
    overwrite: bool,
    report: Report,
) -> Path:
    """Write the page, and every figure as a PNG where a folder is given, all or nothing."""
    check_output(output, overwrite=overwrite)
    builder = _Builder(read_sources(paths), report)
    text = builder.build(title)
    if figures:
        make_folder(figures)
    with Transaction(overwrite=overwrite) as out:
        out.path(output).write_text(text, encoding="utf-8")
        for name, data in builder.figures.items() if figures else ():
            out.path(figures / f"{name}.png").write_bytes(data)
    return output


class _Builder:
    """Builds the sections and keeps the figures by name."""

    def __init__(self, sources: Sources, report: Report):
        self.sources, self.task, self.report = sources, sources.task, report
        self.figures: dict[str, bytes] = {}
        for one in (*sources.evaluations, *sources.bundles):
            if one.task.modality_names != self.task.modality_names:
                raise InputDataError("The report mixes tasks.", "Report on one task at a time.")

    def build(self, title: str) -> str:
        steps = (
            ("At a glance", self._glance),
            ("Every set of scans", self._tables),
            ("Which is better?", self._comparison),
            ("What it looks like", self._grids),
            ("Worst cases", self._worst),
            ("Feature space and other figures", self._pictures),
            ("Training", self._training),
            ("How it was measured", self._methods),
        )
        sections = []
        for n, (words, make) in enumerate(steps):
            self.report(n / len(steps), words.lower())
            sections.append((words, make()))
        count = len(self.sources.evaluations)
        lead = f"{count} evaluation{'s' * (count != 1)}, written {datetime.now():%d %B %Y} by MedMAP {__version__}"
        return html.page(
            title, lead, sections, f"MedMAP {__version__}. This page holds everything it shows."
        )

    def _figure(
        self, name: str, png: bytes, alt: str, caption: str = "", scale: float = SCALE
    ) -> str:
        self.figures[re.sub(r"[^A-Za-z0-9.+_-]+", "-", name)] = png
        return html.picture(png, alt, caption, scale)

    def _glance(self) -> str:
        cards = []
        for one in self.sources.evaluations:
            averages = one.summary.get("averages", {})
            shown = {
                key: averages[key]
                for key in ("0 missing", "all subsets", "without T1ce")
                if key in averages
            }
            words = {
                "0 missing": "all scans",
                "all subsets": f"mean of {len(one.summary['subsets'])} sets",
            }
            numbers = {
                f"{region.name} Dice, {words.get(key, key)}": f"{scores[region.name]['mean']:.3f}"
                for key, scores in shown.items()
                for region in self.task.regions
            }
            cards.append(
                html.score_card(
                    _name(one),
                    _cohort(one),
                    dict(list(numbers.items())[: 2 * len(self.task.regions)]),
                )
            )
        return f'<div class="cards">{"".join(cards)}</div>' if cards else ""

    def _tables(self) -> str:
        parts = []
        named = [(_name(one), one.summary) for one in self.sources.evaluations]
        named += [
            (f"{one.id} (its card)", one.card["dice"])
            for one in self.sources.bundles
            if one.card.get("dice")
        ]
        for name, summary in named:
            self.figures[f"table-{_slug(name)}"] = heat_map(
                summary, self.task, _table_title(name, summary)
            )
            parts.append(f"<h3>{html.escape(name)}</h3>" + html.subset_table(summary, self.task))
        parts += [self._by_missing(one) for one in self.sources.evaluations]
        if parts:
            parts.insert(0, html.paragraph(_reading(named), quiet=True))
            parts.append(html.bullets(_empties(named)))
        return "".join(parts)

    def _by_missing(self, one: Evaluation) -> str:
        values, regions = table(one.rows, self.task), [region.name for region in self.task.regions]
        found = {}
        for name, members in groups(self.task).items():
            if name.endswith(" missing"):
                averages = {
                    region: list(per_case_averages(values, members, region).values())
                    for region in regions
                }
                if all(averages.values()):
                    found[int(name.split()[0])] = averages
        if len(found) < 2:
            return ""
        png = by_missing(dict(sorted(found.items())), regions)
        caption = f"{_name(one)}: every dot a case, averaged over the sets with so many scans missing; median, quartiles."
        return self._figure(
            f"missing-{_slug(_name(one))}", png, "Dice against the number of missing scans", caption
        )

    def _comparison(self) -> str:
        if len(self.sources.evaluations) < 2:
            return ""
        first, *others = self.sources.evaluations
        return "".join(self._compare(first, other) for other in others)

    def _compare(self, first: Evaluation, second: Evaluation) -> str:
        tests = [test.to_dict() for test in compare(first.rows, second.rows, self.task)]
        regions = [region.name for region in self.task.regions]
        averages = [test for test in tests if test["kind"] == "average"]
        single = [test for test in tests if test["kind"] == "subset"]
        labels = {test["unit"]: self.task.subset_title(test["unit"]) for test in single}
        names = f"{_slug(_name(first))}-against-{_slug(_name(second))}"
        png = forest(single, labels, regions, "A", "B")
        caption = "Mean difference and 95 % confidence interval; filled: p < 0.05 after Holm's correction. Right: A better."
        body = f"<h3>A: {html.escape(_name(first))} against B: {html.escape(_name(second))}</h3>"
        body += html.paragraph(_verdict(averages, regions, self.task))
        body += html.plain_table(
            _TEST_HEAD, [_test_row(t) for t in averages], [t["p_holm"] < 0.05 for t in averages]
        )
        body += self._figure(
            f"forest-{names}", png, "Differences of Dice with confidence intervals", caption
        )
        return body + html.paragraph(significance.METHOD, quiet=True)

    def _grids(self) -> str:
        if not self.sources.evaluations:
            return ""
        cases = _representative(self.sources.evaluations[0], self.task)
        parts = []
        for one in self.sources.evaluations:
            slices = [kept for case in cases if (kept := one.picture(case))]
            if slices:
                png = subset_grid(slices, _by_case(one), self.task)
                caption = (
                    f"{_name(one)}: cases from the best segmented to the worst, at even quantiles."
                )
                parts.append(
                    self._figure(
                        f"grid-{_slug(_name(one))}", png, "Cases by sets of scans", caption, 1.0
                    )
                )
        return "".join(parts)

    def _worst(self) -> str:
        parts = []
        for one in self.sources.evaluations:
            scores = _by_case(one)
            full = self.task.subset_key(self.task.modality_names)
            ranked = sorted(
                (case for case in scores if full in scores[case]),
                key=lambda c: _mean(scores[c][full]),
            )
            shown = []
            for case in ranked[:_WORST]:
                found = {name: f"{value:.3f}" for name, value in scores[case][full].items()}
                words = f"{case}: Dice " + ", ".join(
                    f"{name} {value}" for name, value in found.items()
                )
                kept = one.picture(case)
                if kept:
                    png = case_strip(kept, full, self.task)
                    shown.append(
                        self._figure(
                            f"worst-{_slug(_name(one))}-{case}",
                            png,
                            words,
                            f"{words}. {kept.title}.",
                            1.0,
                        )
                    )
                else:
                    shown.append(html.paragraph(words))
            head = f"{html.escape(_name(one))}, all scans given, least mean Dice first"
            parts.append(f'<h3>{head}</h3><div class="side">{"".join(shown)}</div>')
        return "".join(parts)

    def _pictures(self) -> str:
        return "".join(
            self._figure(
                path.stem,
                path.read_bytes(),
                path.stem,
                path.stem.replace("_", " ").replace("-", " "),
                1.0,
            )
            for path in self.sources.pictures
        )

    def _training(self) -> str:
        titles = {modality.name: modality.title for modality in self.task.modalities}
        parts = []
        for log in self.sources.logs:
            parts.append(f"<h3>{html.escape(log.name)}</h3>")
            caption = "Thin: every step. Thick: running mean."
            parts.append(
                self._figure(
                    f"training-{log.name}", training_curves(log), "Training curves", caption
                )
            )
            own = modality_curves(log, titles)
            if own:
                caption = "What the objective says of each modality, step by step."
                parts.append(
                    self._figure(f"modalities-{log.name}", own, "Figures by modality", caption)
                )
        return "".join(parts)

    def _methods(self) -> str:
        parts = [
            html.paragraph(one.summary["rules"])
            for one in self.sources.evaluations[:1]
            if "rules" in one.summary
        ]
        rows = []
        for one in self.sources.evaluations:
            about = one.about
            when, versions = (
                about.get("when", ""),
                ", ".join(f"{k} {v}" for k, v in about.get("versions", {}).items()),
            )
            rows.append(
                [
                    _name(one),
                    _cohort(one),
                    str(about.get("weights", ""))[:16],
                    str(about.get("device", "")),
                    when,
                    versions,
                ]
            )
        if rows:
            parts.append(
                html.plain_table(
                    ["bundle", "cohort", "weights (SHA-256)", "device", "when", "versions"], rows
                )
            )
        for one in self.sources.evaluations:
            if one.about.get("scoring"):
                parts.append(html.paragraph(f"{_name(one)}: {one.about['scoring']}"))
        for bundle in self.sources.bundles:
            for key in ("description", "data", "training", "limits"):
                if bundle.card.get(key):
                    parts.append(html.paragraph(f"{bundle.id}, {key}: {bundle.card[key]}"))
        return "".join(parts)


_TEST_HEAD = (
    "average over",
    "region",
    "cases",
    "A",
    "B",
    "A - B (95 % CI)",
    "effect",
    "p",
    "p Holm",
    "p BH",
    "A better / worse",
)


def _test_row(test: dict) -> list[str]:
    interval = "" if test["low"] is None else f" ({test['low']:+.3f} to {test['high']:+.3f})"
    numbers = [
        f"{test['mean_a']:.3f}",
        f"{test['mean_b']:.3f}",
        f"{test['difference']:+.3f}{interval}",
    ]
    chances = [
        "< 0.001" if test[key] < 0.001 else f"{test[key]:.3f}" for key in ("p", "p_holm", "p_bh")
    ]
    verdict = f"{test['better']} / {test['worse']}"
    return [
        test["unit"],
        test["region"],
        str(test["cases"]),
        *numbers,
        f"{test['effect']:+.2f}",
        *chances,
        verdict,
    ]


def _verdict(averages: Sequence[dict], regions: Sequence[str], task: Task) -> str:
    """What the tests over all subsets say, in a sentence."""
    said = []
    for test in (t for t in averages if t["unit"] == "all subsets"):
        if test["p_holm"] < 0.05:
            better = "A" if test["difference"] > 0 else "B"
            said.append(
                f"{test['region']}: {better} is better by {abs(test['difference']):.3f} (p {test['p_holm']:.2g})"
            )
        else:
            said.append(
                f"{test['region']}: no difference was found ({test['difference']:+.3f}, p {test['p_holm']:.2g})"
            )
    cases = averages[0]["cases"] if averages else 0
    few = " With so few cases only large differences can be found." if cases < 20 else ""
    return (
        f"Averaged over all sets of scans, {cases} cases: {'; '.join(said)}.{few}" if said else ""
    )


def _name(one: Evaluation) -> str:
    part = one.about.get("part")
    return f"{one.title}{f', {part}' if part else ''}"


def _cohort(one: Evaluation) -> str:
    count = one.summary["cases"]
    data = one.summary.get("data", "")
    return f"{count} case{'s' * (count != 1)}: {data}"


def _table_title(name: str, summary: dict) -> str:
    count = summary["cases"]
    return f"{name}\nDice, mean ± SD over {count} case{'s' * (count != 1)}"


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")


def _by_case(one: Evaluation) -> dict[str, dict[str, dict[str, float]]]:
    """case -> subset -> region -> Dice."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in one.rows:
        found.setdefault(row.case, {}).setdefault(row.subset, {})[row.region] = row.dice
    return found


def _mean(scores: dict[str, float]) -> float:
    return float(np.mean(list(scores.values())))


def _representative(one: Evaluation, task: Task) -> list[str]:
    """Cases with pictures at even quantiles of mean Dice over all their subsets, best first."""
    scores = _by_case(one)
    ranked = sorted(scores, key=lambda case: -np.mean([_mean(s) for s in scores[case].values()]))
    ranked = [case for case in ranked if one.picture(case)]
    chosen = np.linspace(0, len(ranked) - 1, min(_SHOWN_CASES, len(ranked))).round().astype(int)
    return [ranked[n] for n in dict.fromkeys(chosen.tolist())]


def _reading(named) -> str:
    """How to read the tables, with the rules for empty masks."""
    least = next((summary["least_mm3"] for _, summary in named if summary.get("least_mm3")), {})
    said = ["● given, ○ missing. Mean ± SD over cases; Dice from 0 (light) to 1 (dark)."]
    if any("hd95" in summary for _, summary in named):
        said.append(
            "A mask that is empty in both prediction and reference scores Dice 1 and HD95 0; in one of them only, Dice "
            "0, and HD95 is undefined: left out of the mean, and counted in brackets."
        )
    said += [
        f"Rule: a predicted {name} below {volume:.0f} mm³ counts as none, for the scores of {name} only."
        for name, volume in least.items()
    ]
    return " ".join(said)


def _empties(named) -> list[str]:
    """How many empty masks stand behind the numbers."""
    said = []
    for name, summary in named:
        for region, counts in summary.get("empty", {}).items():
            if any(counts[key] for key in ("reference", "prediction", "emptied_by_rule")):
                cases = f"{counts['reference']} case{'s' * (counts['reference'] != 1)}"
                said.append(
                    f"{name}, {region}: absent in the reference of {cases}; "
                    f"{counts['prediction']} of {counts['predictions']} predictions found none "
                    f"({counts['both']} rightly); the small-region rule empties {counts['emptied_by_rule']}."
                )
    return said
