"""Walks through the whole panel under the stand-ins, with pictures: from an empty scene to a
reviewed segmentation.

The synthetic sample case, or the files of a patient:

    python Testing/panel/walk.py pictures/
    python Testing/panel/walk.py pictures/ --t1ce T1CE.nii.gz --flair FLAIR.nii.gz \\
        --truth LABELS.nii.gz

With files the labels are compared with those of ``medmap.inference.segment`` on the same files,
which is what ``medmap segment`` runs. Exits with 1 if they differ or anything fails.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [
    str(REPOSITORY / folder) for folder in ("MedMAPTraining", "MedMAPSegment", "Testing")
]

import numpy as np  # noqa: E402
import standin  # noqa: E402
from PIL import Image  # noqa: E402
from standin import views  # noqa: E402

SECTIONS = ("inputs", "results", "review", "subsets", "followUp", "settings")
MODALITIES = ("t1", "t1ce", "t2", "flair")
PANEL_WIDTH = 400
"""Pixels that the panel has in the dock of the application."""
PANEL_HEIGHT = 1060
"""Pixels that a window of 1600 x 1200 leaves to the panel."""
SMALL_HEIGHT = 620
"""Pixels that a window of 1366 x 768 leaves to the panel."""


def load(scene, path: str, name: str, className: str = "vtkMRMLScalarVolumeNode"):
    """A volume node read by Slicer's own NIfTI reader."""
    import slicer

    node = scene.AddNewNodeByClass(className, name)
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(path)
    assert storage.ReadData(node), f"{path} cannot be read"
    node.CreateDefaultDisplayNodes()
    return node


def fold(panel, open_: set[str]) -> None:
    """Open these sections and fold the others."""
    for name in SECTIONS:
        getattr(panel.ui, f"{name}CollapsibleButton").collapsed = name not in open_


def show_views(application, panel, side):
    """The four views, each ``side`` pixels wide and high, through the middle of the tumor, edema
    translucent in 3D.
    """
    import slicer

    from MedMAPSegmentLib.mrml.nodes import geometryOf
    from MedMAPSegmentLib.mrml.results import centerOf
    from MedMAPSegmentLib.mrml.scene import labelsOf

    node = panel.state.result
    labels = labelsOf(node, panel.logic.task)
    if labels.any() and node.GetSegmentation().GetSegment("ED"):
        node.GetDisplayNode().SetSegmentOpacity3D("ED", 0.3)
    position = centerOf(labels, geometryOf(node).grid) if labels.any() else (0, 0, 0)
    reference = panel.state.provenance["modalities"]["reference"]
    background = panel.inputs.slots[reference].selector.currentNode()
    slicer.util.setSliceViewerLayers(background=background, fit=True)
    logics = application.app.layoutManager().logics
    logics = [logics.GetItemAsObject(n) for n in range(3)]
    return views.four_views(
        application.app.applicationLogic(), application.scene, logics, position, side
    )


def medmap_labels(files: dict[str, str]):
    """Labels that the package gives for the same files, on the reference's own voxels."""
    from medmap.bundle.format import default_bundle_path
    from medmap.bundle.loading import load_bundle
    from medmap.inference import segment
    from medmap.io.nifti import read_nifti

    volumes = {name: read_nifti(path) for name, path in files.items()}
    return segment(volumes, load_bundle(default_bundle_path()), device="cpu").labels


class Walk:
    """The panel under the stand-ins, the pictures taken of it, and what went wrong."""

    def __init__(self, pictures: Path):
        self.pictures = pictures
        self.application = standin.install()
        self.panel = self.application.open(REPOSITORY / "MedMAPSegment/MedMAPSegment.py")
        self.ui = self.panel.ui
        self.clicks = 0

    def picture(self, name: str, *sections: str, height: int = PANEL_HEIGHT) -> None:
        """The panel as the flow folds it, or with these sections open."""
        if sections:
            fold(self.panel, set(sections))
        path = self.pictures / f"{name}.png"
        self.application.picture(self.panel, path, PANEL_WIDTH, height)
        small = self.pictures / f"{name}-small.png"
        self.application.picture(self.panel, small, PANEL_WIDTH, SMALL_HEIGHT)

    def picture_with_views(self, name: str) -> None:
        """The panel beside the four views, where this machine can draw in three dimensions."""
        if not views.can_render():
            print("No picture of the views: neither EGL nor OSMesa is there.")
            return
        self.picture(name)
        path = self.pictures / f"{name}.png"
        panel_pixels = np.asarray(Image.open(path).convert("RGB"))
        # Four views, two above each other: an even height.
        panel_pixels = panel_pixels[: len(panel_pixels) // 2 * 2]
        view_pixels = show_views(self.application, self.panel, len(panel_pixels) // 2)
        Image.fromarray(np.hstack([panel_pixels, view_pixels])).save(path, optimize=True)

    def finish(self, title: str) -> None:
        """Wait for the work in the background, and print how long it took."""
        started = time.monotonic()
        turns = self.application.wait(lambda: not self.panel.isBusy(), 3600)
        seconds = time.monotonic() - started
        print(
            f"{title}: {seconds:.1f} s, {turns / seconds:.0f} turns of the event loop a second; "
            f"{self.ui.statusLabel.text}"
        )

    def choose_inputs(self, files: dict[str, str], truth: str | None) -> None:
        """The given files, or the sample with two modalities missing; then the checks."""
        if files:
            for name, path in files.items():
                load(self.application.scene, path, f"case {name}")
            self.ui.detectButton.click()
            if truth:
                kind = "vtkMRMLLabelMapVolumeNode"
                reference = load(self.application.scene, truth, "expert", kind)
                self.ui.reviewSelector.setCurrentNode(reference)
        else:
            self.ui.sampleButton.click()
            for name in ("t1", "t2"):
                self.panel.inputs.slots[name].checkBox.click()
        self.clicks += 1
        print(self.ui.detectLabel.text)
        self.ui.checkButton.click()
        print(self.ui.checksLabel.text)
        self.picture("2-inputs")

    def segment(self) -> None:
        """Apply, to the result in 3D."""
        self.ui.applyButton.click()
        self.clicks += 1
        self.application.wait(
            lambda: self.ui.progressBar.value > 20 or not self.panel.isBusy(), 600
        )
        self.picture("3-running")
        self.finish("Apply")
        print(f"{self.clicks} clicks in the panel from an empty scene to a result")
        self.ui.show3DButton.click()
        self.picture("4-result")
        self.picture_with_views("screenshot")

    def equals_package(self, files: dict[str, str]) -> bool:
        """Whether the labels are those of ``medmap`` for the same files."""
        from MedMAPSegmentLib.mrml.scene import labelsOf

        labels = labelsOf(self.panel.state.result, self.panel.logic.task)
        expected = medmap_labels(files)
        same = labels.shape == expected.shape and bool((labels == expected).all())
        voxels = int((labels != 0).sum())
        print(f"labels equal those of medmap: {same} ({voxels} voxels of tumor)")
        return same

    def compare_with_reference(self) -> None:
        """The agreement with the reference segmentation, down to the worst slice."""
        self.ui.reviewButton.click()
        self.finish("Compare")
        self.ui.worstSliceButton.click()
        print(self.ui.worstSliceLabel.text)
        self.picture("5-review", "review")

    def compare_subsets(self) -> None:
        """The comparison of modality subsets, and the uncertainty map."""
        self.ui.subsetsButton.click()
        self.finish("What if")
        self.ui.uncertaintyButton.click()
        self.ui.uncertainSliceButton.click()
        self.picture("6-subsets", "subsets")

    def close(self) -> list[str]:
        """Take the stand-ins down; returns every error and message box."""
        failures = [*self.application.errors, *self.application.desk.texts()]
        self.application.uninstall()
        return failures


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--truth")
    parser.add_argument("--no-what-if", action="store_true", help="leave the many combinations out")
    for name in MODALITIES:
        parser.add_argument(f"--{name}")
    return parser.parse_args()


def main() -> int:
    """The walk."""
    options = parsed()
    options.pictures.mkdir(parents=True, exist_ok=True)
    files = {name: getattr(options, name) for name in MODALITIES if getattr(options, name)}
    walk = Walk(options.pictures)
    walk.picture("1-empty")
    walk.choose_inputs(files, options.truth)
    walk.segment()
    same = not files or walk.equals_package(files)
    if walk.ui.reviewButton.enabled:
        walk.compare_with_reference()
    if not options.no_what_if:
        walk.compare_subsets()
    walk.picture("7-settings", "settings")
    walk.picture("8-all", *SECTIONS, height=2400)
    failures = walk.close()
    print("\n".join(failures))
    if failures or not same:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
