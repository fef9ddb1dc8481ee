"""What the MedMAP Segment panel is made of; no Qt in here.

In an installed extension ``medmap`` lies beside this package, on Slicer's module path. In a source
checkout it lies in ``../../MedMAPTraining``, which is added to the end of ``sys.path`` only when
``medmap`` cannot be imported otherwise.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def _makeMedmapImportable() -> None:
    spec = importlib.util.find_spec("medmap")
    if (
        spec is not None and spec.origin is not None
    ):  # origin None: a stray empty folder called "medmap"
        return
    checkout = Path(__file__).resolve().parents[2] / "MedMAPTraining"
    if (checkout / "medmap" / "__init__.py").is_file():
        sys.path.append(str(checkout))
        importlib.invalidate_caches()


_makeMedmapImportable()
