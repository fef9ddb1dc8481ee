"""Stand-ins for ``qt``, ``ctk`` and ``slicer.*``: PySide6 widgets with PythonQt's manners above
real MRML.

For tests only, written from the documented behavior of Slicer, CTK and PythonQt. The module file
and its ``.ui`` run unmodified. What passes here may still fail in Slicer: see ``Testing/README.md``
for what this cannot vouch for.
"""

from __future__ import annotations

from .application import Standin, install

__all__ = ["Standin", "install"]
