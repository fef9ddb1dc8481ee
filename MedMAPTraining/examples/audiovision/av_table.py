"""Accuracy with pictures alone when only some of the training pairs had sound: MCKD's Table 2a, over several seeds.

    python av_table.py --mnist FOLDER --sounds FOLDER --results results.csv

Stops and goes on with the same command: what is in the results is not trained again.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import av_model  # noqa: F401 (adds network, objective and schedule to MedMAP's tables)
import numpy as np
import torch
from av_data import AUDIOVISION, Pairs, PairSampler, pair, read_mnist, read_sounds, synthetic

from medmap.networks import build_network
from medmap.training.checkpoint import load_checkpoint
from medmap.training.loop import train
from medmap.training.recipe import Recipe

EPOCHS = 60
PUBLISHED = {
    0.05: {"SMIL": 92.89, "ShaSpec": 93.33, "MCKD": 93.56},
    0.10: {"SMIL": 93.11, "ShaSpec": 93.56, "MCKD": 94.22},
    0.15: {"SMIL": 93.33, "ShaSpec": 93.78, "MCKD": 94.89},
    0.20: {"SMIL": 94.44, "ShaSpec": 94.67, "MCKD": 95.11},
}
"""MCKD's Table 2a: % right of 450, pictures alone, by audio rate. Image-only training 92.35, both 98.22."""
BOUNDS = {"image only": 92.35, "both": 98.22}


def recipe(audio: float, alpha: float, seed: int, epochs: int, pairs: int) -> Recipe:
    """MCKD's settings, from the file beside this one, for one training."""
    published = Recipe.read(Path(__file__).with_name("mckd_table2.json"))
    options = {"alpha": alpha if audio > 0 else 0.0}
    steps = epochs * -(-pairs // published.batch)
    return replace(published, objective_options=options, steps=steps, seed=seed)


def accuracy(network: torch.nn.Module, pairs: Pairs, sound: bool) -> float:
    """% right, with pictures alone or with both."""
    present = torch.tensor([[True, sound]]).expand(len(pairs.digit), 2)
    with torch.inference_mode():
        found = network.eval()(pairs.image, present).logits.argmax(1)
    return 100 * float((found == pairs.digit).float().mean())


def score(parts: dict[str, Pairs], audio: float, alpha: float, seed: int, epochs: int) -> dict:
    """Train once and test: accuracy of pictures alone and of both, and the learned importance of the picture."""
    settings = recipe(audio, alpha, seed, epochs, len(parts["train"].digit))
    meta = PairSampler(parts["meta"], 1.0, seed, settings.batch)
    figures = {}
    with tempfile.TemporaryDirectory() as run:
        train(
            settings,
            AUDIOVISION,
            PairSampler(parts["train"], audio, seed, settings.batch),
            run,
            held_out=lambda n: meta.batch(n, settings.batch),
            device="cpu",
            precision="fp32",
            save_every=settings.steps,
            report=lambda step, named: figures.update(named),
        )
        state = load_checkpoint(Path(run))
    network = build_network(*state["network"])
    network.load_state_dict(state["average"])
    weight = figures.get("importance_image", float("nan"))
    return {
        "image": accuracy(network, parts["test"], False),
        "both": accuracy(network, parts["test"], True),
        "importance_image": weight,
    }


def table(rows: list[dict]) -> str:
    """Mean ± SD over seeds, beside the published numbers."""

    def cell(audio: float, method: str, column: str = "image") -> str:
        values = [
            float(r[column]) for r in rows if float(r["audio"]) == audio and r["method"] == method
        ]
        if not values:
            return "–"
        return f"{np.mean(values):.2f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.2f} (n={len(values)})"

    lines = [
        "| audio rate | mean-fill | MCKD | importance of the picture | SMIL, published | ShaSpec | MCKD, published |",
        "|---|---|---|---|---|---|---|",
    ]
    for audio, published in PUBLISHED.items():
        weights = [
            float(r["importance_image"])
            for r in rows
            if float(r["audio"]) == audio and r["method"] == "MCKD"
        ]
        share = f"{np.mean(weights):.2f} ± {np.std(weights):.2f}" if weights else "–"
        ours = (cell(audio, "mean-fill"), cell(audio, "MCKD"), share)
        lines.append(
            f"| {audio:.0%} | "
            + " | ".join((*ours, *(f"{p:.2f}" for p in published.values())))
            + " |"
        )
    lines += ["", f"Image only: {cell(0.0, 'mean-fill')}, published {BOUNDS['image only']}."]
    lines.append(
        f"Both in training and test: {cell(1.0, 'mean-fill', 'both')}, published {BOUNDS['both']}."
    )
    error = 100 * (0.94 * 0.06 / 450) ** 0.5
    lines.append(
        f"Standard error of 94 % right of 450 test pairs: {error:.1f}; one pair is {100 / 450:.2f}."
    )
    return "\n".join(lines)


def main() -> None:
    """Train what is missing in the results and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", type=Path, help="folder with MNIST's files")
    parser.add_argument("--sounds", type=Path, help="folder with the Free Spoken Digit recordings")
    parser.add_argument("--results", type=Path, required=True, help="CSV, one line a training")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--minutes", type=float, help="begin no training after this time")
    parser.add_argument(
        "--proper", action="store_true", help="MFCC from all samples instead of SMIL's"
    )
    options = parser.parse_args()
    rows = (
        list(csv.DictReader(options.results.open(encoding="utf-8")))
        if options.results.exists()
        else []
    )
    done = {(float(r["audio"]), r["method"], int(r["seed"])) for r in rows}
    plan = [
        (a, m, s) for m in ("MCKD", "mean-fill") for s in range(options.seeds) for a in PUBLISHED
    ]
    plan += [(a, "mean-fill", s) for s in range(options.seeds) for a in (0.0, 1.0)]
    if options.mnist and options.sounds:
        images, digits, sounds = (
            *read_mnist(options.mnist),
            read_sounds(options.sounds, not options.proper),
        )
    else:
        print("No data given: glyphs and tones.")
        images, digits, sounds = synthetic()
    started = time.monotonic()
    for audio, method, seed in plan:
        over = options.minutes is not None and time.monotonic() - started > 60 * options.minutes
        if over or (audio, method, seed) in done:
            continue
        parts = pair(images, digits, sounds, seed)
        found = score(parts, audio, 0.1 if method == "MCKD" else 0.0, seed, options.epochs)
        rows.append({"audio": audio, "method": method, "seed": seed, **found})
        with options.results.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        print(
            f"audio {audio:.0%}, {method}, seed {seed}: {found['image']:.2f} %, {time.monotonic() - started:.0f} s"
        )
    print(table(rows))


if __name__ == "__main__":
    main()
