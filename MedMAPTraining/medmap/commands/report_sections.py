"""The sections of a report, each from the sources to HTML; figures are kept by name beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from medmap.bundle.card import NOT_STATED
from medmap.commands.report_examples import dice_by_case, examples, mean_of, slug
from medmap.commands.report_sources import Figures, Sources
from medmap.evaluation import Evaluation, PairedTest, compare, groups, significance, table
from medmap.evaluation.scoring import check_same_labels
from medmap.evaluation.summary import per_case_averages
from medmap.evaluation.tables import Summary, counted
from medmap.metrics import EMPTY_MASK_RULE
from medmap.report import html
from medmap.report.curves import modality_curves, training_curves
from medmap.report.figures import by_missing, forest, heat_map
from medmap.report.subset_chart import subset_chart
from medmap.report.subset_grid import case_strip
from medmap.report.subset_table import subset_table
from medmap.task import Task

WORST_CASES = 4


def at_a_glance(sources: Sources, figures: Figures) -> str:
    """A card for each evaluation: mean Dice with all modalities, and over all subsets."""
    cards = []
    for name, evaluation in sources.named_evaluations:
        numbers = _key_numbers(evaluation.summary, sources.task)
        cards.append(html.score_card(name, _cohort(evaluation), numbers))
    if not cards:
        return ""
    return f'<div class="cards">{"".join(cards)}</div>'


def _key_numbers(summary: Summary, task: Task) -> dict[str, str]:
    """The first two averages that there are, of every region."""
    titles = {
        "0 missing": "all modalities",
        "all subsets": f"mean of {len(summary.dice.subsets)} subsets",
        "without T1ce": "without T1ce",
    }
    available = [name for name in titles if name in summary.dice.averages]
    numbers = {}
    for name in available[:2]:
        for region in task.regions:
            mean = summary.dice.averages[name][region.name].mean
            numbers[f"{region.name} Dice, {titles[name]}"] = f"{mean:.3f}"
    return numbers


def subset_tables(sources: Sources, figures: Figures) -> str:
    """The table of every evaluation and card, and Dice against the number of missing modalities."""
    summaries = sources.summaries
    parts = []
    for name, summary in summaries:
        picture = heat_map(summary, sources.task, _table_title(name, summary))
        figures.keep(f"table-{slug(name)}", picture)
        heading = html.escape(name)
        parts.append(f"<h3>{heading}</h3>")
        parts.append(subset_table(summary, sources.task))
    for name, evaluation in sources.named_evaluations:
        parts.append(_dice_by_missing(name, evaluation, sources.task, figures))
    parts.append(_methods_by_subset(sources, figures))
    if not any(parts):
        return ""
    reading = _how_to_read([summary for _, summary in summaries])
    explanation = html.paragraph(reading, quiet=True)
    notes = html.bullets(_empty_mask_notes(summaries))
    return explanation + "".join(parts) + notes


def _methods_by_subset(sources: Sources, figures: Figures) -> str:
    """One chart of all evaluations; nothing for fewer than two."""
    by_name = {name: evaluation.summary for name, evaluation in sources.named_evaluations}
    if len(by_name) < 2:
        return ""
    return figures.show(
        "methods-by-subset",
        subset_chart(by_name, sources.task),
        "Methods by modality subset",
        "Each point is a mean over cases and regions; dots below: the modalities given.",
    )


def _dice_by_missing(
    evaluation_name: str, evaluation: Evaluation, task: Task, figures: Figures
) -> str:
    """The figure of one evaluation; nothing where fewer than two numbers were scored."""
    values = table(evaluation.rows, task)
    regions = [region.name for region in task.regions]
    by_number = {}
    for name, members in groups(task).items():
        if not name.endswith(" missing"):
            continue
        averages = {}
        for region in regions:
            averages[region] = list(per_case_averages(values, members, region).values())
        if all(averages.values()):
            by_number[int(name.split()[0])] = averages
    if len(by_number) < 2:
        return ""
    return figures.show(
        f"missing-{slug(evaluation_name)}",
        by_missing(dict(sorted(by_number.items())), regions),
        "Dice against the number of missing modalities",
        f"{evaluation_name}: each dot is a case, averaged over the subsets with that many "
        "modalities missing; lines: median and quartiles.",
    )


def comparisons(sources: Sources, figures: Figures) -> str:
    """Paired tests of the first evaluation against each other one."""
    if not sources.named_evaluations:
        return ""
    first, *further = sources.named_evaluations
    parts = []
    for second in further:
        parts.append(_comparison(first, second, sources.task, figures))
    return "".join(parts)


def _comparison(
    named_first: tuple[str, Evaluation],
    named_second: tuple[str, Evaluation],
    task: Task,
    figures: Figures,
) -> str:
    name_a, first = named_first
    name_b, second = named_second
    check_same_labels(first.labels, second.labels)
    tests = compare(first.rows, second.rows, task)
    regions = [region.name for region in task.regions]
    averages = [test for test in tests if test.kind == "average"]
    single = [test for test in tests if test.kind == "subset"]
    heading = f"A: {html.escape(name_a)} against B: {html.escape(name_b)}"
    rows = [_test_row(test) for test in averages]
    significant = [test.p_holm < significance.SIGNIFICANT for test in averages]
    subset_titles = {test.unit: task.subset_title(test.unit) for test in single}
    picture = figures.show(
        f"forest-{slug(name_a)}-against-{slug(name_b)}",
        forest([test.to_dict() for test in single], subset_titles, regions, "A", "B"),
        "Differences of Dice with confidence intervals",
        "Mean difference and 95 % confidence interval; filled: p < 0.05 after Holm's correction. "
        "Right: A better.",
    )
    parts = [
        f"<h3>{heading}</h3>",
        html.paragraph(significance.verdict(tests)),
        html.plain_table(TEST_HEAD, rows, significant),
        picture,
        html.paragraph(significance.METHOD, quiet=True),
    ]
    return "".join(parts)


TEST_HEAD = (
    "average over",
    "region",
    "cases",
    "mean A",
    "mean B",
    "A - B (95 % CI)",
    "effect size",
    "p",
    "p (Holm)",
    "p (BH)",
    "cases A better / worse",
)


def _test_row(test: PairedTest) -> list[str]:
    values = test.to_dict()
    difference = f"{values['difference']:+.3f}"
    if values["low"] is not None:
        difference += f" ({values['low']:+.3f} to {values['high']:+.3f})"
    return [
        test.unit,
        test.region,
        str(test.cases),
        f"{values['mean_a']:.3f}",
        f"{values['mean_b']:.3f}",
        difference,
        f"{values['effect']:+.2f}",
        p_text(values["p"]),
        p_text(values["p_holm"]),
        p_text(values["p_bh"]),
        f"{test.better} / {test.worse}",
    ]


def p_text(p: float) -> str:
    """A p-value with three digits after the point."""
    if p < 0.001:
        return "< 0.001"
    return f"{p:.3f}"


def worst_cases(sources: Sources, figures: Figures) -> str:
    """The cases of least mean Dice with all modalities."""
    parts = []
    for name, evaluation in sources.named_evaluations:
        strips = _worst_of(name, evaluation, sources.task, figures)
        parts.append(f"<h3>{html.escape(name)}, all modalities given, least mean Dice first</h3>")
        parts.append(f'<div class="side">{"".join(strips)}</div>')
    return "".join(parts)


def _worst_of(name: str, evaluation: Evaluation, task: Task, figures: Figures) -> list[str]:
    """A picture of each of the worst cases, or its scores where no picture was kept."""
    complete = task.subset_key(task.modality_names)
    scores = {}
    for case, subsets in dice_by_case(evaluation).items():
        if complete in subsets:
            scores[case] = subsets[complete]
    ranked = sorted(scores, key=lambda case: mean_of(scores[case]))
    parts = []
    for case in ranked[:WORST_CASES]:
        values = [f"{region} {value:.3f}" for region, value in scores[case].items()]
        description = f"{case}: Dice {', '.join(values)}"
        picture = evaluation.picture(case)
        if picture is None:
            parts.append(html.paragraph(description))
            continue
        parts.append(
            figures.show(
                f"worst-{slug(name)}-{case}",
                case_strip(picture, complete, task),
                description,
                f"{description}. {picture.title}.",
                1.0,
            )
        )
    return parts


def further_pictures(sources: Sources, figures: Figures) -> str:
    """PNG files as they are, captioned by their names."""
    parts = []
    for path in sources.pictures:
        caption = path.stem.replace("_", " ").replace("-", " ")
        parts.append(figures.show(path.stem, path.read_bytes(), path.stem, caption, 1.0))
    return "".join(parts)


def training(sources: Sources, figures: Figures) -> str:
    """Curves of every run."""
    titles = {modality.name: modality.title for modality in sources.task.modalities}
    parts = []
    for name, log in sources.named_logs:
        parts.append(f"<h3>{html.escape(name)}</h3>")
        parts.append(
            figures.show(
                f"training-{name}",
                training_curves(log),
                "Training curves",
                "Thin: every step. Thick: running mean.",
            )
        )
        by_modality = modality_curves(log, titles)
        if by_modality:
            parts.append(
                figures.show(
                    f"modalities-{name}",
                    by_modality,
                    "Figures by modality",
                    "What the objective logs for each modality, step by step.",
                )
            )
    return "".join(parts)


def methods(sources: Sources, figures: Figures) -> str:
    """Rules, provenance of every evaluation, and what bundles' cards state."""
    parts = []
    if sources.evaluations:
        rules = sources.evaluations[0].summary.rules
        if rules:
            parts.append(html.paragraph(rules))
    rows = [_provenance_row(name, entry) for name, entry in sources.named_evaluations]
    if rows:
        head = ["bundle", "cohort", "weights (SHA-256)", "device", "date", "versions"]
        parts.append(html.plain_table(head, rows))
    statements = []
    for name, evaluation in sources.named_evaluations:
        for key in ("scoring", "label_convention"):
            text = evaluation.about.get(key)
            if text:
                statements.append(f"{name}: {text}")
    for bundle in sources.bundles:
        for key in ("description", "data", "training", "limits"):
            text = bundle.card.get(key)
            if text:
                statements.append(f"{bundle.id}, {key}: {text}")
    parts += [html.paragraph(statement) for statement in statements]
    return "".join(parts)


def _provenance_row(name: str, evaluation: Evaluation) -> list[str]:
    about = evaluation.about
    versions = [f"{package} {number}" for package, number in about.get("versions", {}).items()]
    return [
        name,
        _cohort(evaluation),
        str(about.get("weights", ""))[:16],
        str(about.get("device", "")),
        about.get("when", ""),
        ", ".join(versions),
    ]


SECTIONS: tuple[tuple[str, Callable[[Sources, Figures], str]], ...] = (
    ("At a glance", at_a_glance),
    ("Modality subsets", subset_tables),
    ("Paired comparison", comparisons),
    ("Examples", examples),
    ("Worst cases", worst_cases),
    ("Feature space and other figures", further_pictures),
    ("Training", training),
    ("Methods", methods),
)
"""Heading and writer of each section, in order."""


def _cohort(evaluation: Evaluation) -> str:
    cases = counted(evaluation.summary.cases, "case")
    if evaluation.summary.data == NOT_STATED:
        return cases
    return f"{cases}: {evaluation.summary.data}"


def _table_title(name: str, summary: Summary) -> str:
    return f"{name}\nDice, mean ± SD over {counted(summary.cases, 'case')}"


def _how_to_read(summaries: Sequence[Summary]) -> str:
    """How to read the tables, with the rules for empty masks."""
    sentences = [
        "● given, ○ missing. Mean ± SD over cases; Dice from 0 (light) to 1 (dark).",
    ]
    if any(summary.hd95 for summary in summaries):
        sentences.append(EMPTY_MASK_RULE)
        sentences.append(
            "An undefined HD95 is left out of the mean and counted in parentheses beside it."
        )
    minimum_mm3: dict[str, float] = {}
    for summary in summaries:
        if summary.least_mm3:
            minimum_mm3 = summary.least_mm3
            break
    for region, volume in minimum_mm3.items():
        sentences.append(
            f"Rule: a predicted {region} below {volume:.0f} mm³ counts as none, for the scores of "
            f"{region} only."
        )
    return " ".join(sentences)


def _empty_mask_notes(summaries: Sequence[tuple[str, Summary]]) -> list[str]:
    """How many empty masks, and which networks, stand behind the numbers."""
    notes = []
    for name, summary in summaries:
        if summary.borrowed:
            notes.append(f"{name}: {summary.borrowed_note}")
        for region, counts in summary.empty.items():
            if counts.any:
                notes.append(f"{name}, {region}: {counts.sentence}")
    return notes
