"""Other models than the shipped one, by clicks and with real (untrained) networks: the next
default, and a heart.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from medmap.task import BRATS, MYOPS  # noqa: E402

PANEL = Path(__file__).resolve().parents[2] / "MedMAPSegment/MedMAPSegment.py"


@pytest.fixture
def opened(application, monkeypatch):
    """Function that opens the panel with a bundle in the place of the shipped one."""

    def with_default(folder):
        monkeypatch.setenv("MEDMAP_BUNDLE", str(folder))
        return application.open(PANEL)

    return with_default


@pytest.mark.parametrize("spacing", [2.5, 5.0])
def test_a_new_default_bundle_of_another_spacing_needs_no_change(
    opened, application, small_bundle, spacing
):
    from MedMAPSegmentLib.mrml.scene import provenanceOf
    from MedMAPSegmentLib.selftest import addSyntheticCase

    panel = opened(small_bundle(name="next", spacing=spacing))
    assert panel.ui.modelComboBox.itemText(0) == "next-1.0.0 (default)"
    assert not panel.ui.deleteButton.enabled
    addSyntheticCase(application.scene, ("t1ce", "flair"))
    panel.ui.detectButton.click()
    panel.ui.applyButton.click()
    application.wait(lambda: not panel.isBusy(), 120)
    found = provenanceOf(panel.state.result)
    assert found["bundle"]["id"] == "next-1.0.0"
    assert found["run"]["working_grid"]["spacing_mm"] == spacing
    assert "Model: next-1.0.0" in panel.ui.resultsLabel.text
    panel.ui.subsetsButton.click()
    application.wait(lambda: not panel.isBusy(), 120)
    assert panel.ui.subsetsTable.rowCount == 3
    assert not application.desk.texts()


class TestHeart:
    """Three slots, label values up to 2221, five regions: from Detect to all subsets."""

    @pytest.fixture
    def panel(self, application, tmp_path):
        from medmap.bundle.format import InferenceSpec, NetworkSpec
        from medmap.bundle.loading import save_bundle
        from medmap.networks import build_network
        from medmap.preprocess import PreprocessSpec

        torch.manual_seed(2)
        options = {"modalities": 3, "classes": 6, "spatial_dims": 2, "widths": [8, 8]}
        bundle = save_bundle(
            tmp_path / "heart",
            name="heart",
            version="1.0.0",
            task=MYOPS,
            network=build_network("SubsetUNet", options),
            network_spec=NetworkSpec("SubsetUNet", options),
            preprocess=PreprocessSpec(spacing=4.0, slices=True, field=256.0),
            inference=InferenceSpec(),
            card={"description": "Hearts."},
        )
        opened = application.open(PANEL)
        assert list(opened.inputs.slots) == list(BRATS.modality_names)
        application.desk.answers["getExistingDirectory"] = str(bundle)
        opened.ui.importFolderButton.click()
        return opened

    @pytest.fixture
    def truth(self, application):
        """A generated heart in the scene, named as in the challenge; its labels."""
        import slicer.util

        from medmap.phantom import generate_heart

        heart = generate_heart(5, spacing=4.0)

        def add(class_name, name, array):
            node = application.scene.AddNewNodeByClass(class_name, name)
            node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(heart.affine))
            slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(array.transpose(2, 1, 0)))
            return node

        for modality, name in (("bssfp", "C0"), ("lge", "DE"), ("t2", "T2")):
            add(
                "vtkMRMLScalarVolumeNode",
                f"myops_training_101_{name}",
                heart.images[modality].numpy(),
            )
        values = np.array(MYOPS.label_values(), np.int16)[heart.label.numpy()]
        return add("vtkMRMLLabelMapVolumeNode", "expert", values)

    def test_from_detect_to_all_combinations(self, panel, truth, application, tmp_path):
        from medmap.bundle.loading import load_bundle
        from medmap.inference import segment
        from medmap.metrics import dice, region_masks
        from MedMAPSegmentLib.mrml.scene import labelsOf, volumeFromNode

        def finish():
            application.wait(lambda: not panel.isBusy(), 120)

        ui = panel.ui
        assert list(panel.inputs.slots) == ["bssfp", "lge", "t2"]
        ui.detectButton.click()
        panel.inputs.slots["t2"].checkBox.click()
        used = panel.state.usedVolumes
        assert list(used) == ["bssfp", "lge"]
        assert ui.performanceLabel.text == "Expected with bSSFP + LGE:"
        ui.checkButton.click()
        assert "skull" not in ui.checksLabel.text.lower()
        assert ui.applyButton.enabled, ui.applyButton.toolTip
        assert "tumo" not in ui.applyButton.toolTip
        ui.applyButton.click()
        finish()

        node = panel.state.result
        assert node is not None, ui.statusLabel.text
        volumes = {name: volumeFromNode(scan) for name, scan in used.items()}
        expected = segment(volumes, load_bundle(panel.models.entry.path)).labels
        labels = labelsOf(node, MYOPS)
        assert labels.dtype == np.int16
        assert np.array_equal(labels, expected)
        assert ui.resultsTable.rowCount == 5
        assert "Based on: bSSFP + LGE" in ui.resultsLabel.text

        ui.reviewSelector.setCurrentNode(truth)
        targets = [
            ui.matchesTable.cellWidget(row, 1).currentText
            for row in range(ui.matchesTable.rowCount)
        ]
        assert targets == [label.name for label in MYOPS.labels]
        ui.reviewButton.click()
        finish()
        ours, theirs = region_masks(labels, MYOPS), region_masks(labeled(truth), MYOPS)
        shown = {
            ui.reviewTable.item(row, 0).text(): ui.reviewTable.item(row, 1).text()
            for row in range(5)
        }
        assert shown == {name: f"{dice(ours[name], theirs[name]):.3f}" for name in ours}

        panel.inputs.slots["t2"].checkBox.click()
        ui.subsetsButton.click()
        finish()
        assert ui.subsetsTable.rowCount == 7
        application.desk.answers["getSaveFileName"] = str(tmp_path / "all")
        ui.saveSubsetsButton.click()
        rows = list(csv.DictReader((tmp_path / "all.csv").open(encoding="utf-8-sig")))
        assert [row["Scans"] for row in rows][:2] == ["bSSFP + LGE", "bSSFP + LGE + T2"]
        assert float(rows[0]["SCAR Dice"]) == 1
        ui.undoButton.click()
        assert panel.state.result is None
        assert not application.desk.texts()


def labeled(node):
    """[I, J, K] of a label volume node."""
    import slicer.util

    return slicer.util.arrayFromVolume(node).transpose(2, 1, 0)
