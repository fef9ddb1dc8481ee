"""Fit what T1, T2 and FLAIR look like (``medmap.appearance``) on synthetic heads, and count what it tells of others.

    medmap phantom fit --count 60 --seed 60000 --spacing 2.5
    medmap phantom held --count 40 --seed 70000 --spacing 2.5
    python MedMAPTraining/experiments/fit_appearance.py OUT --fit fit --held held [--held more ...] [--write]

Folders hold cases in BraTS layout; what is seen of them is kept in OUT: a second call takes seconds. ``--write``
renews the table in the package. Scans of patients may be given with ``--held``; nothing is fitted on them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
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


def seen_in(folder: Path, out: Path) -> dict[str, dict]:
    """By case: features of its scans (``alone``) and how they go with T2 (``beside``)."""
    kept = out / f"{folder.resolve().parent.name}-{folder.name}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    result = {}
    for case in find_cases(folder, BRATS):
        looks = {}
        for name, path in case.scans.items():
            volume = read_nifti(path, modality=name)
            looks[name] = describe_appearance(volume, foreground(volume.array)[0])
        looks = {name: seen for name, seen in looks.items() if seen is not None}
        beside = {
            n: t2_relation(seen, looks["t2"])
            for n, seen in looks.items()
            if n != "t2" and "t2" in looks
        }
        result[case.case_id] = {
            "alone": {n: seen.features.tolist() for n, seen in looks.items()},
            "beside": beside,
        }
    kept.write_text(json.dumps(result))
    return result


def minimize(loss, *parameters: torch.Tensor) -> None:
    """Find the minimum of a smooth convex function."""
    optimizer = torch.optim.LBFGS(parameters, max_iter=500, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


def fit(cases: dict[str, dict]) -> dict:
    """Logistic regression with a ridge; T2 counts as much as the three others together."""
    rows = [(x, name) for case in cases.values() for name, x in case["alone"].items()]
    features = np.array([x for x, _ in rows])
    mean, deviation = features.mean(0), features.std(0)
    x = torch.tensor(
        np.clip((features - mean) / deviation, -MAX_FEATURE_DEVIATION, MAX_FEATURE_DEVIATION)
    )
    target = torch.tensor([float(name == "t2") for _, name in rows], dtype=torch.double)
    share = torch.where(target == 1, 1.0, 1 / 3)
    weights = torch.zeros(x.shape[1], dtype=torch.double, requires_grad=True)
    constant = torch.zeros(1, dtype=torch.double, requires_grad=True)

    def loss():
        losses = binary_cross_entropy_with_logits(x @ weights + constant, target, reduction="none")
        return (share * losses).sum() + RIDGE * weights.square().sum()

    minimize(loss, weights, constant)
    return {
        "MEAN": rounded(mean),
        "DEVIATION": rounded(deviation),
        "WEIGHTS": rounded(weights.detach()),
        "CONSTANT": rounded(constant.detach())[0],
    }


def rounded(values) -> list[float]:
    """Four digits: more are noise."""
    return [float(f"{float(v):.4g}") for v in values]


def doubted(case: dict, slots: dict[str, str]) -> bool:
    """Whether anything is said when each slot holds the scan that is named."""
    alone, beside = case["alone"], case["beside"]
    besides = (
        {slot: beside.get(name) for slot, name in slots.items() if slot != "t2"}
        if slots.get("t2") == "t2"
        else {}
    )
    return bool(
        mismatches_of_scores(
            {slot: t2_log_odds(np.array(alone[name])) for slot, name in slots.items()}, besides
        )
    )


def share(cases: list[dict], names: tuple[str, ...], one: str = "", other: str = "") -> str:
    """Of how many cases something is said when of the scans ``names`` two are exchanged."""
    at = {one: other, other: one}
    able = [case for case in cases if set(names) <= set(case["alone"])]
    if not able or not {one, other} <= {*names, ""}:
        return ""
    return f"{sum(doubted(case, {name: at.get(name, name) for name in names}) for case in able)} of {len(able)}"


def count(title: str, found: dict[str, dict]) -> str:
    """The report on some heads: what single scans look like, false alarms, exchanges that are noticed."""
    cases = list(found.values())
    lines = [
        f"**{title}: {len(cases)} heads**",
        "",
        "| scan | looks like T2 | not | nothing known |",
        "|---|--:|--:|--:|",
    ]
    margins = []
    for name in MODALITIES:
        odds = [
            t2_log_odds(np.array(case["alone"][name])) for case in cases if name in case["alone"]
        ]
        known = [value for value in odds if value is not None]
        margins += [value if name == "t2" else -value for value in known]
        lines.append(
            f"| {name} | {sum(v > 0 for v in known)} | {sum(v <= 0 for v in known)} | {odds.count(None)} |"
        )
    low = ", ".join(f"{q:.1f}" for q in np.percentile(margins, [0, 1, 5, 50]))
    lines += ["", f"Log-odds for the truth: least, 1 %, 5 %, median: {low}."]
    both = [
        c["beside"]["flair"] - c["beside"][n]
        for c in cases
        for n in ("t1", "t1ce")
        if n in c["beside"]
    ]
    if both:
        low = ", ".join(f"{q:.2f}" for q in np.percentile(both, [0, 1, 5, 50]))
        lines.append(
            f"FLAIR less T1 beside T2: least, 1 %, 5 %, median: {low} ({len(both)} pairs)."
        )
    lines += ["", "| warned | all scans | these two alone |", "|---|--:|--:|"]
    right = sum(doubted(case, {name: name for name in case["alone"]}) for case in cases)
    single = sum(doubted(case, {name: name}) for case in cases for name in case["alone"])
    lines.append(f"| every scan in its slot | {right} of {len(cases)} | {single} single scans |")
    for one, other in EXCHANGES:
        lines.append(
            f"| {one} and {other} exchanged | {share(cases, MODALITIES, one, other)} | "
            f"{share(cases, (one, other), one, other)} |"
        )
    return "\n".join(lines) + "\n"


def write(table: dict, about: str) -> None:
    """Renew the table in the package, in a form that a person can read."""
    head = f'"""Weights of ``medmap.appearance``, written by ``experiments/fit_appearance.py``.\n\n{about}\n"""'
    lines = [f"{name} = {json.dumps(value)}" for name, value in table.items()]
    TABLE.write_text(
        "\n".join(
            [
                head,
                "",
                "# fmt: off",
                *(piece for line in lines for piece in wrapped(line)),
                "# fmt: on",
                "",
            ]
        )
    )


def wrapped(line: str, width: int = 100) -> list[str]:
    """A list of numbers over several lines."""
    pieces = []
    while len(line) > width and ", " in line:
        cut = line.rfind(", ", 0, width) + 1
        pieces.append(line[:cut])
        line = "    " + line[cut + 1 :]
    return [*pieces, line]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--fit", type=Path, action="append", default=[])
    parser.add_argument("--held", type=Path, action="append", default=[])
    parser.add_argument("--about", default="", help="What the heads are, for the table.")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(exist_ok=True)
    if given.fit:
        cases = {
            f"{folder}/{name}": case
            for folder in given.fit
            for name, case in seen_in(folder, given.out).items()
        }
        table = fit(cases)
        for name, value in table.items():
            setattr(appearance, name, value)
        print(count("fitted on", cases))
        print("weights:", json.dumps(dict(zip(NAMES, table["WEIGHTS"], strict=True))), "\n")
        if given.write:
            write(table, given.about)
    for folder in given.held:
        print(count(folder.name, seen_in(folder, given.out)))


if __name__ == "__main__":
    main()
