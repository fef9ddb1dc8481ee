"""Fit the appearance of T1, T2 and FLAIR (``medmap.appearance``) on synthetic cases, and test it.

    medmap phantom fit --count 60 --seed 60000 --spacing 2.5
    medmap phantom held --count 40 --seed 70000 --spacing 2.5
    python MedMAPTraining/experiments/fit_appearance.py OUT --fit fit
        --held held [--held more ...] [--write]

Folders hold cases in BraTS layout; their descriptors are kept in OUT, so that a second call takes
seconds. ``--write`` renews the table in the package. Patients' scans may be given with ``--held``;
nothing is fitted on them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from shared import script_parser, table_head, table_row
from torch.nn.functional import binary_cross_entropy_with_logits

from medmap import appearance
from medmap.appearance import (
    MAX_FEATURE_DEVIATION,
    MODALITIES,
    NAMES,
    describe_appearance,
    mismatches_of_scores,
    t2_log_odds,
    t2_relation,
)
from medmap.foreground import foreground
from medmap.io.cohorts import find_cases
from medmap.io.nifti import read_nifti
from medmap.task import BRATS

TABLE = Path(appearance.__file__).with_name("appearance_weights.py")
RIDGE = 3.0
EXCHANGES = (("t2", "flair"), ("t1", "t2"), ("t1ce", "t2"), ("t1", "flair"), ("t1ce", "flair"))


def descriptors_of(folder: Path, out: Path) -> dict[str, dict]:
    """By case: features of its modalities (``alone``) and how they relate to T2 (``beside``)."""
    cache = out / f"{folder.resolve().parent.name}-{folder.name}.json"
    if cache.exists():
        return json.loads(cache.read_text())
    result = {}
    for case in find_cases(folder, BRATS):
        appearances = {}
        for name, path in case.scans.items():
            volume = read_nifti(path, modality=name)
            appearance_of_scan = describe_appearance(volume, foreground(volume.array)[0])
            if appearance_of_scan is not None:
                appearances[name] = appearance_of_scan
        beside = {}
        features = {}
        for name, appearance_of_scan in appearances.items():
            features[name] = appearance_of_scan.features.tolist()
            if name != "t2" and "t2" in appearances:
                beside[name] = t2_relation(appearance_of_scan, appearances["t2"])
        result[case.case_id] = {"alone": features, "beside": beside}
    cache.write_text(json.dumps(result))
    return result


def minimize(loss: Callable[[], torch.Tensor], *parameters: torch.Tensor) -> None:
    """Minimize a smooth convex function of the parameters."""
    optimizer = torch.optim.LBFGS(parameters, max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


def fit(cases: dict[str, dict]) -> dict:
    """Logistic regression with a ridge; T2 counts as much as the three others together."""
    rows = []
    is_t2 = []
    for case in cases.values():
        for name, descriptors in case["alone"].items():
            rows.append(descriptors)
            is_t2.append(float(name == "t2"))
    features = np.array(rows)
    mean = features.mean(0)
    deviation = features.std(0)
    limit = MAX_FEATURE_DEVIATION
    x = torch.tensor(np.clip((features - mean) / deviation, -limit, limit))
    target = torch.tensor(is_t2, dtype=torch.double)
    sample_weight = torch.where(target == 1, 1.0, 1 / 3)
    weights = torch.zeros(x.shape[1], dtype=torch.double, requires_grad=True)
    constant = torch.zeros(1, dtype=torch.double, requires_grad=True)

    def loss() -> torch.Tensor:
        losses = binary_cross_entropy_with_logits(x @ weights + constant, target, reduction="none")
        return (sample_weight * losses).sum() + RIDGE * weights.square().sum()

    minimize(loss, weights, constant)
    return {
        "MEAN": rounded(mean),
        "DEVIATION": rounded(deviation),
        "WEIGHTS": rounded(weights.detach()),
        "CONSTANT": rounded(constant.detach())[0],
    }


def rounded(values: Iterable[float]) -> list[float]:
    """Four digits: more are noise."""
    return [float(f"{float(value):.4g}") for value in values]


def is_warned(case: dict, slots: dict[str, str]) -> bool:
    """Whether a warning appears when each slot (key) holds the modality that is its value."""
    relations = {}
    if slots.get("t2") == "t2":
        for slot, name in slots.items():
            if slot != "t2":
                relations[slot] = case["beside"].get(name)
    log_odds = {}
    for slot, name in slots.items():
        features = np.array(case["alone"][name])
        log_odds[slot] = t2_log_odds(features)
    mismatches = mismatches_of_scores(log_odds, relations)
    return bool(mismatches)


def warned_of(cases: list[dict], names: tuple[str, ...], first: str, second: str) -> str:
    """In how many cases a warning appears when two of the modalities are swapped.

    Empty where no case has these modalities.
    """
    complete = [case for case in cases if set(names) <= set(case["alone"])]
    if not complete or not {first, second} <= set(names):
        return ""
    slots = {name: name for name in names}
    slots[first] = second
    slots[second] = first
    warnings = sum(is_warned(case, slots) for case in complete)
    return f"{warnings} of {len(complete)}"


def report(title: str, descriptors: dict[str, dict]) -> str:
    """Markdown on a cohort: appearance of single modalities, false alarms, detected swaps."""
    cases = list(descriptors.values())
    lines = [f"**{title}: {len(cases)} cases**", ""]
    lines += table_head(["modality", "looks like T2", "does not", "unknown"])
    margins = []
    for name in MODALITIES:
        log_odds = []
        for case in cases:
            if name in case["alone"]:
                features = np.array(case["alone"][name])
                log_odds.append(t2_log_odds(features))
        defined = [value for value in log_odds if value is not None]
        positive = sum(value > 0 for value in defined)
        unknown = len(log_odds) - len(defined)
        lines.append(table_row([name, positive, len(defined) - positive, unknown]))
        # Log-odds are those of T2: the true modality of the others is "not T2".
        sign = -1
        if name == "t2":
            sign = 1
        margins += [sign * value for value in defined]
    lines += ["", f"Log-odds of the true modality: {_percentiles(margins, 1)}."]
    differences = []
    for case in cases:
        relations = case["beside"]
        for name in ("t1", "t1ce"):
            if name in relations:
                differences.append(relations["flair"] - relations[name])
    if differences:
        text = _percentiles(differences, 2)
        lines.append(f"FLAIR less T1 beside T2: {text} ({len(differences)} pairs).")
    return "\n".join([*lines, "", *_warning_table(cases)]) + "\n"


def _percentiles(values: list[float], digits: int) -> str:
    percentiles = np.percentile(values, [0, 1, 5, 50])
    texts = [f"{value:.{digits}f}" for value in percentiles]
    listed = ", ".join(texts)
    return f"least, 1 %, 5 %, median: {listed}"


def _warning_table(cases: list[dict]) -> list[str]:
    lines = table_head(["warned", "all modalities", "these two only"])
    false_alarms = 0
    single_false_alarms = 0
    for case in cases:
        false_alarms += is_warned(case, {name: name for name in case["alone"]})
        for name in case["alone"]:
            single_false_alarms += is_warned(case, {name: name})
    lines.append(
        table_row(
            [
                "every modality in its slot",
                f"{false_alarms} of {len(cases)}",
                f"{single_false_alarms} single modalities",
            ]
        )
    )
    for first, second in EXCHANGES:
        of_all = warned_of(cases, MODALITIES, first, second)
        of_two = warned_of(cases, (first, second), first, second)
        lines.append(table_row([f"{first} and {second} swapped", of_all, of_two]))
    return lines


def write(table: dict, about: str) -> None:
    """Renew the table in the package, in a form that a person can read."""
    lines = [
        '"""Weights of ``medmap.appearance``, written by ``experiments/fit_appearance.py``.',
        "",
        about,
        '"""',
        "",
        "# fmt: off",
    ]
    for name, value in table.items():
        lines += wrapped(f"{name} = {json.dumps(value)}")
    lines += ["# fmt: on", ""]
    TABLE.write_text("\n".join(lines))


def wrapped(line: str, width: int = 100) -> list[str]:
    """A list of numbers over several lines."""
    lines = []
    while len(line) > width and ", " in line:
        end = line.rfind(", ", 0, width) + 1
        lines.append(line[:end])
        line = "    " + line[end + 1 :]
    return [*lines, line]


def main() -> None:
    """The command line."""
    parser = script_parser(__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--fit", type=Path, action="append", default=[])
    parser.add_argument("--held", type=Path, action="append", default=[])
    parser.add_argument("--about", default="", help="Description of the cases, for the table.")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(exist_ok=True)
    if options.fit:
        cases = {}
        for folder in options.fit:
            for name, case in descriptors_of(folder, options.out).items():
                cases[f"{folder}/{name}"] = case
        table = fit(cases)
        for name, value in table.items():
            setattr(appearance, name, value)
        print(report("fitted on", cases))
        weights = dict(zip(NAMES, table["WEIGHTS"], strict=True))
        print("weights:", json.dumps(weights), "\n")
        if options.write:
            write(table, options.about)
    for folder in options.held:
        print(report(folder.name, descriptors_of(folder, options.out)))


if __name__ == "__main__":
    main()
