"""MedMAP Segment: brain tumor segmentation from whatever MRI a patient has. Research use only.

The four classes that Slicer asks for; what they do is in MedMAPSegmentLib. PyTorch is looked for
only after Apply.
"""

import logging
import time
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Annotated, Any

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
from MedMAPSegmentLib.mrml.modality_detection import databaseTags
from MedMAPSegmentLib.mrml.sample import registerSampleData
from MedMAPSegmentLib.mrml.scene import labelsOf
from MedMAPSegmentLib.sections import SECTIONS
from MedMAPSegmentLib.sections.flow import Flow
from MedMAPSegmentLib.sections.jobs import Jobs
from MedMAPSegmentLib.selftest import addSyntheticCase
from MedMAPSegmentLib.state import PanelLogic, PanelState


class MedMAPSegment(ScriptedLoadableModule):
    """What Slicer's module list shows."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("MedMAP Segment")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = ["Segmentations", "Terminologies"]
        self.parent.contributors = ["MedMAP contributors"]
        self.parent.helpText = _(
            "Segments brain tumors (edema, enhancing tumor, necrosis and non-enhancing core) from "
            "any subset of T1, T1ce, T2 and FLAIR. Volumes that show the skull or are not aligned "
            "are prepared first. For research use only. See more in the "
            '<a href="https://github.com/medmap/SlicerMedMAP">documentation</a>.'
        )
        self.parent.acknowledgementText = _(
            "Developed by the MedMAP contributors. License: Apache 2.0."
        )
        slicer.app.connect("startupCompleted()", self.onStartup)

    def onStartup(self) -> None:
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
    """What the user chose; saved with the scene. The scans, whose slots depend on the model, are in
    ``choices``.
    """

    model: str = ""
    reference: str = AUTO
    device: str = AUTO
    outputSegmentation: vtkMRMLSegmentationNode
    plane: Annotated[str, Choice(["axial", "coronal", "sagittal"])] = "axial"


class MedMAPSegmentWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel: its life cycle, its state and its sections (``MedMAPSegmentLib/sections``).

    Attributes:
        state: what the panel is about; sections share it.
        jobs: carries out computations.
        flow: folds and unfolds the boxes.
    """

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic: MedMAPSegmentLogic
        self.state: PanelState
        self.jobs: Jobs
        self.flow: Flow
        self._guiTag = None

    def setup(self) -> None:
        """Build the panel when it is opened for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/MedMAPSegment.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = MedMAPSegmentLogic()
        self.state = PanelState(self.logic, _moduleNames, _dicomValues)
        self.jobs = Jobs(self.state)
        sections = []
        for section in SECTIONS:
            panelSection = section(self.ui, self.state, self.jobs)
            setattr(self, section.attribute, panelSection)
            sections.append(panelSection)
        self.flow = Flow(self.ui, self.state, sections)
        # Only now: no section hears of a change before all are there.
        for observer in (*sections, self.flow):
            self.state.observe(observer)
        self.state.rebuild()
        self._observeScene(slicer.mrmlScene)
        slicer.app.connect("aboutToQuit()", self.stopWork)
        self.initializeParameterNode()

    def _observeScene(self, scene: Any) -> None:
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.StartImportEvent, self.onSceneStartImport)
        # After the node selectors, which fill their lists anew and lose their choice then.
        self.addObserver(scene, scene.EndImportEvent, self.onSceneImported, priority=-100.0)
        self.addObserver(scene, scene.NodeAboutToBeRemovedEvent, self.onNodeGoes, priority=100.0)
        self.addObserver(scene, scene.NodeRemovedEvent, self.onNodeRemoved)

    def cleanup(self) -> None:
        """Called when the application closes and when the module is reloaded."""
        slicer.app.disconnect("aboutToQuit()", self.stopWork)
        self.state.stopTelling()
        self.stopWork()
        self.setParameterNode(None)
        self.removeObservers()

    def enter(self) -> None:
        """Called each time the user opens this module."""
        self.initializeParameterNode()

    def exit(self) -> None:
        """Called each time the user opens another module; a computation goes on."""
        self.setParameterNode(None)

    def onReload(self) -> None:
        """Reload the library, too: Slicer itself reloads this file only."""
        import sys

        for name in [name for name in sys.modules if name.split(".")[0] == "MedMAPSegmentLib"]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    def onSceneStartClose(self, caller: Any, event: str) -> None:
        """The nodes that a computation works for are about to go."""
        self.jobs.abandon()
        self.setParameterNode(None)

    def onSceneEndClose(self, caller: Any, event: str) -> None:
        """Start afresh if the panel is shown."""
        self.state.clear()
        if self.parent.isEntered:
            self.initializeParameterNode()

    def onSceneStartImport(self, caller: Any, event: str) -> None:
        """What the selectors do while a scene is read is no choice of the user's."""
        self.setParameterNode(None)

    def onSceneImported(self, caller: Any, event: str) -> None:
        """What the parameter node refers to is there only now."""
        if self.parent.isEntered:
            self.initializeParameterNode()
        else:
            self.state.changed()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeGoes(self, caller: Any, event: str, node: Any) -> None:
        """Unchoose a node before the selectors notice: they would choose its neighbor instead."""
        parameters = self.state.parameters
        if parameters is None or slicer.mrmlScene.IsClosing():
            return
        if parameters.outputSegmentation is node:
            parameters.outputSegmentation = None
        if choices.forget(self.state.parameterNode(), node):
            self.state.changed()

    def onNodeRemoved(self, caller: Any, event: str) -> None:
        """A volume, the result or the reference may be gone."""
        if not slicer.mrmlScene.IsClosing():
            self.state.changed()

    def onParametersModified(self, caller: Any = None, event: str = "") -> None:
        """A choice that is kept in the parameter node changed."""
        self.state.changed()

    def initializeParameterNode(self) -> None:
        """Make sure that the parameter node exists and is observed."""
        self.setParameterNode(self.logic.getParameterNode())

    def setParameterNode(self, parameters: Any) -> None:
        """Connect the widgets to a parameter node, or to none."""
        modified = vtk.vtkCommand.ModifiedEvent
        before = self.state.parameters
        if before is not None:
            before.disconnectGui(self._guiTag)
            self.removeObserver(before.parameterNode, modified, self.onParametersModified)
        self.state.parameters = parameters
        if parameters is not None:
            # ``connectGui`` does the same but gives no tag, so that every earlier connection would
            # go on writing.
            widgets = {}
            for widget in vars(self.ui).values():
                name = widget.property("SlicerParameterName")
                if name:
                    widgets[name] = widget
            self._guiTag = parameters.connectParametersToGui(widgets)
            # The wrapper fills the combo box with its own short values.
            for index, text in enumerate((_("axial"), _("coronal"), _("sagittal"))):
                self.ui.planeComboBox.setItemText(index, text)
            self.addObserver(parameters.parameterNode, modified, self.onParametersModified)
        self.state.changed()

    def isBusy(self) -> bool:
        """True while a computation is under way."""
        return self.state.isBusy

    def stopWork(self) -> None:
        """Cancel what is under way and end the worker."""
        self.jobs.stop()


def _moduleNames() -> Iterable[str]:
    """Names of all installed Slicer modules."""
    return slicer.app.moduleManager().modulesNames()


def _dicomValues(node: Any) -> Mapping[str, str]:
    """DICOM values of a volume from Slicer's database, by keyword; none without a database."""
    database = getattr(slicer, "dicomDatabase", None)
    if database is None or not database.isOpen:
        return {}
    return databaseTags(database)(node)


class MedMAPSegmentLogic(PanelLogic, ScriptedLoadableModuleLogic):
    """``SegmentationLogic`` on Slicer's scene: ``MedMAPSegmentLogic().process({"t1ce": node,
    "flair": other})``.
    """

    def __init__(self) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        SegmentationLogic.__init__(self, slicer.mrmlScene)

    def scriptedNode(self) -> Any:
        """The module's vtkMRMLScriptedModuleNode."""
        return ScriptedLoadableModuleLogic.getParameterNode(self)

    def getParameterNode(self) -> MedMAPSegmentParameterNode:
        """The module's parameter node, typed."""
        # The wrapper gives the class its constructor.
        return MedMAPSegmentParameterNode(self.scriptedNode())  # type: ignore[call-arg]


class MedMAPSegmentTest(ScriptedLoadableModuleTest):
    """Self test inside Slicer: offline, on a synthetic case. Without PyTorch, what needs it is left
    out, in words.
    """

    def setUp(self) -> None:
        slicer.mrmlScene.Clear()

    def runTest(self) -> None:
        for test in (self.test_labelsBecomeSegments, self.test_defaultModel, self.test_panel):
            self.setUp()
            test()

    def test_labelsBecomeSegments(self) -> None:
        """Labels come back as three coded segments that lie on the transformed reference volume,
        voxel for voxel.
        """
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
            preparation=None,
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

    def test_defaultModel(self) -> None:
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

    def test_panel(self) -> None:
        """The real panel, by clicks: detect, apply, review against the result's own labels, what
        if, undo.
        """
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
        assert panel.state.usedVolumes == nodes, ui.detectLabel.text
        assert ui.applyButton.enabled, ui.applyButton.toolTip
        assert "T1ce + FLAIR" in ui.performanceLabel.text
        ui.applyButton.click()
        self.waitFor(panel)
        ours = panel.state.result
        assert ours is not None, ui.statusLabel.text
        assert ui.resultsTable.rowCount == 3
        self.reviewAgainstItself(panel, ours, nodes["flair"])
        ui.subsetsButton.click()
        self.waitFor(panel)
        assert ui.subsetsTable.rowCount == 3, ui.statusLabel.text
        ui.undoButton.click()
        assert panel.state.result is None
        assert ui.resultsTable.rowCount == 0

    def reviewAgainstItself(self, panel: MedMAPSegmentWidget, ours: Any, volume: Any) -> None:
        """A reference with the same labels agrees perfectly."""
        reference = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "reference")
        reference.CopyOrientation(volume)
        labels = labelsOf(ours, panel.state.task)
        slicer.util.updateVolumeFromArray(
            reference, np.ascontiguousarray(labels.transpose(2, 1, 0))
        )
        panel.ui.reviewSelector.setCurrentNode(reference)
        assert choices.nodeOf(panel.state.parameterNode(), choices.REFERENCE) is reference
        panel.ui.reviewButton.click()
        self.waitFor(panel)
        assert [panel.ui.reviewTable.item(row, 1).text() for row in range(3)] == ["1.000"] * 3
        panel.ui.worstSliceButton.click()

    def waitFor(self, panel: MedMAPSegmentWidget) -> None:
        """Let the event loop run until the panel is idle."""
        deadline = time.monotonic() + 300
        while panel.isBusy() and time.monotonic() < deadline:
            slicer.app.processEvents()
        assert not panel.isBusy(), "still computing"

    def modelCanRun(self) -> bool:
        """Whether PyTorch and the shipped model are there; says so in the log if not."""
        missing = dependencies.missing()
        if missing:
            logging.warning("Not tested, because not installed: %s", ", ".join(map(str, missing)))
            return False
        return True
