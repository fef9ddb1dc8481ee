"""Walks through the whole panel under the stand-ins, with pictures: from an empty scene to a
reviewed segmentation.

    python Testing/panel/walk.py pictures/                                    # the synthetic sample
    patient python Testing/panel/walk.py pictures/ --t1ce T1CE.nii.gz --flair FLAIR.nii.gz --truth
    LABELS.nii.gz

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


def main() -> int:
    """The walk."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--truth")
    parser.add_argument("--no-what-if", action="store_true", help="leave the many combinations out")
    for name in MODALITIES:
        parser.add_argument(f"--{name}")
    options = parser.parse_args()
    options.pictures.mkdir(parents=True, exist_ok=True)
    files = {name: getattr(options, name) for name in MODALITIES if getattr(options, name)}

    application = standin.install()
    panel = application.open(REPOSITORY / "MedMAPSegment/MedMAPSegment.py")
    ui = panel.ui

    def picture(name: str, *sections: str, height: int = PANEL_HEIGHT) -> None:
        """The panel as the flow folds it, or with these sections open."""
        if sections:
            fold(panel, set(sections))
        path = options.pictures / f"{name}.png"
        application.picture(panel, path, PANEL_WIDTH, height)
        small = options.pictures / f"{name}-small.png"
        application.picture(panel, small, PANEL_WIDTH, SMALL_HEIGHT)

    def finish(what: str) -> None:
        started = time.monotonic()
        turns = application.wait(lambda: not panel.isBusy(), 3600)
        seconds = time.monotonic() - started
        print(
            f"{what}: {seconds:.1f} s, {turns / seconds:.0f} turns of the event loop a second; "
            f"{ui.statusLabel.text}"
        )

    def beside(name: str, *sections: str) -> None:
        if not drawable:
            print("No picture of the views: neither EGL nor OSMesa is there.")
            return
        picture(name, *sections)
        path = options.pictures / f"{name}.png"
        left = np.asarray(Image.open(path).convert("RGB"))
        left = left[: len(left) // 2 * 2]
        shown = show_views(application, panel, len(left) // 2)
        Image.fromarray(np.hstack([left, shown])).save(path, optimize=True)

    drawable = views.can_render()
    picture("1-empty")
    clicks = 0
    if files:
        for name, path in files.items():
            load(application.scene, path, f"case {name}")
        ui.detectButton.click()
        if options.truth:
            truth = load(application.scene, options.truth, "expert", "vtkMRMLLabelMapVolumeNode")
            ui.reviewSelector.setCurrentNode(truth)
    else:
        ui.sampleButton.click()
        for name in ("t1", "t2"):  # the walk is about missing scans
            panel.inputs.slots[name].checkBox.click()
    clicks += 1
    print(ui.detectLabel.text)
    ui.checkButton.click()
    print(ui.checksLabel.text)
    picture("2-inputs")
    ui.applyButton.click()
    clicks += 1
    application.wait(lambda: ui.progressBar.value > 20 or not panel.isBusy(), 600)
    picture("3-running")
    finish("Apply")
    print(f"{clicks} clicks in the panel from an empty scene to a result")
    ui.show3DButton.click()
    picture("4-result")
    beside("screenshot")
    same = True
    if files:
        from MedMAPSegmentLib.mrml.scene import labelsOf

        ours, theirs = labelsOf(panel.state.result, panel.logic.task), medmap_labels(files)
        same = ours.shape == theirs.shape and bool((ours == theirs).all())
        print(f"labels equal those of medmap: {same} ({int((ours != 0).sum())} voxels of tumor)")
    if ui.reviewButton.enabled:
        ui.reviewButton.click()
        finish("Compare")
        ui.worstSliceButton.click()
        print(ui.worstSliceLabel.text)
        picture("5-review", "review")
    if not options.no_what_if:
        ui.subsetsButton.click()
        finish("What if")
        ui.uncertaintyButton.click()
        ui.uncertainSliceButton.click()
        picture("6-subsets", "subsets")
    picture("7-settings", "settings")
    picture("8-all", *SECTIONS, height=2400)
    failures = [*application.errors, *application.desk.texts()]
    application.uninstall()
    print("\n".join(failures))
    return 0 if same and not failures else 1


if __name__ == "__main__":
    sys.exit(main())
