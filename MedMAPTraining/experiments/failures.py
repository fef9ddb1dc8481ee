"""What a bundle gets wrong, in pictures: generated heads, the truth, and what it finds.

python MedMAPTraining/experiments/failures.py BUNDLE OUT.png --anatomy LABELMAPS

The heads are those of ``medmap phantom --anatomy LABELMAPS`` with the seeds in ``ROWS``. Label maps 17 to 20 of
SynthSeg give the ones in the documentation.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from medmap.bundle.loading import Bundle, load_bundle
from medmap.commands.phantoms import write_phantoms
from medmap.foreground import bounding_box
from medmap.inference import segment
from medmap.io.atomic import write_bytes
from medmap.io.cohorts import find_cases
from medmap.io.nifti import read_nifti
from medmap.metrics import dice, region_masks
from medmap.report.figures import figure_png, new_figure
from medmap.report.label_overlay import tint
from medmap.task import BRATS

ROWS = (
    (9911, True, ("flair",), "A side that the coil brightens"),
    (9609, False, ("t1", "t2", "flair"), "Enhancement without T1ce"),
    (9606, False, ("t1",), "T1 alone"),
    (9604, False, ("t1", "flair"), "Faint edema without T2"),
    (9909, True, ("t1ce",), "A ventricle taken for necrosis"),
    (9608, False, ("t1", "t2"), "No core without T1ce and FLAIR"),
)
"""Seed, whether without tumor, scans, and what goes wrong."""


def one(bundle: Bundle, folder: Path, scans: tuple[str, ...]) -> tuple[list[np.ndarray], str]:
    """[H, W, 3] pictures of the last of ``scans``, of the truth and of what is found on it; and the figures."""
    (case,) = find_cases(folder, BRATS)
    volumes, label = case.read(BRATS.modality_names), read_nifti(case.label, modality="seg")
    found = segment({name: volumes[name] for name in scans}, bundle)
    truth = region_masks(np.asarray(label.array), BRATS)
    masks = region_masks(found.labels, BRATS)
    k = int((truth["WT"] | masks["WT"]).sum((0, 1)).argmax())
    shown = volumes[scans[-1]].array[:, :, k]
    box = bounding_box(shown != 0)
    shown = np.rot90(shown[box])[:, ::-1]  # the patient's right is on the left, as in every picture
    low, high = np.percentile(shown[shown != 0], (1, 99.5))
    gray = np.uint8(255 * np.clip((shown - low) / (high - low), 0, 1))
    backdrop = (
        np.repeat(np.where(shown != 0, gray, 0)[..., None], 3, -1)
        .repeat(2, 0)
        .repeat(2, 1)
        .astype(np.uint8)
    )
    pictures = [backdrop]
    for labels in (np.asarray(label.array), found.labels):
        plane = np.rot90(labels[:, :, k][box])[:, ::-1]
        classes = [
            (np.isin(plane, (part.value, *part.alternative_values)), part.color)
            for part in BRATS.labels
        ]
        pictures.append(tint(backdrop, classes, 2.0))
    if not truth["WT"].any():
        return pictures, f"{found.volumes_ml['WT']:.0f} ml found, none there"
    figures = " / ".join(
        f"{dice(masks[region.name], truth[region.name]):.2f}" for region in BRATS.regions
    )
    return pictures, f"WT / TC / ET {figures}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--anatomy", type=Path, required=True)
    given = parser.parse_args()
    bundle = load_bundle(given.bundle)
    figure = new_figure(8.0, 1.85 * len(ROWS) / 2)
    axes = figure.subplots(len(ROWS) // 2, 6).reshape(len(ROWS), 3)
    for row, (seed, healthy, scans, title) in zip(axes, ROWS, strict=True):
        with TemporaryDirectory() as folder:
            write_phantoms(
                Path(folder),
                1,
                seed,
                1.0,
                healthy,
                "cpu",
                True,
                lambda done, text: None,
                anatomy=given.anatomy,
            )
            pictures, figures = one(bundle, Path(folder), scans)
        words = (f"{title}\n{BRATS.titles(scans)}", "truth", f"found\n{figures}")
        for place, picture, text in zip(row, pictures, words, strict=True):
            place.imshow(picture)
            place.set_title(text, fontsize=5.5, loc="left")
            place.axis("off")
    write_bytes(given.out, figure_png(figure))


if __name__ == "__main__":
    main()
