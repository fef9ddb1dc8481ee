"""The CTK and MRML widgets that the panel uses, as far as their documentation goes; no more."""

from __future__ import annotations

import vtk
from PySide6 import QtCore, QtWidgets

from .pythonqt import Manners


def _stored(name: str, kind):
    """A Qt property that is kept in ``_standin_values``."""

    def read(self):
        return self._standin_values[name]

    def write(self, value):
        self._standin_values[name] = value
        self._refresh()

    return QtCore.Property(kind, read, write)


class QMRMLWidget(Manners, QtWidgets.QWidget):
    """A widget that tells its children about the scene."""

    mrmlSceneChanged = QtCore.Signal(object)

    def setMRMLScene(self, scene) -> None:
        """Set the scene."""
        self._standin_scene = scene
        QtWidgets.QWidget.setEnabled(self, scene is not None)
        self.mrmlSceneChanged.emit(scene)

    def mrmlScene(self):
        """The scene."""
        return getattr(self, "_standin_scene", None)


class QMRMLNodeComboBox(Manners, QtWidgets.QWidget):
    """Lists the scene's nodes of some types; off while it has no scene.

    As in Slicer, a node that goes while it is chosen is replaced by its neighbor in the list, and
    reading a scene fills the list anew, after which nothing is sure about the choice: the last node
    is taken here, the worst case.
    """

    currentNodeIDChanged = QtCore.Signal(str)
    nodeTypes = _stored("nodeTypes", "QStringList")
    noneEnabled = _stored("noneEnabled", bool)
    noneDisplay = _stored("noneDisplay", str)
    showChildNodeTypes = _stored("showChildNodeTypes", bool)
    addEnabled = _stored("addEnabled", bool)
    removeEnabled = _stored("removeEnabled", bool)
    renameEnabled = _stored("renameEnabled", bool)
    editEnabled = _stored("editEnabled", bool)
    showHidden = _stored("showHidden", bool)
    selectNodeUponCreation = _stored("selectNodeUponCreation", bool)
    baseName = _stored("baseName", str)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._standin_values = {
            "nodeTypes": [],
            "noneEnabled": False,
            "noneDisplay": "None",
            "showChildNodeTypes": True,
            "addEnabled": True,
            "removeEnabled": True,
            "renameEnabled": False,
            "editEnabled": False,
            "showHidden": False,
            "selectNodeUponCreation": True,
            "baseName": "",
        }
        self._standin_scene = None
        self._standin_tags: list = []
        self._standin_nodes: list = []
        self._standin_callbacks: list = []
        self._standin_current = None
        box = QtWidgets.QComboBox(self)
        box.setSizePolicy(QtWidgets.QSizePolicy.Policy.Ignored, QtWidgets.QSizePolicy.Policy.Fixed)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(box)
        box.activated.connect(self._activated)
        self._standin_box = box
        box.setFocusPolicy(QtCore.Qt.FocusPolicy.NoFocus)  # Tab passes it by, as in Slicer
        QtWidgets.QWidget.setEnabled(self, False)

    def connect(self, signature, slot, *inner):
        """``currentNodeChanged`` passes a node or a truth value, which a PySide6 signal cannot tell
        apart.
        """
        if signature in ("currentNodeChanged(vtkMRMLNode*)", "currentNodeChanged(bool)"):
            self._standin_callbacks.append((signature, slot))
            return True
        return super().connect(signature, slot, *inner)

    def disconnect(self, signature, slot):
        """Undo ``connect``."""
        if (signature, slot) in self._standin_callbacks:
            self._standin_callbacks.remove((signature, slot))
            return True
        return super().disconnect(signature, slot)

    def setMRMLScene(self, scene) -> None:
        """Follow a scene."""
        old = self._standin_scene
        for tag in self._standin_tags:
            old.RemoveObserver(tag)
        self._standin_scene = scene
        self._standin_tags = []
        if scene is not None:
            self._standin_tags = [
                scene.AddObserver(
                    scene.NodeAddedEvent, lambda caller, event: self._refresh(), 10.0
                ),
                scene.AddObserver(scene.NodeAboutToBeRemovedEvent, self._leaving, -10.0),
                scene.AddObserver(scene.EndCloseEvent, lambda caller, event: self._refresh()),
                scene.AddObserver(scene.EndImportEvent, lambda caller, event: self._read()),
            ]
        QtWidgets.QWidget.setEnabled(self, scene is not None)
        self._refresh()

    def mrmlScene(self):
        """The scene."""
        return self._standin_scene

    def currentNode(self):
        """The chosen node or None."""
        return self._standin_current

    def nodeCount(self) -> int:
        """How many nodes are offered."""
        return len(self._standin_nodes)

    def nodeFromIndex(self, index: int):
        """The node at a position."""
        return self._standin_nodes[index]

    def setCurrentNode(self, node) -> None:
        """Choose a node; one that is not offered means None."""
        if isinstance(node, str):
            node = self._standin_scene.GetNodeByID(node)
        self._choose(node if node in self._standin_nodes else None)

    def setCurrentNodeID(self, identifier: str) -> None:
        """Choose a node by its ID."""
        self.setCurrentNode(self._standin_scene.GetNodeByID(identifier) if identifier else None)

    def _fits(self, node) -> bool:
        values = self._standin_values
        if node.GetHideFromEditors() and not values["showHidden"]:
            return False
        if values["showChildNodeTypes"]:
            return any(node.IsA(kind) for kind in values["nodeTypes"])
        return node.GetClassName() in values["nodeTypes"]

    def _refresh(self) -> None:
        scene = self._standin_scene
        nodes = (
            [scene.GetNthNode(n) for n in range(scene.GetNumberOfNodes())]
            if scene is not None
            else []
        )
        self._standin_nodes = [node for node in nodes if node is not None and self._fits(node)]
        current = self._standin_current if self._standin_current in self._standin_nodes else None
        self._fill()
        if current is not self._standin_current:
            self._choose(current)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _leaving(self, caller, event, node) -> None:
        """The row of a node goes; QComboBox chooses what is in its place then, or the last row."""
        if caller.IsClosing() or node not in self._standin_nodes:
            return
        first = [None] if self._standin_values["noneEnabled"] else []
        at = [*first, *self._standin_nodes].index(node)
        self._standin_nodes.remove(node)
        rows = [*first, *self._standin_nodes] or [None]
        if node is self._standin_current:
            self._choose(rows[min(at, len(rows) - 1)])
        else:
            self._fill()

    def _read(self) -> None:
        """A scene was read."""
        self._refresh()
        if self._standin_nodes:
            self._choose(self._standin_nodes[-1])

    def _fill(self) -> None:
        box, values = self._standin_box, self._standin_values
        wasBlocked = box.blockSignals(True)
        box.clear()
        if values["noneEnabled"]:
            box.addItem(values["noneDisplay"])
        for node in self._standin_nodes:
            box.addItem(node.GetName())
        offset = 1 if values["noneEnabled"] else 0
        current = self._standin_current
        at = (
            self._standin_nodes.index(current) + offset
            if current in self._standin_nodes
            else offset - 1
        )
        box.setCurrentIndex(at)
        box.blockSignals(wasBlocked)

    def _activated(self, index: int) -> None:
        offset = 1 if self._standin_values["noneEnabled"] else 0
        self._choose(self._standin_nodes[index - offset] if index >= offset else None)

    def _choose(self, node) -> None:
        if node is self._standin_current:
            return
        self._standin_current = node
        self._fill()
        for signature, slot in list(self._standin_callbacks):
            slot(*([node] if signature.endswith("Node*)") else [node is not None])[: _takes(slot)])
        self.currentNodeIDChanged.emit(node.GetID() if node is not None else "")


def _takes(slot) -> int:
    from .pythonqt import _arity

    count = _arity(slot)
    return 1 if count is None else count


class CtkCollapsibleButton(Manners, QtWidgets.QWidget):
    """A section with a title that hides its contents."""

    contentsCollapsed = QtCore.Signal(bool)
    toggled = QtCore.Signal(bool)
    clicked = QtCore.Signal(bool)

    def __init__(self, *args):
        text = args[0] if args and isinstance(args[0], str) else ""
        super().__init__(*[a for a in args if not isinstance(a, str)])
        self._standin_collapsed = False
        button = QtWidgets.QToolButton(self)
        button.setToolButtonStyle(QtCore.Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        button.setSizePolicy(
            QtWidgets.QSizePolicy.Policy.Expanding, QtWidgets.QSizePolicy.Policy.Fixed
        )
        button.setAutoRaise(False)
        button.setText(text)
        button.clicked.connect(self._clicked)
        self._standin_button = button
        self._show()
        # CTK's own default, with which a section, and so the panel, is never narrower than it would
        # like to be.
        policy = QtWidgets.QSizePolicy.Policy
        QtWidgets.QWidget.setSizePolicy(self, policy.Minimum, policy.Preferred)
        QtWidgets.QWidget.setContentsMargins(self, 4, button.sizeHint().height() + 4, 4, 4)

    def click(self) -> None:
        """Press the title."""
        self._standin_button.click()

    def resizeEvent(self, event):
        """Keep the title at the top."""
        button = self._standin_button
        button.setGeometry(0, 0, QtWidgets.QWidget.width(self), button.sizeHint().height())

    def childEvent(self, event):
        """New children of a closed section are hidden too."""
        if self.__dict__.get("_standin_collapsed"):
            QtCore.QTimer.singleShot(0, self._show)

    def _clicked(self, *args):
        self._setCollapsed(not self._standin_collapsed)
        self.clicked.emit(not self._standin_collapsed)

    def _getText(self):
        return self._standin_button.text()

    def _setText(self, text):
        self._standin_button.setText(text)

    def _getCollapsed(self):
        return self._standin_collapsed

    def _setCollapsed(self, collapsed):
        if collapsed != self._standin_collapsed:
            self._standin_collapsed = collapsed
            self._show()
            self.contentsCollapsed.emit(collapsed)

    def _show(self):
        button, collapsed = self._standin_button, self._standin_collapsed
        button.setArrowType(
            QtCore.Qt.ArrowType.RightArrow if collapsed else QtCore.Qt.ArrowType.DownArrow
        )
        # As CTK does it: the contents keep their own visibility, so a hidden child stays hidden
        # when opened again.
        limit = button.sizeHint().height() + 6 if collapsed else 16777215
        QtWidgets.QWidget.setMaximumHeight(self, limit)

    text = QtCore.Property(str, _getText, _setText)
    collapsed = QtCore.Property(bool, _getCollapsed, _setCollapsed)


QMRMLNodeComboBox.__name__ = "qMRMLNodeComboBox"
CtkCollapsibleButton.__name__ = "ctkCollapsibleButton"
QMRMLWidget.__name__ = "qMRMLWidget"
QMRML = {"qMRMLWidget": QMRMLWidget, "qMRMLNodeComboBox": QMRMLNodeComboBox}
CTK = {"ctkCollapsibleButton": CtkCollapsibleButton}
