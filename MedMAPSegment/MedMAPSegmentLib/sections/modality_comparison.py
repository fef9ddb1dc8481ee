"""What if a scan had been missing, and where is the result uncertain."""

from __future__ import annotations

import slicer
import slicer.util
from slicer.i18n import tr as _

from medmap.comparison_names import ADD_BACK, CURRENT, DISAGREEMENT, ENTROPY, LEAVE_ONE_OUT
from medmap.errors import InputDataError

from ..mrml import choices, uncertainty
from ..mrml.review import jumpTo
from .common import (
    Section,
    changeText,
    fillCombo,
    fillTable,
    saveTable,
    saying,
    shortText,
    showText,
    tableRows,
    waiting,
)

MAPS = (ENTROPY, DISAGREEMENT)


class WhatIfSection(Section):
    """Other combinations of the scans, compared with the latest result."""

    attribute = "whatIf"

    def setup(self):
        """Connect the buttons."""
        self._found = None
        self._shown = None
        self._rank = -1
        fillCombo(
            self.ui.mapComboBox,
            [_("Entropy"), _("Disagreement")],
        )
        self.ui.whatIfButton.connect("clicked(bool)", self.onWhatIf)
        self.ui.saveWhatIfButton.connect("clicked(bool)", self.onSave)
        self.ui.uncertaintyButton.connect("toggled(bool)", self.onShow)
        self.ui.uncertainSliceButton.connect("clicked(bool)", self.onSlice)
        self.ui.mapComboBox.connect("currentIndexChanged(int)", self.onMap)

    @property
    def map(self):
        """Name of the chosen uncertainty map."""
        return MAPS[max(0, self.ui.mapComboBox.currentIndex)]

    def _nodes(self):
        ours = self.panel.results.segmentation
        return uncertainty.nodesOf(slicer.mrmlScene, ours) if ours is not None else None

    def update(self):
        """Buttons follow what can be done; the table follows the result."""
        nodes = self._nodes()
        self.ui.whatIfButton.enabled = (
            self.panel.results.segmentation is not None
            and self.panel.parameters() is not None
            and not self.panel.isBusy()
        )
        self.ui.uncertaintyButton.enabled = nodes is not None and self.map in nodes.volumes
        self.ui.uncertainSliceButton.enabled = self._found is not None
        self.ui.saveWhatIfButton.enabled = nodes is not None
        key = (nodes.table.GetID(), nodes.table.GetMTime()) if nodes is not None else None
        if key == self._shown:
            return
        self._shown = key
        names = [region.name for region in self.panel.logic.task.regions]
        columns = {"Kind": None, "Scans": None}
        for name in names:
            columns |= {f"{name} change": changeText, f"{name} Dice": shortText}
        rows, tips = tableRows(nodes.table if nodes is not None else None, columns)
        paired = [
            [
                title,
                *(f"{change} ({dice})" for change, dice in zip(row[2::2], row[3::2], strict=True)),
            ]
            for title, row in _titled(rows)
        ]
        fillTable(self.ui.whatIfTable, [_("Modalities"), *names], paired, tips[1::2])
        showText(self.ui.uncertainSliceLabel, "")
        if nodes is None:
            self._found = None
            showText(self.ui.whatIfLabel, "")
            self.ui.uncertaintyButton.checked = (
                False  # takes our overlay away, and no foreground of the user's
            )

    def onWhatIf(self, clicked=False):
        """Segment from every combination of the scans, on the worker thread."""
        with saying(_("The comparison could not be started.")):
            if not self.panel.run.canCompute():
                return
            request, reference, used = self._request()
            node = self.panel.results.segmentation
            work = uncertainty.whatIfWork(request, self.panel.logic.bundle, reference, used)
            self.panel.run.startJob(work, lambda found: self.take(node, found))

    def _request(self):
        """What to compute, the modality whose grid the result lies on, and the modalities it was made from."""
        task = self.panel.logic.task
        made = self.panel.results.provenance.get("modalities", {})
        used = [name for name in task.modality_names if name in made.get("used", {})]
        scans = choices.scans(self.panel.parameterNode(), task)
        for name in (*used, made.get("reference")):
            if name not in task.modality_names or scans[name] is None:
                title = (
                    task.modality(name).title if name in task.modality_names else _("A modality")
                )
                raise InputDataError(
                    _("{title}, which the result is based on, is no longer selected.").format(
                        title=title
                    ),
                    _("Select it again, or press Apply for a new result."),
                )
        with waiting():
            device = self.panel.parameters().device
            return (
                self.panel.logic.prepare(scans, made["reference"], device=device),
                made["reference"],
                used,
            )

    def take(self, node, found):
        """Show what came out."""
        uncertainty.apply(slicer.mrmlScene, node, found)
        self._found, self._rank = found, -1
        parts = [
            f"{name} {value:.2f}" for name, value in found.region_entropy.items() if value == value
        ]
        showText(
            self.ui.whatIfLabel,
            _(
                "Change of volume in ml and, in parentheses, Dice against the current result. Mean uncertainty "
                "inside the regions (0: certain, 1: all classes equally likely): {parts}."
            ).format(parts=", ".join(parts) or "\u2013"),
        )
        self.panel.ui.statusLabel.text = _("Compared {count} modality subsets.").format(
            count=len(found.variants)
        )
        self.update()

    def onSave(self, clicked=False):
        """Save the table as a file."""
        nodes = self._nodes()
        if nodes is not None:
            saveTable(nodes.table, self.panel.ui.statusLabel)

    def onMap(self, index=0):
        """Another map: show it if one is shown."""
        self._rank = -1
        self.update()
        if self.ui.uncertaintyButton.checked:
            self.onShow(True)

    def onShow(self, on):
        """Overlay the uncertainty on the slice views, or take it away."""
        nodes = self._nodes()
        self._overlay(nodes.volumes.get(self.map) if on and nodes is not None else None)

    @staticmethod
    def _overlay(volume):
        opacity = 0.6 if volume is not None else 0.0
        slicer.util.setSliceViewerLayers(foreground=volume, foregroundOpacity=opacity)

    def onSlice(self, clicked=False):
        """Go to the most uncertain slice; then to the next."""
        self._rank += 1
        found = (
            uncertainty.uncertainSlice(self._found, self.map, self._rank)
            if self._found is not None
            else None
        )
        if found is None:
            showText(self.ui.uncertainSliceLabel, _("Nothing is uncertain."))
            return
        jumpTo(slicer.mrmlScene, found.ras)
        text = _("Slice {index} ({rank} of {count}): {share:.0%} of all uncertainty")
        text = text.format(
            index=found.index, rank=found.rank + 1, count=found.count, share=found.share
        )
        showText(self.ui.uncertainSliceLabel, text)

    def clear(self):
        """Nothing was compared."""
        wasBlocked = self.ui.uncertaintyButton.blockSignals(True)
        self.ui.uncertaintyButton.checked = False
        self.ui.uncertaintyButton.blockSignals(wasBlocked)
        self._found = self._shown = None
        self._rank = -1
        fillTable(self.ui.whatIfTable, [], [])
        showText(self.ui.whatIfLabel, "")
        showText(self.ui.uncertainSliceLabel, "")


def _titled(rows):
    """Pairs (title, row) of the rows [kind, scans, ...]: the current set, then what is one step away, then the rest.

    A set with one scan less or one more is called by that scan, which is what one wants to know.
    """
    kinds = uncertainty.KINDS
    current = next((set(row[1].split(" + ")) for row in rows if row[0] == kinds[CURRENT]), set())

    def title(row):
        scans = set(row[1].split(" + "))
        if row[0] == kinds[LEAVE_ONE_OUT]:
            return _("without {scan}").format(scan="".join(current - scans))
        if row[0] == kinds[ADD_BACK]:
            return _("with {scan} added").format(scan="".join(scans - current))
        return row[1]

    return [(title(row), row) for kind in kinds.values() for row in rows if row[0] == kind]
