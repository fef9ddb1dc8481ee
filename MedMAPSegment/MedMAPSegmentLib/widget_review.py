"""Review: agreement with a reference, region by region and slice by slice."""

from __future__ import annotations

import math

import slicer
import slicer.util
from slicer.i18n import tr as _

from . import review
from .widget_common import Section, showTable

_SHOWN = ("Region", "Dice", "Sensitivity", "Precision", "HD95", "Volume", "Reference volume")


class ReviewSection(Section):
    """Compares the last result with a segmentation or label map that someone else made."""

    def setup(self):
        """Connect the buttons."""
        self._request = self._found = self._nodes = None
        self._rank = -1
        self.ui.reviewButton.connect("clicked(bool)", self.onReview)
        self.ui.worstSliceButton.connect("clicked(bool)", self.onWorstSlice)
        self.ui.plotButton.connect("clicked(bool)", self.onPlot)
        self.ui.regionComboBox.connect("currentIndexChanged(int)", self.onRegion)
        for region in self.panel.logic.task.regions:
            self.ui.regionComboBox.addItem(f"{region.name} - {region.title}")

    @property
    def region(self):
        """Name of the chosen region."""
        return self.panel.logic.task.regions[max(0, self.ui.regionComboBox.currentIndex)].name

    def update(self):
        """Buttons follow what can be done."""
        chosen = self.panel.chosen()
        reference = chosen.reviewReference if chosen is not None else None
        ours = self.panel.results.segmentation
        ready = ours is not None and reference is not None and reference is not ours
        self.ui.reviewButton.enabled = ready and not self.panel.isBusy()
        self.ui.reviewButton.toolTip = _(
            "Dice, sensitivity, precision, HD95 and volumes; an error segmentation; the Dice of each slice."
        )
        if not ready:
            self.ui.reviewButton.toolTip = _(
                "Needs a result of this panel and a reference that is not the result itself."
            )
        self.ui.worstSliceButton.enabled = self.ui.plotButton.enabled = self._found is not None

    def onReview(self, clicked=False):
        """Compare, on the worker thread."""
        with slicer.util.tryWithErrorDisplay(_("The comparison could not be started.")):
            ours = self.panel.results.segmentation
            with slicer.util.WaitCursor():
                request = review.collect(ours, self.panel.chosen().reviewReference, self.panel.logic.task)
            self.panel.startJob(
                lambda progress, cancelled: review.compute(request, progress, cancelled),
                lambda found: self.take(ours, request, found),
            )

    def take(self, ours, request, found):
        """Show what came out."""
        region = self.region if self.region in request.regions else None
        self._nodes = review.apply(slicer.mrmlScene, ours, request, found, region)
        self._request, self._found, self._rank = request, found, -1
        ours.GetDisplayNode().SetVisibility(False)
        showTable(self.ui.reviewTable, self._nodes.scores, _SHOWN)
        names = ", ".join(title for _key, title, _color in review.ERRORS.values())
        matches = ", ".join(f"{source.title} = {source.target or _('not used')}" for source in request.sources)
        lines = [
            _("Compared with '{name}': {matches}.").format(name=request.referenceName, matches=matches),
            _("Error segmentation: {names}; the result itself is hidden meanwhile.").format(names=names),
            *(f"\u26a0 {finding.message} {finding.remedy}".rstrip() for finding in request.findings),
            review.EMPTY_RULE,
        ]
        self.ui.reviewLabel.text = "\n".join(lines)
        self.ui.reviewLabel.visible = True
        self.panel.ui.statusLabel.text = _("Compared.")

    def onRegion(self, index=0):
        """Show the errors of another region."""
        ours = self.panel.results.segmentation
        self._rank = -1
        if self._found is not None and ours is not None and self.region in self._request.regions:
            with slicer.util.tryWithErrorDisplay(_("The errors could not be shown."), waitCursor=True):
                review.showErrors(slicer.mrmlScene, ours, self._request, self.region)

    def onWorstSlice(self, clicked=False):
        """Go to the slice with the most wrong voxels; then to the next worst."""
        if self._found is None or self.region not in self._request.regions:
            return
        self._rank += 1
        found = review.worstSlice(self._request, self._found, self.region, self._rank, by="voxels")
        if found is None:
            self.panel.ui.statusLabel.text = _("No slice has this region in either.")
            return
        review.jumpTo(slicer.mrmlScene, found.ras)
        dice = "\u2013" if math.isnan(found.dice) else f"{found.dice:.3f}"
        self.panel.ui.statusLabel.text = _(
            "{region}, slice {index} ({rank} of {count}): {wrong} wrong voxels, Dice {dice}"
        ).format(
            region=self.region,
            index=found.index,
            rank=found.rank + 1,
            count=found.count,
            wrong=found.wrongVoxels,
            dice=dice,
        )

    def onPlot(self, clicked=False):
        """Show the Dice of every slice."""
        if self._nodes is not None:
            slicer.modules.plots.logic().ShowChartInLayout(self._nodes.chart)

    def clear(self):
        """Nothing was compared."""
        self._request = self._found = self._nodes = None
        self._rank = -1
        showTable(self.ui.reviewTable, None)
        self.ui.reviewLabel.visible = False
        self.update()
