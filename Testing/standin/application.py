"""``slicer.app``, ``slicer.modules``, the dialogs, and the installation of all stand-ins around a
fresh scene.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import time
import traceback
import types
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import slicer
import slicer.util
import vtk
from PySide6 import QtCore, QtGui, QtWidgets

from . import parameters, scripted
from .loader import QUiLoader
from .pythonqt import make_qt, mannered
from .widgets import CTK, QMRML, QMRMLWidget

_NOTHING = object()


class Desk:
    """Records and answers what would otherwise open a window.

    Attributes:
        calls: (kind, text) of every dialog, file dialog and opened address.
        answers: answer to the next dialog of a kind; a message box without an answer gets its Ok.
    """

    def __init__(self):
        self.calls: list[tuple[str, str]] = []
        self.answers: dict[str, object] = {}
        desk = self

        def asked(kind):
            def ask(*arguments):
                desk.calls.append((kind, " ".join(str(a) for a in arguments if isinstance(a, str))))
                return desk.answers.get(kind, "")

            return ask

        names = ("getOpenFileName", "getExistingDirectory", "getSaveFileName")
        self.file_dialog = type(
            "QFileDialog", (), {name: staticmethod(asked(name)) for name in names}
        )
        opened = staticmethod(lambda url: desk.calls.append(("openUrl", url.toString())) or True)
        self.services = type("QDesktopServices", (), {"openUrl": opened})

    def texts(self, kind: str = "message") -> list[str]:
        """What the dialogs of a kind said."""
        return [text for called, text in self.calls if called == kind]

    def message_box(self, base: type) -> type:
        """A message box that does not wait."""
        desk = self

        def exec_(box):
            desk.calls.append(("message", box.text))
            if box.detailedText:
                desk.calls.append(("details", box.detailedText))
            return desk.answers.get("message", QtWidgets.QMessageBox.StandardButton.Ok)

        return type(base.__name__, (base,), {"exec_": exec_})


class _Signals:
    """``connect`` and ``disconnect`` by signature, for the application signals in use."""

    known: tuple[str, ...] = ()

    def __init__(self):
        self._slots: dict[str, list] = {name: [] for name in self.known}

    def connect(self, signature, slot):
        """Connect. Raises KeyError for an unknown signal."""
        self._slots[signature].append(slot)
        return True

    def disconnect(self, signature, slot):
        """Disconnect."""
        self._slots[signature].remove(slot)
        return True

    def emit(self, signature, *arguments):
        """Call what is connected."""
        for slot in list(self._slots[signature]):
            slot(*arguments)


class PlotWidget:
    """qMRMLPlotWidget, as far as what is clicked in a plot is concerned."""

    def __init__(self, scene):
        self._node = scene.AddNewNodeByClass("vtkMRMLPlotViewNode", "PlotView")
        self._slots: list = []

    def mrmlPlotViewNode(self):
        """The real node of the view."""
        return self._node

    def plotView(self):
        """Has the signal."""
        return self

    def connect(self, signature, slot):
        """Connect. Raises AssertionError for an unknown signal."""
        assert signature == "dataSelected(vtkStringArray*,vtkCollection*)"
        self._slots.append(slot)
        return True

    def select(self, seriesNode, row):
        """A point of a series is clicked."""
        names, rows, selections = vtk.vtkStringArray(), vtk.vtkIdTypeArray(), vtk.vtkCollection()
        names.InsertNextValue(seriesNode.GetID())
        rows.InsertNextValue(row)
        selections.AddItem(rows)
        for slot in self._slots:
            slot(names, selections)


class LayoutManager:
    """Three slice views made of real slice logics, and notes on what was asked for."""

    def __init__(self, scene, application):
        self.logics = vtk.vtkCollection()
        self.layout = None
        self._scene = scene
        self._plots: list[PlotWidget] = []
        self._byName = {}
        for name, orientation in (("Red", "Axial"), ("Green", "Coronal"), ("Yellow", "Sagittal")):
            logic = slicer.vtkMRMLSliceLogic()
            logic.SetMRMLScene(scene)
            logic.SetMRMLApplicationLogic(application)
            logic.AddSliceNode(name).SetOrientation(orientation)
            self.logics.AddItem(logic)
            self._byName[name] = logic

    def sliceViewNames(self):
        """Names of the slice views."""
        return tuple(self._byName)

    def mrmlSliceLogics(self):
        """vtkCollection of vtkMRMLSliceLogic."""
        return self.logics

    def sliceWidget(self, name):
        """What ``slicer.util.setSliceViewerLayers`` asks of a slice view."""
        logic = self._byName[name]
        return SimpleNamespace(mrmlSliceNode=logic.GetSliceNode, sliceLogic=lambda: logic)

    def plotWidget(self, number):
        """The plot view, made when it is first asked for: a layout without plots has none."""
        if not self._plots:
            self._plots.append(PlotWidget(self._scene))
        return self._plots[number]

    def setLayout(self, layout):
        """Choose a layout."""
        self.layout = layout

    def resetThreeDViews(self):
        """Center the 3D views."""


class _MainWindow(mannered(QtWidgets.QWidget)):
    """qSlicerMainWindow, as far as ``slicer.util.selectModule`` looks at it."""

    def moduleSelector(self):
        """What a module is selected with."""
        return SimpleNamespace(selectModule=self._standin_selected.append)


class Application(_Signals):
    """``slicer.app``."""

    known = ("aboutToQuit()", "startupCompleted()")
    applicationName = "Slicer"
    applicationLocaleName = "en_US"
    majorVersion, minorVersion, revision = 5, 13, "0"

    def __init__(self, scene, logic):
        super().__init__()
        self.testing = False
        self.modulesNames = ("Segmentations", "Volumes", "MedMAPSegment")
        self.selected: list[str] = []
        self._logic = logic
        self._layout = LayoutManager(scene, logic)
        self._window = _MainWindow()
        self._window.setObjectName("qSlicerMainWindow")
        self._window._standin_selected = self.selected
        self._folder = tempfile.TemporaryDirectory(prefix="standin-")

    @property
    def temporaryPath(self):
        """Folder for temporary files."""
        return self._folder.name

    def testingEnabled(self):
        """True under ``--testing``."""
        return self.testing

    def topLevelWidgets(self):
        """The windows."""
        return (self._window,)

    def processEvents(self, *arguments):
        """Let Qt do what is waiting."""
        QtWidgets.QApplication.processEvents(*arguments)

    @property
    def slicerUserSettingsFilePath(self):
        """Where Slicer keeps its settings."""
        return str(Path(self.temporaryPath) / "Slicer.ini")

    def moduleManager(self):
        """Knows which modules are installed."""
        return SimpleNamespace(modulesNames=lambda: self.modulesNames)

    def layoutManager(self):
        """The views."""
        return self._layout

    def applicationLogic(self):
        """vtkSlicerApplicationLogic."""
        return self._logic

    def setOverrideCursor(self, cursor):
        """Change the mouse cursor."""
        QtWidgets.QApplication.setOverrideCursor(cursor)

    def restoreOverrideCursor(self):
        """Change it back."""
        QtWidgets.QApplication.restoreOverrideCursor()

    def userSettings(self):
        """Settings that end with the test."""
        return QtCore.QSettings(
            str(Path(self._folder.name) / "settings.ini"), QtCore.QSettings.Format.IniFormat
        )


class _PanelParent(QMRMLWidget):
    """qSlicerScriptedLoadableModuleWidget, as far as a scripted panel looks at it."""

    isEntered = QtCore.Property(bool, lambda self: getattr(self, "_standin_entered", False))


class Standin:
    """The stand-ins in place: fresh scene, application, and the panels that were opened.

    Attributes:
        scene: the vtkMRMLScene.
        app: ``slicer.app``.
        desk: dialogs, recorded and answered.
        errors: tracebacks of exceptions that left a slot or an observer, where Qt and VTK only
            print them.
    """

    def __init__(self):
        self._undo: list = []
        self._panels: list = []
        self.errors: list[str] = []
        self.desk = Desk()
        self.samples: list[dict] = []
        self.qt = make_qt(QUiLoader, self.desk)
        qapplication = QtWidgets.QApplication.instance() or QtWidgets.QApplication(["Slicer"])
        qapplication.setStyle("Fusion")
        self._put(sys, "excepthook", self._note)
        self._scene()
        self._modules()

    def _put(self, owner, name, value) -> None:
        """Set an attribute or a dictionary entry until ``uninstall``."""
        if isinstance(owner, dict):
            old = owner.get(name, _NOTHING)
            owner[name] = value
            self._undo.append(
                lambda: owner.pop(name) if old is _NOTHING else owner.__setitem__(name, old)
            )
        else:
            old = owner.__dict__.get(name, _NOTHING)
            setattr(owner, name, value)
            self._undo.append(
                lambda: delattr(owner, name) if old is _NOTHING else setattr(owner, name, old)
            )

    def _note(self, kind, error, trace) -> None:
        self.errors.append("".join(traceback.format_exception(kind, error, trace)))
        sys.__excepthook__(kind, error, trace)

    def _scene(self) -> None:
        self.scene = scene = slicer.vtkMRMLScene()
        self._put(slicer, "mrmlScene", scene)
        application = slicer.vtkSlicerApplicationLogic()
        application.SetMRMLScene(scene)
        self.logics = {
            "Colors": slicer.vtkMRMLColorLogic(),
            "Volumes": slicer.vtkSlicerVolumesLogic(),
            "Segmentations": slicer.vtkSlicerSegmentationsModuleLogic(),
            "Terminologies": slicer.vtkSlicerTerminologiesModuleLogic(),
        }
        for name, logic in self.logics.items():
            if name == "Terminologies":  # its default dictionaries are not in slicer-core
                continue
            logic.SetMRMLScene(scene)
            logic.SetMRMLApplicationLogic(application)
            application.SetModuleLogic(name, logic)
        self.logics["Colors"].AddDefaultColorNodes()
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
        slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
        tag = scene.AddObserver(scene.NodeAddedEvent, self._follow)
        self._undo.append(lambda: scene.RemoveObserver(tag))
        leaving = scene.AddObserver(scene.NodeAboutToBeRemovedEvent, self._leave)
        self._undo.append(lambda: scene.RemoveObserver(leaving))
        self.app = Application(scene, application)
        self._put(slicer, "app", self.app)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _follow(self, caller, event, node) -> None:
        """The application's subject hierarchy plugins put every data node into the tree."""
        if node.IsA("vtkMRMLDisplayableNode") or node.IsA("vtkMRMLTableNode"):
            hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self.scene)
            if (
                not node.GetHideFromEditors()
                and hierarchy.GetItemByDataNode(node) == hierarchy.GetInvalidItemID()
            ):
                hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _leave(self, caller, event, node) -> None:
        """They also take its item out of the tree before a node goes."""
        hierarchy = caller.GetFirstNodeByClass("vtkMRMLSubjectHierarchyNode")
        if caller.IsClosing() or hierarchy is None or hierarchy is node:
            return
        item = hierarchy.GetItemByDataNode(node)
        if item != hierarchy.GetInvalidItemID():
            hierarchy.RemoveItem(item, False, False)

    def _modules(self) -> None:
        def module(name, **contents):
            made = types.ModuleType(name)
            made.__dict__.update(contents)
            self._put(sys.modules, name, made)
            return made

        self._put(sys.modules, "qt", self.qt)
        module("ctk", **CTK, ctkMessageBox=self.qt.QMessageBox)
        roles = ("", "Widget", "Logic", "Test")
        bases = {
            f"ScriptedLoadableModule{role}": getattr(scripted, f"ScriptedLoadableModule{role}")
            for role in roles
        }
        module("slicer.ScriptedLoadableModule", **bases)
        module("slicer.i18n", tr=lambda text: text, translate=lambda context, text: text)
        names = (
            "parameterNodeWrapper",
            "Choice",
            "WithinRange",
            "Default",
        )  # what the panel may use of it
        module("slicer.parameterNodeWrapper", **{name: getattr(parameters, name) for name in names})
        register = SimpleNamespace(registerCustomSampleDataSource=self._registerSample)
        module("SampleData", SampleDataLogic=register)
        for name, cls in QMRML.items():
            self._put(slicer, name, cls)
        kept = {
            name.lower(): SimpleNamespace(logic=lambda logic=logic: logic)
            for name, logic in self.logics.items()
        }
        self.charts: list = []
        kept["plots"] = SimpleNamespace(
            logic=lambda: SimpleNamespace(ShowChartInLayout=self.charts.append)
        )
        kept["sampledata"] = SimpleNamespace(name="SampleData")
        self._put(slicer, "modules", SimpleNamespace(**kept))

    def _registerSample(
        self,
        category="Custom",
        sampleName=None,
        uris=None,
        fileNames=None,
        nodeNames=None,
        customDownloader=None,
        thumbnailFileName=None,
        loadFileType="VolumeFile",
        loadFiles=None,
        loadFileProperties=None,
        checksums=None,
    ):
        """Keywords of ``SampleData.SampleDataLogic.registerCustomSampleDataSource``; a text needs
        texts beside it.
        """
        assert isinstance(uris, str)
        assert isinstance(fileNames, str)
        assert isinstance(nodeNames, str)
        assert Path(thumbnailFileName).is_file()
        self.samples.append({"category": category, "name": sampleName, "load": customDownloader})

    def open(self, path: Path):
        """Load a module file, start it up and open its panel. Returns the panel (``XWidget``)."""
        name = path.stem
        sys.path.insert(0, str(path.parent))
        self._undo.append(lambda: sys.path.remove(str(path.parent)))
        # Files of the library that hold the ``qt`` of an earlier installation are read again.
        for loaded in [m for m in sys.modules if m.startswith(f"{name}Lib.sections")]:
            del sys.modules[loaded]
        specification = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(specification)
        self._put(sys.modules, name, module)
        specification.loader.exec_module(module)
        record = SimpleNamespace(path=str(path), name=name)
        getattr(module, name)(record)
        parent = _PanelParent()
        QtWidgets.QVBoxLayout(parent)
        parent.setMRMLScene(self.scene)
        self._put(slicer.modules, name.lower(), record)
        panel = getattr(module, f"{name}Widget")(parent)
        record.widgetRepresentation = lambda: SimpleNamespace(self=lambda: panel)
        self.app.emit("startupCompleted()")
        panel.setup()
        parent.resize(430, 900)
        parent.show()
        parent._standin_entered = True
        panel.enter()
        self._panels.append(panel)
        self.module = module
        return panel

    def wait(self, done, seconds: float = 60.0) -> int:
        """Run the event loop until ``done()``; returns the number of turns. Raises TimeoutError."""
        end, turns = time.monotonic() + seconds, 0
        while not done():
            self.app.processEvents()
            turns += 1
            if time.monotonic() > end:
                raise TimeoutError(f"Not done after {seconds} s")
        return turns

    def picture(self, panel, path: Path, width: int = 430, height: int = 900) -> QtGui.QPixmap:
        """Save the panel as it looks in a dock of that size."""
        parent = panel.parent
        QtWidgets.QWidget.resize(parent, width, height)
        for _ in range(6):
            self.app.processEvents()
        pixmap = QtWidgets.QWidget.grab(parent)
        assert pixmap.save(str(path))
        return pixmap

    def uninstall(self) -> None:
        """Close the panels and take everything away again."""
        for panel in self._panels:
            panel.cleanup()
            panel.parent.close()
            panel.parent.deleteLater()
        self.app.processEvents()
        self.scene.Clear(1)
        for undo in reversed(self._undo):
            undo()


def install() -> Standin:
    """Put the stand-ins in place."""
    return Standin()
