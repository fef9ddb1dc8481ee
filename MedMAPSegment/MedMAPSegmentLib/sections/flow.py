"""One flow: what is needed next is open, what is done is folded with a line that sums it up.

Which boxes are folded is kept in the scene. The user's own choice stays until a new result moves
the flow on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import qt

from ..state import PanelState
from .common import Section, showText

BOXES = ("inputs", "results", "review", "subsets", "followUp", "settings")
"""Names of the boxes, from top to bottom; the widgets are ``<name>CollapsibleButton``."""
FOLDED = "folded"
"""Parameter of the scene: the folded boxes, separated by commas."""
AT_THE_BEGINNING = frozenset(BOXES) - {"inputs"}
"""Folded while there is no result."""
WITH_A_RESULT = frozenset(BOXES) - {"results"}
"""Folded once there is a result; the review opens, too, where a reference is chosen."""


class Flow:
    """Folds and unfolds the boxes of the panel.

    Args:
        ui: the panel's widgets by name.
        state: what the panel is about.
        sections: give the summaries of their boxes.
    """

    def __init__(self, ui: Any, state: PanelState, sections: Sequence[Section]) -> None:
        self.ui = ui
        self.state = state
        self.sections = sections
        self._following = False
        for name in BOXES:
            self._button(name).connect(
                "contentsCollapsed(bool)", lambda folded, name=name: self.onFold(name, folded)
            )

    def _button(self, name: str) -> Any:
        return getattr(self.ui, f"{name}CollapsibleButton")

    def _summaryLabel(self, name: str) -> Any:
        return getattr(self.ui, f"{name}SummaryLabel")

    @property
    def folded(self) -> frozenset[str]:
        """Names of the folded boxes, as the scene keeps them."""
        text = self.state.parameterNode(always=True).GetParameter(FOLDED)
        if not text:
            return AT_THE_BEGINNING
        return frozenset(text.split(",")) & frozenset(BOXES)

    def fold(self, names: frozenset[str]) -> None:
        """Fold these boxes and open the others."""
        # A comma alone stands for no folded box: an empty parameter is one that was never set.
        text = ",".join(name for name in BOXES if name in names) or ","
        self.state.parameterNode(always=True).SetParameter(FOLDED, text)

    def onFold(self, name: str, folded: bool) -> None:
        """The user folded or opened a box."""
        if self._following or not self.state.isShown:
            return
        if folded:
            self.fold(self.folded | {name})
        else:
            self.fold(self.folded - {name})
        self.update()

    def rebuild(self) -> None:
        """Boxes do not depend on the model."""

    def resultArrived(self) -> None:
        """Inputs are done, the result is next; the review follows where there is a reference."""
        folded = WITH_A_RESULT
        if self.state.reviewReference is not None:
            folded = folded - {"review"}
        self.fold(folded)
        self.update()

    def clear(self) -> None:
        """A new scene begins with the inputs."""
        self.update()

    def update(self) -> None:
        """Fold as the scene says, and sum up what is folded."""
        folded = self.folded
        self._following = True
        try:
            for name in BOXES:
                self._button(name).collapsed = name in folded
        finally:
            self._following = False
        for name in BOXES:
            text = ""
            if name in folded:
                text = self._summary(name)
            showText(self._summaryLabel(name), text)
        self._keepWidth()

    def _summary(self, name: str) -> str:
        parts = []
        for section in self.sections:
            if section.box == name:
                parts.append(section.summary())
        return " \u00b7 ".join(part for part in parts if part)

    def _keepWidth(self) -> None:
        """A scroll area asks for no width of its own: give it what its contents need at least."""
        area = self.ui.sectionsArea
        bar = area.style().pixelMetric(qt.QStyle.PM_ScrollBarExtent)
        area.setMinimumWidth(self.ui.sectionsContents.minimumSizeHint.width() + bar)
