"""MedMAP Segment: brain tumor segmentation from whatever MRI a patient has. Research use only.

The four classes that Slicer asks for; what they do is in MedMAPSegmentLib. PyTorch is looked for only after Apply.
"""

import logging
import time
from types import SimpleNamespace
from typing import Annotated

import numpy as np
import slicer
import slicer.util
import vtk
from slicer import vtkMRMLSegmentationNode
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import Choice, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

from MedMAPSegmentLib import dependencies
from MedMAPSegmentLib.devices import AUTO
from MedMAPSegmentLib.logic import SegmentationLogic
from MedMAPSegmentLib.mrml import choices
from MedMAPSegmentLib.mrml.sample import registerSampleData
from MedMAPSegmentLib.mrml.scene import labelsOf
from MedMAPSegmentLib.sections import SECTIONS
from MedMAPSegmentLib.selftest import addSyntheticCase


class MedMAPSegment(ScriptedLoadableModule):
    """What Slicer's module list shows."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("MedMAP Segment")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = ["Segmentations", "Terminologies"]
        self.parent.contributors = ["MedMAP contributors"]
        self.parent.helpText = _(
            "Segments brain tumors (edema, enhancing tumor, necrosis and non-enhancing core) from any subset of T1, "
            "T1ce, T2 and FLAIR. The volumes must be skull-stripped and aligned "
            'to each other. For research use only. See more in the <a href="https://github.com/medmap/SlicerMedMAP">'
            "documentation</a>."
        )
        self.parent.acknowledgementText = _(
            "Developed by the MedMAP contributors. License: Apache 2.0."
        )
        slicer.app.connect("startupCompleted()", self.onStartup)

    def onStartup(self):
        """Make the codes of the segments selectable, and offer the sample patient."""
        if hasattr(slicer.modules, "terminologies"):
            slicer.modules.terminologies.logic().LoadTerminologyFromFile(
                self.resourcePath("MedMAP.term.json")
            )
        if hasattr(slicer.modules, "sampledata"):
            import SampleData

            registerSampleData(
                SampleData.SampleDataLogic,
                self.resourcePath("Icons/MedMAPPhantom.png"),
                slicer.mrmlScene,
                ready=lambda: dependencies.ensure(dependencies.SlicerInstaller()),
                loaded=lambda patient: slicer.util.setSliceViewerLayers(
                    background=patient.volumes["t1ce"], fit=True
                ),
                failed=slicer.util.errorDisplay,
            )


@parameterNodeWrapper
class MedMAPSegmentParameterNode:
    """What the user chose; saved with the scene. The scans, whose slots depend on the model, are in ``choices``."""

    model: str = ""
    reference: str = AUTO
    device: str = AUTO
    outputSegmentation: vtkMRMLSegmentationNode
    plane: Annotated[str, Choice(["axial", "coronal", "sagittal"])] = "axial"


class MedMAPSegmentWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel: its life cycle and its sections (``MedMAPSegmentLib/sections``)."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.sections = []
        self._parameters = None
        self._guiTag = None

    def setup(self):
        """Build the panel when it is opened for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/MedMAPSegment.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)

        self.logic = MedMAPSegmentLogic()
        sections = []
        for section in SECTIONS:
            setattr(self, section.attribute, section(self))
            sections.append(getattr(self, section.attribute))
        # Only now: no section hears of a change before all are there.
        self.sections = sections
        self.rebuild()
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(
            slicer.mrmlScene, slicer.mrmlScene.StartImportEvent, self.onSceneStartImport
        )
        # After the node selectors, which fill their lists anew and lose their choice then.
        self.addObserver(
            slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneImported, priority=-100.0
        )
        self.addObserver(
            slicer.mrmlScene,
            slicer.mrmlScene.NodeAboutToBeRemovedEvent,
            self.onNodeGoes,
            priority=100.0,
        )
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeRemovedEvent, self.onNodeRemoved)
        slicer.app.connect("aboutToQuit()", self.stopWork)
        self.initializeParameterNode()

    def cleanup(self):
        """Called when the application closes and when the module is reloaded."""
        slicer.app.disconnect("aboutToQuit()", self.stopWork)
        self.sections = []  # so that nothing is shown any more: scene and widgets may be about to go
        self.stopWork()
        self.setParameterNode(None)
        self.removeObservers()

    def enter(self):
        """Called each time the user opens this module."""
        self.initializeParameterNode()

    def exit(self):
        """Called each time the user opens another module; a computation goes on."""
        self.setParameterNode(None)

    def onReload(self):
        """Reload the library, too: Slicer itself reloads this file only."""
        import sys

        for name in [name for name in sys.modules if name.split(".")[0] == "MedMAPSegmentLib"]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    def onSceneStartClose(self, caller, event):
        """The nodes that a computation works for are about to go."""
        self.run.abandonJob()
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event):
        """Start afresh if the panel is shown."""
        for section in self.sections:
            section.clear()
        if self.parent.isEntered:
            self.initializeParameterNode()

    def onSceneStartImport(self, caller, event):
        """What the selectors do while a scene is read is no choice of the user's."""
        self.setParameterNode(None)

    def onSceneImported(self, caller, event):
        """What the parameter node refers to is there only now."""
        if self.parent.isEntered:
            self.initializeParameterNode()
        else:
            self.update()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeGoes(self, caller, event, node):
        """Unchoose a node before the selectors notice that it goes: they would choose its neighbor instead."""
        if self._parameters is None or slicer.mrmlScene.IsClosing():
            return
        if self._parameters.outputSegmentation is node:
            self._parameters.outputSegmentation = None
        if choices.forget(self.parameterNode(), node):
            self.update()

    def onNodeRemoved(self, caller, event):
        """A scan, the result or the reference may be gone."""
        if not slicer.mrmlScene.IsClosing():
            self.update()

    def initializeParameterNode(self):
        """Make sure that the parameter node exists and is observed."""
        self.setParameterNode(self.logic.getParameterNode())

    def setParameterNode(self, parameters):
        """Connect the widgets to a parameter node, or to none."""
        if self._parameters is not None:
            self._parameters.disconnectGui(self._guiTag)
            self.removeObserver(
                self._parameters.parameterNode, vtk.vtkCommand.ModifiedEvent, self.update
            )
        self._parameters = parameters
        if self._parameters is not None:
            # ``connectGui`` does the same but gives no tag, so that every earlier connection would go on writing.
            named = {
                widget.property("SlicerParameterName"): widget for widget in vars(self.ui).values()
            }
            self._guiTag = self._parameters.connectParametersToGui(
                {n: w for n, w in named.items() if n}
            )
            # The wrapper fills the combo box with its own short values.
            for index, text in enumerate((_("axial"), _("coronal"), _("sagittal"))):
                self.ui.planeComboBox.setItemText(index, text)
            self.addObserver(
                self._parameters.parameterNode, vtk.vtkCommand.ModifiedEvent, self.update
            )
        self.update()

    def parameters(self):
        """What the user chose (``MedMAPSegmentParameterNode``); None while the panel is not shown."""
        return self._parameters

    def parameterNode(self, always=False):
        """The vtkMRMLScriptedModuleNode below; while the panel is not shown, None unless ``always``."""
        if self._parameters is not None:
            return self._parameters.parameterNode
        return self.logic.scriptedNode() if always else None

    def reference(self):
        """Modality on whose grid the result is wanted; None leaves the choice to ``medmap``."""
        name = self._parameters.reference
        return name if name in self.logic.task.modality_names else None

    def choices(self):
        """Arguments for the logic, as chosen in the panel."""
        output = self._parameters.outputSegmentation
        return {
            "inputs": self.inputs.read().used,
            "reference": self.reference(),
            "outputNode": output,
        }

    def rebuild(self):
        """Make everything fit the model: its task says which scans, labels and regions there are."""
        for section in self.sections:
            section.rebuild()
        self.update()

    def update(self, caller=None, event=None):
        """Make every section fit the present choices; not while a scene is read, whose nodes are still empty."""
        if slicer.mrmlScene.IsImporting():
            return
        for section in self.sections:
            section.update()

    def isBusy(self):
        """True while a computation is under way."""
        return bool(self.sections) and self.run.isBusy

    def stopWork(self):
        """Cancel what is under way and end the worker."""
        self.run.stop()


class MedMAPSegmentLogic(SegmentationLogic, ScriptedLoadableModuleLogic):
    """``SegmentationLogic`` on Slicer's scene: ``MedMAPSegmentLogic().process({"t1ce": node, "flair": other})``."""

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)
        SegmentationLogic.__init__(self, slicer.mrmlScene)

    def scriptedNode(self):
        """The module's vtkMRMLScriptedModuleNode."""
        return ScriptedLoadableModuleLogic.getParameterNode(self)

    def getParameterNode(self):
        """The module's parameter node, typed."""
        return MedMAPSegmentParameterNode(self.scriptedNode())


class MedMAPSegmentTest(ScriptedLoadableModuleTest):
    """Self test inside Slicer: offline, on a synthetic case. Without PyTorch, what needs it is left out, in words."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        for test in (self.test_labelsBecomeSegments, self.test_defaultModel, self.test_panel):
            self.setUp()
            test()

    def test_labelsBecomeSegments(self):
        """Labels come back as three coded segments that lie on the transformed reference volume, voxel for voxel."""
        reference = addSyntheticCase(slicer.mrmlScene, ("flair",))["flair"]
        transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        matrix = vtk.vtkMatrix4x4()
        matrix.SetElement(0, 3, 25.0)
        transform.SetMatrixTransformToParent(matrix)
        reference.SetAndObserveTransformNodeID(transform.GetID())
        kji = slicer.util.arrayFromVolume(reference)
        labels = (
            np.select([kji > 600, kji > 450, kji > 350], [2, 4, 1], 0)
            .astype(np.uint8)
            .transpose(2, 1, 0)
        )
        result = SimpleNamespace(
            labels=labels,
            reference="flair",
            provenance=SimpleNamespace(to_dict=lambda: {"made": "by the self test"}),
        )
        logic = SegmentationLogic(slicer.mrmlScene, lambda *args, **options: result, lambda: None)

        node = logic.process({"flair": reference}, device="cpu")

        segmentation = node.GetSegmentation()
        assert list(segmentation.GetSegmentIDs()) == ["NCR", "ED", "ET"]
        assert node.GetTransformNodeID() == transform.GetID()
        assert (
            node.GetNodeReferenceID(node.GetReferenceImageGeometryReferenceRole())
            == reference.GetID()
        )
        for name, value in (("NCR", 1), ("ED", 2), ("ET", 4)):
            mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, name, reference)
            assert np.array_equal(mask.transpose(2, 1, 0) > 0, labels == value), name
            assert segmentation.GetSegment(name).HasTag("TerminologyEntry"), name
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        parents = [
            hierarchy.GetItemParent(hierarchy.GetItemByDataNode(n)) for n in (node, reference)
        ]
        assert parents[0] == parents[1]

    def test_defaultModel(self):
        """The shipped model runs on two of four scans, and a second time gives the same labels."""
        if not self.modelCanRun():
            return
        nodes = addSyntheticCase(slicer.mrmlScene, ("t1ce", "flair"))
        before = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
        logic = MedMAPSegmentLogic()
        first, second = logic.process(nodes, device="cpu"), logic.process(nodes, device="cpu")
        assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == before + 2
        assert first.GetSegmentation().GetNumberOfSegments() == 3
        assert np.array_equal(labelsOf(first, logic.task), labelsOf(second, logic.task))

    def test_panel(self):
        """The real panel, by clicks: detect, apply, review against the result's own labels, what if, undo."""
        if not self.modelCanRun():
            return
        if not hasattr(slicer.modules, "medmapsegment"):
            logging.warning(
                "The panel is not tested, because the module is not on the additional module paths."
            )
            return
        panel = slicer.modules.medmapsegment.widgetRepresentation().self()
        panel.initializeParameterNode()
        ui = panel.ui
        assert not ui.applyButton.enabled
        nodes = addSyntheticCase(slicer.mrmlScene, ("t1ce", "flair"))
        ui.detectButton.click()
        assert panel.inputs.read().used == nodes, ui.detectLabel.text
        assert ui.applyButton.enabled, ui.applyButton.toolTip
        assert "T1ce + FLAIR" in ui.cardLabel.text
        ui.applyButton.click()
        self.waitFor(panel)
        ours = panel.results.segmentation
        assert ours is not None, ui.statusLabel.text
        assert ui.resultsTable.rowCount == 3
        self.reviewAgainstItself(panel, ours, nodes["flair"])
        ui.whatIfButton.click()
        self.waitFor(panel)
        assert ui.whatIfTable.rowCount == 3, ui.statusLabel.text
        ui.undoButton.click()
        assert panel.results.segmentation is None
        assert ui.resultsTable.rowCount == 0

    def reviewAgainstItself(self, panel, ours, volume):
        """A reference with the same labels agrees perfectly."""
        reference = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "reference")
        reference.CopyOrientation(volume)
        labels = labelsOf(ours, panel.logic.task)
        slicer.util.updateVolumeFromArray(
            reference, np.ascontiguousarray(labels.transpose(2, 1, 0))
        )
        panel.ui.reviewSelector.setCurrentNode(reference)
        assert choices.nodeOf(panel.parameterNode(), choices.REFERENCE) is reference
        panel.ui.reviewButton.click()
        self.waitFor(panel)
        assert [panel.ui.reviewTable.item(row, 1).text() for row in range(3)] == ["1.000"] * 3
        panel.ui.worstSliceButton.click()

    def waitFor(self, panel):
        """Let the event loop run until the panel is idle."""
        deadline = time.monotonic() + 300
        while panel.isBusy() and time.monotonic() < deadline:
            slicer.app.processEvents()
        assert not panel.isBusy(), "still computing"

    def modelCanRun(self):
        """Whether PyTorch and the shipped model are there; says so in the log if not."""
        missing = dependencies.missing()
        if missing:
            logging.warning("Not tested, because not installed: %s", ", ".join(map(str, missing)))
            return False
        return True
