"""MCKD's Table 2a over several seeds: accuracy with pictures, where some training pairs had sound.

    python av_table.py --mnist FOLDER --sounds FOLDER --results results.csv

``medmap table mckd-2a`` adds the five methods that the paper compares with.

Run the same command again to resume: what is in the results is not trained again.
"""

from __future__ import annotations

import argparse
import csv
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import av_model  # noqa: F401 (adds network, objective and schedule to MedMAP's tables)
import numpy as np
import torch
from av_competitors import COMPETITORS
from av_data import AUDIOVISION, Pairs, PairSampler, pair, read_mnist, read_sounds, synthetic

from medmap.networks import build_network
from medmap.training.checkpoint import require_checkpoint
from medmap.training.log import TrainingLog
from medmap.training.loop import train
from medmap.training.recipe import Recipe

EPOCHS = 60
PUBLISHED = {
    0.05: {"SMIL": 92.89, "ShaSpec": 93.33, "MCKD": 93.56},
    0.10: {"SMIL": 93.11, "ShaSpec": 93.56, "MCKD": 94.22},
    0.15: {"SMIL": 93.33, "ShaSpec": 93.78, "MCKD": 94.89},
    0.20: {"SMIL": 94.44, "ShaSpec": 94.67, "MCKD": 95.11},
}
"""MCKD's Table 2a: accuracy in % of 450 pairs with pictures only, by audio rate."""
BOUNDS = {"image only": 92.35, "both": 98.22}
"""Published accuracy of training with pictures only, and with both for all pairs."""


def recipe(rate: float, method: str, seed: int, epochs: int, pairs: int) -> Recipe:
    """MCKD's settings, from the file beside this one, for one training of any of the methods."""
    published = Recipe.read(Path(__file__).with_name("mckd_table2.json"))
    steps = epochs * math.ceil(pairs / published.batch)
    settings = replace(published, steps=steps, seed=seed)
    if method in COMPETITORS:
        network, objective = COMPETITORS[method]
        return replace(
            settings,
            network=network,
            objective=objective,
            objective_options={},
        )
    options = dict(published.objective_options)
    # Without any complete pair there is nothing to distill from.
    if method == "mean-fill" or rate == 0:
        options["alpha"] = 0.0
    return replace(settings, objective_options=options)


def accuracy(network: torch.nn.Module, pairs: Pairs, given: tuple[bool, bool]) -> float:
    """Accuracy in %, given the pictures, the sounds, or both."""
    present = torch.tensor([given]).expand(len(pairs.digit), 2)
    network.eval()
    with torch.inference_mode():
        output = network(pairs.image, present)
    predicted = output.logits.argmax(1)
    is_right = predicted == pairs.digit
    return 100 * float(is_right.float().mean())


def score(
    parts: dict[str, Pairs],
    rate: float,
    method: str,
    seed: int,
    epochs: int,
    missing: str = "sound",
    run: Path | None = None,
) -> dict:
    """Train once and test.

    Args:
        parts: of ``av_data.pair``.
        rate: share of the training pairs that have both halves.
        method: ``MCKD``, ``mean-fill`` (the same without distillation), or one of
            ``av_competitors.COMPETITORS``.
        seed, epochs: of the training.
        missing: the half that the other pairs lack, and that is not given in the test.
        run: folder that keeps the run, with the curves of the importance (Fig. 4b); None keeps
            none.

    Returns:
        Accuracy with pictures only, with sounds only and with both, and the learned importance of
        the picture.
    """
    if run is None:
        with tempfile.TemporaryDirectory() as folder:
            return score(parts, rate, method, seed, epochs, missing, Path(folder))
    settings = recipe(rate, method, seed, epochs, len(parts["train"].digit))
    sampler = PairSampler(parts["train"], rate, seed, settings.batch, missing)
    second = PairSampler(parts["meta"], 1.0, seed, settings.batch)
    if method == "smil":
        # Its second level has the complete pairs of the training; no pair is held out.
        second = PairSampler(sampler.complete_pairs(), 1.0, seed, settings.batch)
    figures: dict[str, float] = {}
    run.mkdir(parents=True, exist_ok=True)
    with TrainingLog(run, settings.steps, lambda fraction, text: None) as log:

        def note(step: int, logged: dict) -> None:
            figures.update(logged)
            log(step, logged)

        train(
            settings,
            AUDIOVISION,
            sampler,
            run,
            held_out=lambda n: second.batch(n, settings.batch),
            device="cpu",
            precision="fp32",
            save_every=settings.steps,
            report=note,
        )
    state = require_checkpoint(run)
    network = build_network(*state["network"])
    network.load_state_dict(state["average"])
    weight = figures.get("importance_image", float("nan"))
    return {
        "image": accuracy(network, parts["test"], (True, False)),
        "sound": accuracy(network, parts["test"], (False, True)),
        "both": accuracy(network, parts["test"], (True, True)),
        "importance_image": weight,
    }


def table(rows: list[dict]) -> str:
    """Mean ± SD over seeds, beside the published numbers."""

    lines = [
        "| audio rate | mean-fill | MCKD | importance of the picture | SMIL, published | ShaSpec "
        "| MCKD, published |",
        "|---|---|---|---|---|---|---|",
    ]
    for audio, published in PUBLISHED.items():
        cells = [
            f"{audio:.0%}",
            _accuracy_cell(rows, audio, "mean-fill"),
            _accuracy_cell(rows, audio, "MCKD"),
            _importance_cell(rows, audio),
        ]
        cells += [f"{value:.2f}" for value in published.values()]
        lines.append(f"| {' | '.join(cells)} |")
    image_only = _accuracy_cell(rows, 0.0, "mean-fill")
    complete = _accuracy_cell(rows, 1.0, "mean-fill", "both")
    # Of a proportion of 0.94 over the 450 test pairs.
    error = 100 * (0.94 * 0.06 / 450) ** 0.5
    lines += [
        "",
        f"Image only: {image_only}, published {BOUNDS['image only']}.",
        f"Both in training and test: {complete}, published {BOUNDS['both']}.",
        f"Standard error of 94 % right of 450 test pairs: {error:.1f}; "
        f"one pair is {100 / 450:.2f}.",
    ]
    return "\n".join(lines)


def _values(rows: list[dict], audio: float, method: str, column: str) -> list[float]:
    """A column of all runs with an audio rate and a method."""
    values = []
    for row in rows:
        same_rate = float(row["audio"]) == audio
        if same_rate and row["method"] == method:
            values.append(float(row[column]))
    return values


def _accuracy_cell(rows: list[dict], audio: float, method: str, column: str = "image") -> str:
    values = _values(rows, audio, method, column)
    if not values:
        return "–"
    mean = np.mean(values)
    sd = 0.0
    if len(values) > 1:
        sd = float(np.std(values, ddof=1))
    return f"{mean:.2f} ± {sd:.2f} (n={len(values)})"


def _importance_cell(rows: list[dict], audio: float) -> str:
    values = _values(rows, audio, "MCKD", "importance_image")
    if not values:
        return "–"
    mean = np.mean(values)
    sd = np.std(values)
    return f"{mean:.2f} ± {sd:.2f}"


def main() -> None:
    """Train what is missing in the results and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", type=Path, help="folder with MNIST's files")
    parser.add_argument("--sounds", type=Path, help="folder with the Free Spoken Digit recordings")
    parser.add_argument("--results", type=Path, required=True, help="CSV, a line for each training")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--minutes", type=float, help="start no training after this time")
    parser.add_argument(
        "--proper", action="store_true", help="MFCC from all samples instead of SMIL's"
    )
    options = parser.parse_args()
    rows = _read(options.results)
    finished = {(float(row["audio"]), row["method"], int(row["seed"])) for row in rows}
    images, digits, sounds = _data(options)
    started = time.monotonic()
    for audio, method, seed in _plan(options.seeds):
        if (audio, method, seed) in finished:
            continue
        if options.minutes is not None and time.monotonic() - started > 60 * options.minutes:
            break
        parts = pair(images, digits, sounds, seed)
        figures = score(parts, audio, method, seed, options.epochs)
        rows.append({"audio": audio, "method": method, "seed": seed, **figures})
        _write(options.results, rows)
        seconds = time.monotonic() - started
        title = f"audio {audio:.0%}, {method}, seed {seed}"
        print(f"{title}: {figures['image']:.2f} %, {seconds:.0f} s")
    print(table(rows))


def _plan(seeds: int) -> list[tuple[float, str, int]]:
    """Audio rate, method and seed of every training."""
    plan = []
    for method in ("MCKD", "mean-fill"):
        for seed in range(seeds):
            plan += [(audio, method, seed) for audio in PUBLISHED]
    for seed in range(seeds):
        plan += [(audio, "mean-fill", seed) for audio in (0.0, 1.0)]
    return plan


def _data(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, dict]:
    """Pictures, digits and sounds; synthetic ones unless both folders are given."""
    if not options.mnist or not options.sounds:
        print("No data given: glyphs and tones.")
        return synthetic()
    images, digits = read_mnist(options.mnist)
    return images, digits, read_sounds(options.sounds, not options.proper)


def _read(path: Path) -> list[dict]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write(path: Path, rows: list[dict]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[-1]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
