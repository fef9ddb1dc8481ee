"""Typical errors of a bundle in pictures: generated cases, their reference, the prediction.

python MedMAPTraining/experiments/failures.py BUNDLE OUT.png --anatomy LABELMAPS

The cases are those of ``medmap phantom --anatomy LABELMAPS`` with the seeds in ``EXAMPLES``. Label
maps 01 to 20 of SynthSeg give the ones in the documentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from matplotlib.axes import Axes
from shared import script_parser

from medmap.boxes import bounding_box
from medmap.bundle.loading import Bundle, load_bundle
from medmap.commands.phantoms import write_phantoms
from medmap.inference import segment
from medmap.io.atomic import write_bytes
from medmap.io.cohorts import find_cases
from medmap.io.labels import read_case_labels
from medmap.metrics import dice, region_masks
from medmap.report.figures import figure_png, new_figure
from medmap.report.label_overlay import tint
from medmap.task import BRATS
from medmap.volume import Volume


@dataclass(frozen=True)
class Example:
    """A generated case and what goes wrong with it.

    Attributes:
        seed: of the generator.
        healthy: without a tumor.
        modalities: what the bundle gets.
        title: what goes wrong.
    """

    seed: int
    healthy: bool
    modalities: tuple[str, ...]
    title: str


EXAMPLES = (
    Example(8201, False, ("t1ce",), "Edema is a guess without T2 and FLAIR"),
    Example(9600, False, ("flair",), "A small tumor is missed"),
    Example(9608, False, ("t1",), "T1 only"),
    Example(9606, False, ("t1", "t2"), "A ventricle taken for core"),
    Example(9602, False, ("t1", "flair"), "Enhancement is a guess without T1ce"),
    Example(8202, False, ("t1ce", "t2"), "A core without enhancement is missed"),
)


def draw_example(
    bundle: Bundle, folder: Path, modalities: tuple[str, ...]
) -> tuple[list[np.ndarray], str]:
    """Pictures of the one case in a folder.

    Returns:
        [H, W, 3] uint8 of the last of the modalities, and of the reference and the prediction on
        it; and the scores in a line.
    """
    (case,) = find_cases(folder, BRATS)
    volumes = case.read(BRATS.modality_names)
    reference = np.asarray(read_case_labels(case, BRATS).array)
    chosen = {name: volumes[name] for name in modalities}
    result = segment(chosen, bundle)
    reference_masks = region_masks(reference, BRATS)
    masks = region_masks(result.labels, BRATS)
    # The axial slice with most of what either of them calls tumor.
    tumor = reference_masks["WT"] | masks["WT"]
    areas = tumor.sum((0, 1))
    k = int(areas.argmax())
    background, box = _backdrop(volumes[modalities[-1]], k)
    pictures = [background]
    for labels in (reference, result.labels):
        plane = _as_seen(labels[:, :, k][box])
        classes = []
        for label in BRATS.labels:
            mask = np.isin(plane, (label.value, *label.alternative_values))
            classes.append((mask, label.color))
        pictures.append(tint(background, classes, 2.0))
    if not reference_masks["WT"].any():
        return pictures, f"{result.volumes_ml['WT']:.0f} ml predicted, no tumor"
    scores = []
    for region in BRATS.regions:
        score = dice(masks[region.name], reference_masks[region.name])
        scores.append(f"{score:.2f}")
    listed = " / ".join(scores)
    return pictures, f"WT / TC / ET {listed}"


def _as_seen(plane: np.ndarray) -> np.ndarray:
    """A slice [I, J] as a picture: the patient's right is on the left."""
    return np.rot90(plane)[:, ::-1]


def _backdrop(volume: Volume, k: int) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Slice k in gray, twice enlarged, [H, W, 3] uint8; and the box that it was cropped to."""
    plane = volume.array[:, :, k]
    box = bounding_box(plane != 0)
    if box is None:
        raise ValueError(f"slice {k} of {volume.name} is empty")
    plane = _as_seen(plane[box])
    inside = plane != 0
    low, high = np.percentile(plane[inside], (1, 99.5))
    scaled = (plane - low) / (high - low)
    brightness = np.clip(scaled, 0, 1)
    shades = (255 * brightness).astype(np.uint8)
    gray = np.where(inside, shades, 0)
    enlarged = gray.repeat(2, 0).repeat(2, 1)
    picture = np.repeat(enlarged[..., None], 3, -1)
    return picture.astype(np.uint8), box


def main() -> None:
    """The command line."""
    parser = script_parser(__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--anatomy", type=Path, required=True)
    options = parser.parse_args()
    bundle = load_bundle(options.bundle)
    figure = new_figure(8.0, 1.85 * len(EXAMPLES) / 2)
    rows = figure.subplots(len(EXAMPLES) // 2, 6).reshape(len(EXAMPLES), 3)
    for row, example in zip(rows, EXAMPLES, strict=True):
        with TemporaryDirectory() as folder:
            _generate(Path(folder), example, options.anatomy)
            pictures, scores = draw_example(bundle, Path(folder), example.modalities)
        titles = (
            f"{example.title}\n{BRATS.titles(example.modalities)}",
            "reference",
            f"prediction\n{scores}",
        )
        for axes, picture, title in zip(row, pictures, titles, strict=True):
            _show(axes, picture, title)
    write_bytes(options.out, figure_png(figure))


def _generate(folder: Path, example: Example, anatomy: Path) -> None:
    write_phantoms(
        folder,
        1,
        example.seed,
        1.0,
        healthy=example.healthy,
        device="cpu",
        overwrite=True,
        report=lambda fraction, text: None,
        anatomy=anatomy,
    )


def _show(axes: Axes, picture: np.ndarray, title: str) -> None:
    axes.imshow(picture)
    axes.set_title(title, fontsize=5.5, loc="left")
    axes.axis("off")


if __name__ == "__main__":
    main()
