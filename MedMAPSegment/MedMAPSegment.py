"""MedMAP Segment: brain tumour segmentation from any subset of T1, T1ce, T2 and FLAIR. Research use only.

The four classes that Slicer asks for; what they do is in MedMAPSegmentLib. PyTorch is looked for only after Apply.
"""

import logging
import time
from types import SimpleNamespace
from typing import Annotated

import numpy as np
import qt
import slicer
import slicer.util
import vtk
from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
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
from MedMAPSegmentLib.logic import AUTO, DEVICES, SegmentationLogic, resultOf
from MedMAPSegmentLib.runner import JobState, ThreadRunner
from MedMAPSegmentLib.scene import labelsOf
from MedMAPSegmentLib.selftest import addSyntheticCase

MODALITIES = ("t1", "t1ce", "t2", "flair")
POLL_SECONDS = 0.02


class MedMAPSegment(ScriptedLoadableModule):
    """What Slicer's module list shows."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("MedMAP Segment")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = ["Segmentations", "Terminologies"]
        self.parent.contributors = ["MedMAP contributors"]
        self.parent.helpText = _(
            "Segments brain tumors (edema, enhancing tumor, necrosis and non-enhancing core) from whichever of T1, "
            "T1ce, T2 and FLAIR there are: any of the 15 combinations. The scans must be skull-stripped and aligned "
            'to each other. For research use only. See more in the <a href="https://github.com/medmap/SlicerMedMAP">'
            "documentation</a>."
        )
        self.parent.acknowledgementText = _("Developed by the MedMAP contributors. License: Apache 2.0.")
        slicer.app.connect("startupCompleted()", self.loadTerminology)

    def loadTerminology(self):
        """Make the codes of the segments selectable in Slicer's terminology selector."""
        if hasattr(slicer.modules, "terminologies"):
            slicer.modules.terminologies.logic().LoadTerminologyFromFile(self.resourcePath("MedMAP.term.json"))


@parameterNodeWrapper
class MedMAPSegmentParameterNode:
    """What the user chose; saved with the scene."""

    t1: vtkMRMLScalarVolumeNode
    t1ce: vtkMRMLScalarVolumeNode
    t2: vtkMRMLScalarVolumeNode
    flair: vtkMRMLScalarVolumeNode
    reference: Annotated[str, Choice([AUTO, *MODALITIES])] = AUTO
    outputSegmentation: vtkMRMLSegmentationNode
    device: Annotated[str, Choice(list(DEVICES))] = AUTO


class MedMAPSegmentWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel: binds widgets to parameters, starts and stops the computation, shows what came out."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameterNode = None
        self._guiTag = None
        self._runner = None
        self._timer = None
        self._job = None
        self._request = None

    def setup(self):
        """Build the panel when it is opened for the first time."""
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/MedMAPSegment.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)

        self.logic = MedMAPSegmentLogic()
        self._runner = ThreadRunner()
        # A zero-interval timer whose slot waits a little: the wait lets the worker have the interpreter lock, which
        # Slicer's main thread keeps otherwise even while it idles.
        self._timer = qt.QTimer()
        self._timer.setInterval(0)
        self._timer.connect("timeout()", self.onPoll)

        self.ui.progressBar.visible = False
        self.ui.applyButton.connect("clicked(bool)", self.onApplyButton)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        slicer.app.connect("aboutToQuit()", self.stopWork)
        self.initializeParameterNode()

    def cleanup(self):
        """Called when the application closes and when the module is reloaded."""
        slicer.app.disconnect("aboutToQuit()", self.stopWork)
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
        self.abandonJob()
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event):
        """Start afresh if the panel is shown."""
        self.showResult("")
        if self.parent.isEntered:
            self.initializeParameterNode()

    def initializeParameterNode(self):
        """Make sure that the parameter node exists and is observed."""
        self.setParameterNode(self.logic.getParameterNode())

    def setParameterNode(self, parameterNode):
        """Connect the widgets to a parameter node, or to none."""
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._guiTag)
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.updateApplyButton)
        self._parameterNode = parameterNode
        if self._parameterNode is not None:
            self._guiTag = self._parameterNode.connectGui(self.ui)
            self.nameChoices()
            self.addObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.updateApplyButton)
        self.updateApplyButton()

    def nameChoices(self):
        """Words for the choices of the combo boxes, which the parameter node fills with its own short values."""
        references = [_("Automatic (finest scan)"), "T1", "T1ce", "T2", "FLAIR"]
        devices = [_("Automatic"), _("Graphics card (CUDA)"), _("Processor (CPU)")]
        for comboBox, texts in ((self.ui.referenceComboBox, references), (self.ui.deviceComboBox, devices)):
            for index, text in enumerate(texts):
                comboBox.setItemText(index, text)

    def choices(self):
        """Arguments for the logic, as chosen in the panel."""
        chosen = self._parameterNode
        return {
            "inputs": {name: getattr(chosen, name) for name in MODALITIES},
            "reference": None if chosen.reference == AUTO else chosen.reference,
            "outputNode": chosen.outputSegmentation,
        }

    def updateApplyButton(self, caller=None, event=None):
        """Enable Apply, or say in its tooltip everything that is in the way."""
        if self._job is not None:
            cancelling = self._job.cancelRequested
            self.ui.applyButton.text = _("Cancelling...") if cancelling else _("Cancel")
            self.ui.applyButton.toolTip = _("Stop the computation; the scene stays as it is.")
            self.ui.applyButton.enabled = not cancelling
            return
        problems = self.logic.problems(**self.choices()) if self._parameterNode is not None else [""]
        self.ui.applyButton.text = _("Apply")
        self.ui.applyButton.toolTip = "\n".join(problems) or _("Segment the tumor from the chosen scans.")
        self.ui.applyButton.enabled = not problems

    def onApplyButton(self, clicked=False):
        """Start, or cancel what runs."""
        if self._job is not None:
            self._job.cancel()
            self.updateApplyButton()
            return
        with slicer.util.tryWithErrorDisplay(_("The segmentation could not be started.")):
            if not dependencies.ensure(dependencies.SlicerInstaller()):
                self.ui.statusLabel.text = _("Nothing was installed; without PyTorch there is no segmentation.")
                return
            with slicer.util.WaitCursor():
                self._request = self.logic.prepare(**self.choices(), device=self._parameterNode.device)
            self._job = self.logic.start(self._request, self._runner)
        self.ui.progressBar.value = 0
        self.ui.progressBar.visible = True
        self.ui.statusLabel.text = ""
        self.updateApplyButton()
        self._timer.start()

    def onPoll(self):
        """Let the worker work for a moment, then show how far it is."""
        if self._job is None:
            self._timer.stop()
            return
        state = self._job.poll(POLL_SECONDS)
        messages = self._job.takeMessages()
        if messages:
            fraction, text = messages[-1]
            self.ui.progressBar.value = round(100 * fraction)
            self.ui.statusLabel.text = text
        if state.finished:
            self.finishJob()

    def finishJob(self):
        """Take the outcome of the finished job."""
        job, request = self._job, self._request
        self.abandonJob()
        if job.state is JobState.CANCELLED:
            self.ui.statusLabel.text = _("Cancelled; the scene is unchanged.")
            return
        if job.state is JobState.FAILED:
            self.ui.statusLabel.text = str(job.error)
            slicer.util.errorDisplay(str(job.error), **({"detailedText": job.details} if job.details else {}))
            return
        with slicer.util.tryWithErrorDisplay(_("The result could not be put into the scene.")):
            result = resultOf(job)
            node = self.logic.apply(request, result)
            self.ui.statusLabel.text = _("Done: {name}").format(name=node.GetName())
            self.showResult(self.describe(result))

    def isBusy(self):
        """True while a computation runs."""
        return self._job is not None

    def abandonJob(self):
        """Cancel what runs, without waiting, and make the panel ready again."""
        if self._job is not None:
            self._job.cancel()
        self._job = self._request = None
        self._timer.stop()
        self.ui.progressBar.visible = False
        self.updateApplyButton()

    def stopWork(self):
        """Cancel and give the worker thread a few seconds to end."""
        self.abandonJob()
        self._runner.shutdown()

    def describe(self, result):
        """A result in words: volumes, what it is based on, and what to beware of."""
        task = self.logic.task
        lines = [
            _("{title} ({name}): {volume:.1f} ml").format(
                title=region.title, name=region.name, volume=result.volumes_ml[region.name]
            )
            for region in task.regions
        ]
        used = ", ".join(task.modality(name).title for name in result.provenance["modalities"]["used"])
        lines.append(_("Based on: {modalities}").format(modalities=used))
        lines.append(_("On the grid of: {reference}").format(reference=task.modality(result.reference).title))
        lines.append(_("Computed on: {device}").format(device=result.provenance["run"]["device"]))
        warnings = [finding for finding in result.findings if finding.level == "warning"]
        lines.extend(f"\u26a0 {warning.message} {warning.remedy}".rstrip() for warning in warnings)
        return "\n".join(lines)

    def showResult(self, text):
        """Fill the results section."""
        self.ui.resultsLabel.text = text or _("No result yet.")


class MedMAPSegmentLogic(SegmentationLogic, ScriptedLoadableModuleLogic):
    """``SegmentationLogic`` on Slicer's scene: ``MedMAPSegmentLogic().process({"t1ce": node, "flair": other})``."""

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)
        SegmentationLogic.__init__(self, slicer.mrmlScene)

    def getParameterNode(self):
        """The module's parameter node, typed."""
        return MedMAPSegmentParameterNode(super().getParameterNode())


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
        labels = np.select([kji > 600, kji > 450, kji > 350], [2, 4, 1], 0).astype(np.uint8).transpose(2, 1, 0)
        result = SimpleNamespace(labels=labels, reference="flair", provenance={"made": "by the self test"})
        logic = SegmentationLogic(slicer.mrmlScene, lambda *args, **options: result, lambda: None)

        node = logic.process({"flair": reference}, device="cpu")

        segmentation = node.GetSegmentation()
        assert list(segmentation.GetSegmentIDs()) == ["NCR", "ED", "ET"]
        assert node.GetTransformNodeID() == transform.GetID()
        assert node.GetNodeReferenceID(node.GetReferenceImageGeometryReferenceRole()) == reference.GetID()
        for name, value in (("NCR", 1), ("ED", 2), ("ET", 4)):
            mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, name, reference)
            assert np.array_equal(mask.transpose(2, 1, 0) > 0, labels == value), name
            assert segmentation.GetSegment(name).HasTag("TerminologyEntry"), name
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        parents = [hierarchy.GetItemParent(hierarchy.GetItemByDataNode(n)) for n in (node, reference)]
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
        """Apply in the panel computes on the worker thread while the event loop runs, and adds a segmentation."""
        if not self.modelCanRun():
            return
        widget = slicer.modules.medmapsegment.widgetRepresentation().self()
        widget.initializeParameterNode()
        assert not widget.ui.applyButton.enabled
        widget.ui.flairSelector.setCurrentNode(addSyntheticCase(slicer.mrmlScene, ("flair",))["flair"])
        assert widget.ui.applyButton.enabled, widget.ui.applyButton.toolTip
        widget.ui.applyButton.click()
        deadline = time.monotonic() + 300
        while widget.isBusy() and time.monotonic() < deadline:
            slicer.app.processEvents()
        assert not widget.isBusy(), "still computing"
        assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 1
        assert "ml" in widget.ui.resultsLabel.text

    def modelCanRun(self):
        """Whether PyTorch and the shipped model are there; says so in the log if not."""
        missing = dependencies.missing()
        if missing:
            logging.warning("Not tested, because not installed: %s", ", ".join(map(str, missing)))
            return False
        return True
