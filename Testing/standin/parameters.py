"""``slicer.parameterNodeWrapper`` restated for nodes, texts, truth values and bounded numbers.

From Slicer's documentation ("Parameter nodes" in the developer guide): each annotated member is
kept in a vtkMRMLScriptedModuleNode, nodes as references and the rest as text; ``connectGui`` binds
the widgets whose dynamic property ``SlicerParameterName`` names a member.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass

import vtk

PROPERTY = "SlicerParameterName"


@dataclass(frozen=True)
class Choice:
    """The value must be one of these."""

    choices: list


@dataclass(frozen=True)
class WithinRange:
    """The number must lie between these, both included."""

    minimum: float
    maximum: float


@dataclass(frozen=True)
class Default:
    """Value of a fresh parameter node."""

    value: object


class _Member:
    """One annotated member: how it is kept and which widgets may show it."""

    def __init__(self, name: str, annotated, value):
        parts = (
            typing.get_args(annotated)
            if typing.get_origin(annotated) is typing.Annotated
            else (annotated,)
        )
        self.name, self.kind, self.notes = name, parts[0], parts[1:]
        # Slicer's wrapper accepts a union of node classes but then cannot write None, so a panel
        # must not use one.
        self.isNode = isinstance(self.kind, type) and issubclass(self.kind, vtk.vtkObject)
        if not self.isNode and self.kind not in (str, bool, int, float):
            raise TypeError(
                f"The stand-in does not restate parameters of type {self.kind} ({name})"
            )
        self.kinds = (self.kind,)
        given = [note.value for note in self.notes if isinstance(note, Default)]
        self.default = (
            value
            if value is not None
            else (given[0] if given else None if self.isNode else self.kind())
        )
        self.check(self.default)

    def note(self, kind):
        """The annotation of that class, or None."""
        return next((note for note in self.notes if isinstance(note, kind)), None)

    def check(self, value) -> None:
        """Raises ValueError or TypeError for a value that the member cannot have."""
        if value is None and not self.isNode:
            raise ValueError(f"{self.name} cannot be None")
        if value is not None and not isinstance(
            value, (*self.kinds, int) if self.kind is float else self.kinds
        ):
            raise TypeError(f"{self.name} is a {self.kind}, not {value!r}")
        choice, bounds = self.note(Choice), self.note(WithinRange)
        if choice is not None and value not in choice.choices:
            raise ValueError(f"{self.name} must be one of {choice.choices}, not {value!r}")
        if bounds is not None and not bounds.minimum <= value <= bounds.maximum:
            raise ValueError(f"{self.name} must lie within {bounds}, not {value!r}")

    def read(self, node):
        """Value in the node; the default is written first where there is none, as after the scene
        was closed.
        """
        if not self.isIn(node):
            self.write(node, self.default)
        if self.isNode:
            return node.GetNodeReference(self.name)
        text = node.GetParameter(self.name)
        return text == "True" if self.kind is bool else self.kind(text)

    def write(self, node, value) -> None:
        """Put a value into the node."""
        self.check(value)
        if self.isNode:
            node.SetParameter(self.name, "")
            node.SetNodeReferenceID(self.name, value.GetID() if value is not None else None)
        else:
            node.SetParameter(self.name, str(value))

    def isIn(self, node) -> bool:
        """True once the node has a value."""
        return bool(node.HasParameter(self.name))


_VALUE = {"QCheckBox": "checked", "QSpinBox": "value", "QLineEdit": "text"}


class _Bound:
    """A widget that shows a member."""

    def __init__(self, widget, member: _Member):
        self.widget, self.member, self.signal, self.slot = widget, member, None, None
        kind = widget.className()
        wanted = {
            "qMRMLNodeComboBox": (member.isNode, "currentNodeChanged(vtkMRMLNode*)"),
            "QComboBox": (
                member.kind is str and member.note(Choice) is not None,
                "currentIndexChanged(int)",
            ),
            "QCheckBox": (member.kind is bool, "toggled(bool)"),
            "QSpinBox": (member.kind is int, "valueChanged(int)"),
            "QLineEdit": (member.kind is str, "textChanged(QString)"),
        }
        allowed, self.signal = wanted.get(kind, (False, ""))
        if not allowed:
            raise RuntimeError(f"No GUI connector between {kind} and {member.kind} ({member.name})")
        if kind == "qMRMLNodeComboBox":
            widget.nodeTypes = [kind.__name__ for kind in member.kinds]
        elif kind == "QComboBox":
            widget.clear()
            for choice in member.note(Choice).choices:
                widget.addItem(str(choice))

    def read(self):
        kind = self.widget.className()
        if kind == "qMRMLNodeComboBox":
            return self.widget.currentNode()
        if kind == "QComboBox":
            return self.member.note(Choice).choices[self.widget.currentIndex]
        return getattr(self.widget, _VALUE[kind])

    def write(self, value) -> None:
        kind = self.widget.className()
        if kind == "qMRMLNodeComboBox":
            self.widget.setCurrentNode(value)
        elif kind == "QComboBox":
            self.widget.currentIndex = self.member.note(Choice).choices.index(value)
        else:
            setattr(self.widget, _VALUE[kind], value)

    def follow(self, changed) -> None:
        self.slot = lambda: changed(self)
        self.widget.connect(self.signal, self.slot)

    def leave(self) -> None:
        self.widget.disconnect(self.signal, self.slot)


def _init(self, parameterNode, prefix=None):
    self.parameterNode, self._tags, self._bound, self._updating = parameterNode, {}, {}, False
    self._nextTag = 0
    for member in self.allParameters.values():
        if not member.isIn(parameterNode):
            member.write(parameterNode, member.default)


def _connectGui(self, gui):
    found = {
        widget.property(PROPERTY): widget
        for widget in vars(gui).values()
        if hasattr(widget, "property")
    }
    # Slicer's own gives no tag back here, so that nothing can be disconnected: a panel must bear
    # that.
    _connectParametersToGui(self, {name: widget for name, widget in found.items() if name})


def _connectParametersToGui(self, mapping):
    tag = self._nextTag
    self._nextTag += 1
    for name in mapping:
        if name not in self.allParameters:
            raise ValueError(f"Cannot find a parameter named {name}")
    bound = [_Bound(widget, self.allParameters[name]) for name, widget in mapping.items()]

    def changed(one):
        if not self._updating:
            wasModified = self.parameterNode.StartModify()
            one.member.write(self.parameterNode, one.read())
            self.parameterNode.EndModify(wasModified)

    def shown(caller=None, event=None):
        if self._updating or tag not in self._bound:
            return
        self._updating = True
        try:
            for one in bound:
                one.write(one.member.read(self.parameterNode))
        finally:
            self._updating = False

    self._bound[tag] = bound
    shown()
    for one in bound:
        one.follow(changed)
    self._tags[tag] = self.parameterNode.AddObserver(vtk.vtkCommand.ModifiedEvent, shown)
    return tag


def _disconnectGui(self, tag):
    if tag not in self._bound:
        return
    for one in self._bound.pop(tag, ()):
        one.leave()
    if tag in self._tags:
        self.parameterNode.RemoveObserver(self._tags.pop(tag))


def parameterNodeWrapper(cls):
    """Class decorator."""
    hints = typing.get_type_hints(cls, include_extras=True)
    cls.allParameters = {
        name: _Member(name, hint, cls.__dict__.get(name)) for name, hint in hints.items()
    }
    for name, member in cls.allParameters.items():
        setattr(
            cls,
            name,
            property(
                lambda self, member=member: member.read(self.parameterNode),
                lambda self, value, member=member: member.write(self.parameterNode, value),
            ),
        )
    reserved = (
        "default",
        "isCached",
        "dataType",
        "getValue",
        "setValue",
        "connectGui",
        "connectParametersToGui",
    )
    reserved += (
        "disconnectGui",
        "StartModify",
        "EndModify",
        "Modified",
        "AddObserver",
        "RemoveObserver",
    )
    assert not set(reserved) & set(hints), "names that the wrapper keeps for itself"
    cls.__init__ = _init
    cls.connectGui, cls.connectParametersToGui, cls.disconnectGui = (
        _connectGui,
        _connectParametersToGui,
        _disconnectGui,
    )
    cls.StartModify = lambda self: self.parameterNode.StartModify()
    cls.EndModify = lambda self, wasModified: self.parameterNode.EndModify(wasModified)
    cls.Modified = lambda self: self.parameterNode.Modified()
    cls.AddObserver = lambda self, event, method, priority=0.0: self.parameterNode.AddObserver(
        event, method, priority
    )
    cls.RemoveObserver = lambda self, tag: self.parameterNode.RemoveObserver(tag)
    return cls
