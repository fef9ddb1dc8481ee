"""PythonQt's manners on PySide6 classes.

A property is an attribute (``label.text = "x"``; ``label.text()`` fails), signals are connected by
signature (``button.connect("clicked(bool)", f)``), and an attribute that does not exist is neither
read nor made.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from enum import Enum, Flag
from functools import cache

from PySide6 import QtCore, QtGui, QtWidgets

REVIEWED = (
    *(
        "QApplication",
        "QCheckBox",
        "QComboBox",
        "QCursor",
        "QDialog",
        "QFile",
        "QGridLayout",
        "QHeaderView",
        "QLabel",
        "QPdfWriter",
        "QPushButton",
        "QScrollArea",
    ),
    *(
        "QSettings",
        "QSizeF",
        "QSizePolicy",
        "QStyle",
        "QTableWidget",
        "QTableWidgetItem",
        "QTextDocument",
        "QTimer",
        "QUrl",
        "QVBoxLayout",
        "QWidget",
    ),
)
"""Classes whose use by the panel (or by ``slicer.util``) was compared with PythonQt's; others are
not offered.
"""

OWN = "_standin"
"""Attributes with this prefix belong to the stand-ins themselves."""

_reading: set[tuple[int, str]] = set()


def plain(value):
    """A value as PythonQt hands it over: enums as integers, string lists as tuples."""
    if isinstance(value, Flag | Enum):
        return value.value
    return (
        tuple(value)
        if isinstance(value, list) and all(isinstance(v, str) for v in value)
        else value
    )


def _arity(slot: Callable) -> int | None:
    """Positional arguments that a slot takes; None for any number."""
    try:
        kinds = [p.kind for p in inspect.signature(slot).parameters.values()]
    except (TypeError, ValueError):
        return None
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return None
    return sum(
        kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for kind in kinds
    )


class Manners:
    """Mixed in before a PySide6 class that derives from QObject."""

    def __getattribute__(self, name: str):
        if name.startswith("_"):
            return super().__getattribute__(name)
        if name == "name":
            return super().__getattribute__("objectName")()
        if name in (
            "connect",
            "disconnect",
        ):  # PySide6 answers these itself before it looks at the class
            return types.MethodType(getattr(type(self), name), self)
        meta = super().__getattribute__("metaObject")()
        here = meta.indexOfProperty(name)
        # The guard: C++ asks for the Python override of a virtual getter while the property is
        # being read.
        key = (id(self), name)
        if here < 0 or key in _reading:
            return super().__getattribute__(name)
        _reading.add(key)
        try:
            value = plain(super().__getattribute__("property")(name))
        finally:
            _reading.discard(key)
        return value

    def __getattr__(self, name: str):
        if not name.startswith("_") and name.encode() in [
            bytes(n) for n in self.dynamicPropertyNames()
        ]:
            return plain(self.property(name))
        raise AttributeError(f"{type(self).__name__} has no attribute named '{name}'")

    def __setattr__(self, name: str, value) -> None:
        if name.startswith((OWN, "__")):
            super().__setattr__(name, value)
            return
        if name == "name":
            name = "objectName"
        meta = self.metaObject()
        here = meta.indexOfProperty(name)
        if here < 0:
            raise AttributeError(
                f"{type(self).__name__}.{name}: creating new attributes on C++ objects is not "
                "allowed"
            )
        declared = meta.property(here)
        if not declared.isWritable():
            raise ValueError(f"{type(self).__name__}.{name} cannot be set")
        setter = getattr(self, f"set{name[0].upper()}{name[1:]}", None)
        if isinstance(value, Flag | Enum) and setter is not None:
            setter(value)
        elif not self.setProperty(name, _accepted(declared, value, self)):
            raise ValueError(f"{type(self).__name__}.{name} does not take {value!r}")

    def connect(self, signature: str, slot: Callable, *inner) -> bool:
        """Connect a signal given by its signature; the slot gets as many arguments as it takes."""
        if inner or not isinstance(
            signature, str
        ):  # how PySide6 carries out ``object.signal.connect(slot)``
            return QtCore.QObject.connect(signature, slot, *inner)
        normal = QtCore.QMetaObject.normalizedSignature(signature)
        normal = normal.decode() if isinstance(normal, bytes) else bytes(normal).decode()
        if self.metaObject().indexOfSignal(normal) < 0:
            raise ValueError(f"{type(self).__name__} has no signal {signature}")
        count = _arity(slot)

        def called(*arguments):
            slot(*(arguments if count is None else arguments[:count]))

        self._slots().append((normal, slot, called))
        return bool(QtCore.QObject.connect(self, QtCore.SIGNAL(normal), called))

    def disconnect(self, signature: str, slot: Callable) -> bool:
        """Undo ``connect``."""
        for entry in self._slots():
            if entry[0] == signature and entry[1] == slot:
                self._slots().remove(entry)
                return bool(QtCore.QObject.disconnect(self, QtCore.SIGNAL(signature), entry[2]))
        return False

    def className(self) -> str:
        """Name of the C++ class."""
        return type(self).__name__

    def _slots(self) -> list:
        if not hasattr(self, f"{OWN}_slots"):
            setattr(self, f"{OWN}_slots", [])
        return getattr(self, f"{OWN}_slots")


def _accepted(declared, value, owner):
    """The value in the form that QObject.setProperty wants."""
    if declared.isEnumType() and isinstance(value, int):
        return type(owner.property(declared.name()))(value)
    if isinstance(value, tuple):
        return list(value)
    if value is None:
        raise ValueError(f"{declared.name()} does not take None")
    if declared.typeName() in ("int", "double") and isinstance(value, str):
        raise ValueError(f"{declared.name()} is a number, not {value!r}")
    if declared.typeName() == "QString" and not isinstance(value, str):
        raise ValueError(f"{declared.name()} is a text, not {value!r}")
    return value


@cache
def mannered(cls: type) -> type:
    """The class under its own name with PythonQt's manners; the same one each time."""
    return type(cls.__name__, (Manners, cls), {})


def make_qt(loader: type, desk) -> types.ModuleType:
    """The module ``qt``: the reviewed classes in one namespace, as PythonQt has it; any other is an
    AttributeError.

    Args:
        loader: class for ``qt.QUiLoader``.
        desk: answers what would otherwise open a window (``Desk`` of the application).
    """
    qt = types.ModuleType("qt")
    for name in REVIEWED:
        source = next(source for source in (QtCore, QtGui, QtWidgets) if hasattr(source, name))
        found = getattr(source, name)
        wanted = isinstance(found, type) and issubclass(found, QtCore.QObject)
        setattr(qt, name, mannered(found) if wanted else found)
    qt.QUiLoader = loader
    qt.QFile = QtCore.QFile
    qt.QFileDialog = desk.file_dialog
    qt.QMessageBox = desk.message_box(mannered(QtWidgets.QMessageBox))
    qt.QDesktopServices = desk.services
    qt.Qt = QtCore.Qt
    return qt
