"""Results as a BIDS derivative data set: names, description, table of labels.

BIDS 1.10, "Segmentations".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medmap import __version__
from medmap.io.atomic import write_json, write_text
from medmap.task import Task

VERSION = "1.10.0"


@dataclass(frozen=True)
class BidsNames:
    """Where the results of a case lie; ``case`` is ``sub-x`` or ``sub-x_ses-y``.

    ``space-orig``: the label map is on the grid of one of the case's own scans,
    which its sidecar names.
    """

    case: str

    @property
    def folder(self) -> Path:
        """Below the data set's root: ``sub-x/[ses-y/]anat``."""
        return Path(*self.case.split("_"), "anat")

    @property
    def files(self) -> dict[str, str]:
        """Names of the files by what they are."""
        stem = f"{self.case}_space-orig_desc-medmap_dseg"
        return {"label map": f"{stem}.nii.gz", "picture": f"{stem}.png", "report": f"{stem}.json"}


@dataclass(frozen=True)
class BidsIntermediateNames:
    """Names of prepared scans, brain masks, and transforms, after the scans that they come from.

    Attributes:
        stems: modality -> name of the scan's file without its ending, as ``sub-1_T1w``.
    """

    stems: Mapping[str, str]

    def __call__(self, kind: str, modality: str) -> str:
        """Name of a file of a kind: ``prepared``, ``brain_mask``, or ``transform``."""
        entities, _, suffix = self.stems[modality].rpartition("_")
        if kind == "transform":
            return f"{entities}_from-{suffix}_to-orig_mode-image_xfm.tfm"
        if kind == "brain_mask":
            return f"{entities}_desc-{suffix}brain_mask.nii.gz"
        return f"{entities}_desc-prepared_{suffix}.nii.gz"


def sidecar(scans: Mapping[str, Path], root: Path, reference: str) -> dict:
    """What BIDS wants beside a label map: its scans, and the one on whose grid it lies.

    Args:
        scans: files by modality.
        root: of the data set that they are from.
        reference: modality whose grid carries the labels.
    """
    names = {}
    for name, path in scans.items():
        relative = path.relative_to(root).as_posix()
        names[name] = f"bids::{relative}"
    return {
        "Sources": list(names.values()),
        "SpatialReference": {"orig": names[reference]},
        "Manual": False,
    }


def write_dataset(root: Path, task: Task, bundle: str) -> None:
    """Write ``dataset_description.json`` and the table of labels, which holds for all label maps.

    Raises OutputError or IOFailure.
    """
    description = {
        "Name": f"MedMAP segmentations ({task.name})",
        "BIDSVersion": VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [
            {
                "Name": "MedMAP",
                "Version": __version__,
                "Description": f"Bundle {bundle}. Research use only.",
            }
        ],
    }
    write_json(root / "dataset_description.json", description)
    lines = ["index\tname\tabbreviation\tcolor", "0\tBackground\tBG\t#000000"]
    for label in task.labels:
        color = "#" + "".join(f"{part:02X}" for part in label.color)
        lines.append(f"{label.value}\t{label.title}\t{label.name}\t{color}")
    write_text(root / "desc-medmap_dseg.tsv", "\n".join(lines) + "\n")
    # Pictures beside label maps are no part of BIDS.
    write_text(root / ".bidsignore", "*_dseg.png\nresults.csv\ncohort.json\n")
