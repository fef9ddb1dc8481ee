"""``qt.QUiLoader``: makes widgets with PythonQt's manners from a ``.ui`` file and connects what the
file connects.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

from PySide6 import QtCore, QtUiTools, QtWidgets

from .pythonqt import mannered
from .widgets import CTK, QMRML


class QUiLoader(QtUiTools.QUiLoader):
    """Refuses widget classes that it does not know and connections that lead nowhere."""

    def load(self, file):
        """Widget described by an open QFile."""
        tree = ElementTree.fromstring(bytes(file.readAll()).decode())
        names = {w.get("class") for w in tree.iter("widget")}
        strange = [
            n for n in names if n not in CTK and n not in QMRML and not hasattr(QtWidgets, n)
        ]
        if strange:
            raise RuntimeError(f"The stand-ins know no {', '.join(strange)}")
        connections = tree.find("connections")
        wanted = list(connections) if connections is not None else []
        for part in ("connections", "customwidgets"):
            found = tree.find(part)
            if found is not None:
                tree.remove(found)
        data = QtCore.QBuffer()
        data.setData(ElementTree.tostring(tree))
        data.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        widget = super().load(data)
        for connection in wanted:
            self._connect(widget, connection)
        return widget

    def createWidget(self, className, parent=None, name=""):
        """Called by Qt for each widget of the file."""
        cls = CTK.get(className) or QMRML.get(className) or mannered(getattr(QtWidgets, className))
        widget = cls(parent) if parent is not None else cls()
        widget.setObjectName(name)
        return widget

    def _connect(self, top, connection) -> None:
        def named(kind):
            name = connection.find(kind).text
            found = top if top.name == name else top.findChild(QtCore.QObject, name)
            assert found is not None, f"The .ui file connects {name}, which it does not have"
            return found

        signal, slot = (
            re.sub(r"\(.*", "", connection.find(kind).text) for kind in ("signal", "slot")
        )
        getattr(named("sender"), signal).connect(getattr(named("receiver"), slot))
