"""What if a scan had been missing, and where is the result uncertain."""

from __future__ import annotations

import slicer
import slicer.util
from slicer.i18n import tr as _

from . import uncertainty
from .review import jumpTo
from .widget_common import Section, showTable


class WhatIfSection(Section):
    """Other combinations of the scans, compared with the last result."""

    def setup(self):
        """Connect the buttons."""
        self._found = self._nodes = None
        self._rank = -1
        self.ui.whatIfButton.connect("clicked(bool)", self.onWhatIf)
        self.ui.uncertaintyButton.connect("toggled(bool)", self.onShow)
        self.ui.uncertainSliceButton.connect("clicked(bool)", self.onSlice)

    def update(self):
        """Buttons follow what can be done."""
        self.ui.whatIfButton.enabled = (
            self.panel.results.segmentation is not None and self.panel.chosen() is not None and not self.panel.isBusy()
        )
        self.ui.uncertaintyButton.enabled = self.ui.uncertainSliceButton.enabled = self._found is not None

    def onWhatIf(self, clicked=False):
        """Segment from other combinations, on the worker thread."""
        with slicer.util.tryWithErrorDisplay(_("The comparison could not be started.")):
            if not self.panel.canCompute():
                return
            logic, results = self.panel.logic, self.panel.results
            chosen = self.panel.chosen()
            volumes = {name: getattr(chosen, name) for name in self.panel.modalities}
            with slicer.util.WaitCursor():
                request = logic.prepare(volumes, results.reference, device=chosen.device)
            work = uncertainty.whatIfWork(request, lambda: _warm(logic), results.reference, results.used)
            node = results.segmentation
            self.panel.startJob(work, lambda found: self.take(node, found))

    def take(self, node, found):
        """Show what came out."""
        self._nodes = uncertainty.apply(slicer.mrmlScene, node, found)
        self._found, self._rank = found, -1
        shown = ["Scans", *(f"{r.name} {what}" for r in found.task.regions for what in ("change", "Dice"))]
        showTable(self.ui.whatIfTable, self._nodes.table, shown)
        parts = [f"{name} {value:.2f}" for name, value in found.region_entropy.items() if value == value]
        self.ui.whatIfLabel.text = _(
            "Change of volume, and Dice against the result from all scans used. Mean uncertainty inside the regions "
            "(0 certain, 1 all classes alike): {parts}."
        ).format(parts=", ".join(parts) or "\u2013")
        self.ui.whatIfLabel.visible = True
        self.panel.ui.statusLabel.text = _("Compared {count} combinations.").format(count=len(found.variants))

    def onShow(self, on):
        """Overlay the uncertainty on the slice views, or take it away."""
        volume = self._nodes.volumes.get(uncertainty.ENTROPY) if self._nodes is not None else None
        if volume is not None and slicer.mrmlScene.GetNodeByID(volume.GetID()) is volume:
            slicer.util.setSliceViewerLayers(foreground=volume if on else None, foregroundOpacity=0.6 if on else 0.0)

    def onSlice(self, clicked=False):
        """Go to the most uncertain slice; then to the next."""
        self._rank += 1
        found = uncertainty.uncertainSlice(self._found, rank=self._rank) if self._found is not None else None
        if found is None:
            self.panel.ui.statusLabel.text = _("Nothing is uncertain.")
            return
        jumpTo(slicer.mrmlScene, found.ras)
        self.panel.ui.statusLabel.text = _("Slice {index} ({rank} of {count}): {share:.0%} of all uncertainty").format(
            index=found.index, rank=found.rank + 1, count=found.count, share=found.share
        )

    def clear(self):
        """Nothing was compared."""
        self.ui.uncertaintyButton.checked = False
        self._found = self._nodes = None
        self._rank = -1
        showTable(self.ui.whatIfTable, None)
        self.ui.whatIfLabel.visible = False
        self.update()


def _warm(logic):
    """The model, loaded when first asked for and kept; runs on the thread that computes."""
    if logic._bundle is None:
        logic._bundle = logic._loadBundle()
    return logic._bundle
