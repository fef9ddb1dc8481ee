"""What if a modality had been missing, and where is the result uncertain."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import slicer.util
from slicer.i18n import tr as _

from medmap.comparison_names import ADD_BACK, CURRENT, DISAGREEMENT, ENTROPY, LEAVE_ONE_OUT
from medmap.errors import InputDataError
from medmap.preparation.plan import PreparationPlan

from ..mrml import choices, uncertainty
from ..mrml.prepared_scans import preparedScans
from ..mrml.worst_slices import jumpTo
from ..request import Request
from .common import Section, chooseIndex, fillCombo, setChecked, showText
from .dialogs import saying, waiting
from .tables import (
    UNDEFINED,
    changeText,
    clearTable,
    copyTable,
    fillTable,
    saveTable,
    shortText,
    tableRows,
)

if TYPE_CHECKING:
    from medmap.subset_comparison import WhatIf


MAPS = (ENTROPY, DISAGREEMENT)
MAP = "uncertaintyMap"
"""Parameter of the scene: the chosen map."""
OVERLAY_OPACITY = 0.6


class SubsetComparisonSection(Section):
    """Other subsets of the modalities, compared with the latest result."""

    attribute = "subsets"
    box = "subsets"

    def setup(self) -> None:
        """Connect the buttons."""
        self._comparison: WhatIf | None = None
        self._shown: tuple | None = None
        self._rank = -1
        fillCombo(self.ui.mapComboBox, [_("Entropy"), _("Disagreement")])
        self.ui.subsetsButton.connect("clicked(bool)", self.onCompare)
        self.ui.copySubsetsButton.connect("clicked(bool)", self.onCopy)
        self.ui.saveSubsetsButton.connect("clicked(bool)", self.onSave)
        self.ui.uncertaintyButton.connect("toggled(bool)", self.onShow)
        self.ui.uncertainSliceButton.connect("clicked(bool)", self.onSlice)
        self.ui.mapComboBox.connect("currentIndexChanged(int)", self.onMap)

    @property
    def map(self) -> str:
        """Name of the chosen uncertainty map."""
        return choices.wordOf(self.state.parameterNode(always=True), MAP, MAPS)

    def summary(self) -> str:
        """How many subsets were compared."""
        nodes = self._nodes()
        if nodes is None:
            return ""
        return _("{count} subsets compared").format(count=nodes.table.GetNumberOfRows())

    def _nodes(self) -> uncertainty.WhatIfNodes | None:
        if self.state.result is None:
            return None
        return uncertainty.nodesOf(self.state.scene, self.state.result)

    def update(self) -> None:
        """Buttons follow what can be done; the table follows the result."""
        chooseIndex(self.ui.mapComboBox, MAPS.index(self.map))
        nodes = self._nodes()
        hasResult = self.state.result is not None
        self.ui.subsetsButton.enabled = hasResult and self.state.isShown and not self.state.isBusy
        self.ui.uncertaintyButton.enabled = nodes is not None and self.map in nodes.volumes
        self.ui.uncertainSliceButton.enabled = self._comparison is not None
        self.ui.saveSubsetsButton.enabled = nodes is not None
        self.ui.copySubsetsButton.enabled = nodes is not None
        key = (nodes.table.GetID(), nodes.table.GetMTime()) if nodes is not None else None
        if key == self._shown:
            return
        self._shown = key
        self._showTable(nodes)
        showText(self.ui.uncertainSliceLabel, "")
        if nodes is None:
            self._comparison = None
            showText(self.ui.subsetsLabel, "")
            # Takes our overlay away, and no foreground of the user's.
            self.ui.uncertaintyButton.checked = False

    def _showTable(self, nodes: uncertainty.WhatIfNodes | None) -> None:
        names = [region.name for region in self.state.task.regions]
        columns: dict = {"Kind": None, "Scans": None}
        for name in names:
            columns[f"{name} change"] = changeText
            columns[f"{name} Dice"] = shortText
        rows, tips = tableRows(nodes.table if nodes is not None else None, columns)
        lines = []
        for title, row in _titled(rows):
            cells = [title]
            for change, dice in zip(row[2::2], row[3::2], strict=True):
                cells.append(f"{change} ({dice})")
            lines.append(cells)
        fillTable(self.ui.subsetsTable, [_("Modalities"), *names], lines, tips[1::2])

    def onCompare(self, clicked: bool = False) -> None:
        """Segment from every subset of the modalities, on the worker thread."""
        with saying(_("The comparison could not be started.")):
            if not self.jobs.canCompute():
                return
            modalities = self.state.provenance.get("modalities", {})
            used = [n for n in self.state.task.modality_names if n in modalities.get("used", {})]
            request = self._prepare(used, modalities.get("reference"))
            node = self.state.result
            work = uncertainty.whatIfWork(
                request, self.state.logic.bundle, modalities["reference"], used
            )
            self.jobs.start(work, lambda comparison: self.take(node, comparison))

    def _prepare(self, used: list[str], reference: str | None) -> Request:
        """Copy the volumes out of the scene: those of the result, and what was added since."""
        task = self.state.task
        volumes = choices.scans(self.state.parameterNode(), task)
        for name in (*used, reference):
            if name in task.modality_names and volumes[name] is not None:
                continue
            title = task.modality(name).title if name in task.modality_names else _("A modality")
            cause = _("{title}, which the result is based on, is no longer selected.")
            raise InputDataError(
                cause.format(title=title), _("Select it again, or press Apply for a new result.")
            )
        volumes = preparedScans(self.state.scene, self.state.result, volumes, task)
        with waiting():
            return self.state.logic.prepare(
                volumes,
                reference,
                device=self.state.parameters.device,
                plan=self._plan(volumes, used, reference),
            )

    def _plan(
        self, volumes: dict[str, Any], used: list[str], reference: str | None
    ) -> PreparationPlan | None:
        """Preparation of the scans that were added since the result; the others are as they were.

        Args:
            volumes: modality name -> volume node or None.
            used: modalities that the result was made from.
            reference: modality on whose grid the result lies.
        """
        nodes = {name: node for name, node in volumes.items() if node is not None}
        plan = self.state.planFor(nodes)
        if plan is None or reference is None:
            return None
        extract = tuple(name for name in plan.extract if name not in used)
        align = tuple(name for name in plan.align if name not in used)
        return PreparationPlan(reference, extract, align)

    def take(self, node: Any, comparison: WhatIf) -> None:
        """Show what came out."""
        uncertainty.apply(self.state.scene, node, comparison)
        self._comparison = comparison
        self._rank = -1
        parts = []
        for name, value in comparison.region_entropy.items():
            if not math.isnan(value):
                parts.append(f"{name} {value:.2f}")
        text = _(
            "Change of volume in ml and, in parentheses, Dice against the current result. Mean "
            "uncertainty inside the regions (0: certain, 1: all classes equally likely): {parts}."
        )
        showText(self.ui.subsetsLabel, text.format(parts=", ".join(parts) or UNDEFINED))
        text = _("Compared {count} modality subsets.")
        self.state.say(text.format(count=len(comparison.variants)))

    def onCopy(self, clicked: bool = False) -> None:
        """Put the table on the clipboard."""
        nodes = self._nodes()
        copyTable(nodes.table if nodes is not None else None, self.state)

    def onSave(self, clicked: bool = False) -> None:
        """Save the table as a file."""
        nodes = self._nodes()
        saveTable(nodes.table if nodes is not None else None, self.state)

    def onMap(self, index: int = 0) -> None:
        """Another map: show it if one is shown."""
        self._rank = -1
        node = self.state.parameterNode()
        if node is not None and 0 <= index < len(MAPS):
            node.SetParameter(MAP, MAPS[index])
        self.update()
        if self.ui.uncertaintyButton.checked:
            self.onShow(True)

    def onShow(self, on: bool) -> None:
        """Overlay the uncertainty on the slice views, or take it away."""
        nodes = self._nodes()
        volume = None
        if on and nodes is not None:
            volume = nodes.volumes.get(self.map)
        opacity = OVERLAY_OPACITY if volume is not None else 0.0
        slicer.util.setSliceViewerLayers(foreground=volume, foregroundOpacity=opacity)

    def onSlice(self, clicked: bool = False) -> None:
        """Go to the most uncertain slice; then to the next."""
        self._rank += 1
        entry = None
        if self._comparison is not None:
            entry = uncertainty.uncertainSlice(self._comparison, self.map, self._rank)
        if entry is None:
            showText(self.ui.uncertainSliceLabel, _("The map shows no uncertainty."))
            return
        jumpTo(self.state.scene, entry.ras)
        text = _("Slice {index} ({rank} of {count}): {share} of all uncertainty")
        text = text.format(
            index=entry.index, rank=entry.rank + 1, count=entry.count, share=f"{entry.share:.0%}"
        )
        showText(self.ui.uncertainSliceLabel, text)

    def clear(self) -> None:
        """Nothing was compared."""
        setChecked(self.ui.uncertaintyButton, False)
        self._comparison = None
        self._shown = None
        self._rank = -1
        clearTable(self.ui.subsetsTable)
        showText(self.ui.subsetsLabel, "")
        showText(self.ui.uncertainSliceLabel, "")


def _titled(rows: list[list[str]]) -> list[tuple[str, list[str]]]:
    """Pairs (title, row) of the rows [kind, modalities, ...]: the current subset, what is one step
    away, then the others.

    A subset with one modality less or one more is called by that modality.
    """
    kinds = uncertainty.KINDS
    current: set[str] = set()
    for row in rows:
        if row[0] == kinds[CURRENT]:
            current = set(row[1].split(" + "))
    titled = []
    for kind in kinds.values():
        for row in rows:
            if row[0] == kind:
                titled.append((_title(row, current), row))
    return titled


def _title(row: list[str], current: set[str]) -> str:
    modalities = set(row[1].split(" + "))
    if row[0] == uncertainty.KINDS[LEAVE_ONE_OUT]:
        return _("without {scan}").format(scan="".join(current - modalities))
    if row[0] == uncertainty.KINDS[ADD_BACK]:
        return _("with {scan} added").format(scan="".join(modalities - current))
    return row[1]
