"""Review: agreement with a reference, region by region and slice by slice."""

from __future__ import annotations

import qt
import slicer
import slicer.util
from slicer.i18n import tr as _

from medmap.errors import MedMAPError

from ..mrml import choices, review
from ..mrml.reference import sources, targets
from .common import (
    Section,
    fillCombo,
    fillTable,
    fitColumns,
    inScene,
    numberText,
    saveTable,
    saying,
    scoreText,
    showText,
    tableRows,
    waiting,
)


class ReviewSection(Section):
    """Compares the latest result with a segmentation or label volume that someone else made."""

    attribute = "review"

    def setup(self):
        """Connect the buttons."""
        self._request = self._found = self._foundKey = None
        self._shown = self._matched = None
        self._override = {}
        self._matchBoxes = []
        self._rank = -1
        self._following = False
        self.ui.reviewSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.onReference)
        self.ui.reviewButton.connect("clicked(bool)", self.onReview)
        self.ui.worstSliceButton.connect("clicked(bool)", self.onWorstSlice)
        self.ui.plotButton.connect("clicked(bool)", self.onPlot)
        self.ui.saveReviewButton.connect("clicked(bool)", self.onSave)
        self.ui.regionComboBox.connect("currentIndexChanged(int)", self.onRegion)

    def rebuild(self):
        """Regions of the task."""
        regions = self.panel.logic.task.regions
        fillCombo(self.ui.regionComboBox, [f"{region.name} - {region.title}" for region in regions])
        self._matched = None

    @property
    def reference(self):
        """The chosen reference node, or None."""
        parameterNode = self.panel.parameterNode(always=True)
        return (
            inScene(choices.nodeOf(parameterNode, choices.REFERENCE))
            if parameterNode is not None
            else None
        )

    @property
    def region(self):
        """Name of the chosen region."""
        return self.panel.logic.task.regions[max(0, self.ui.regionComboBox.currentIndex)].name

    def onReference(self, node):
        """Another reference was chosen."""
        if self._following or self.panel.parameterNode() is None:
            return
        if choices.choose(self.panel.parameterNode(), choices.REFERENCE, node):
            self._override = {}
            self.panel.update()

    def update(self):
        """Show the choice and what its segments are taken for; buttons follow what can be done."""
        reference, ours = self.reference, self.panel.results.segmentation
        self._following = True
        try:
            if self.ui.reviewSelector.currentNode() is not reference:
                self.ui.reviewSelector.setCurrentNode(reference)
        finally:
            self._following = False
        self._showMatches(reference)
        ready = ours is not None and reference is not None and reference is not ours
        self.ui.reviewButton.enabled = ready and not self.panel.isBusy()
        self.ui.reviewButton.toolTip = (
            _(
                "Compute Dice, sensitivity, precision, HD95 and volumes, an error segmentation and the slice-wise Dice."
            )
            if ready
            else _("Needs a result and a reference other than the result itself.")
        )
        self._showScores(ours)
        self.ui.worstSliceButton.enabled = self._found is not None

    def _showMatches(self, reference):
        """A row a segment or label value of the reference, with a choice of what it is."""
        key = (reference.GetID(), reference.GetMTime()) if reference is not None else None
        if key == self._matched:
            return
        self._matched = key
        task = self.panel.logic.task
        try:
            found = sources(reference, task) if reference is not None else ()
        except MedMAPError as error:
            found = ()
            showText(self.ui.reviewLabel, f"\u26a0 {error}")
        kept = {source.key for source in found}
        self._override = {name: target for name, target in self._override.items() if name in kept}
        options = [*targets(task), _("ignored")]
        rows = [[source.title, ""] for source in found]
        fillTable(self.ui.matchesTable, [_("Reference"), _("Region or label")], rows)
        self._matchBoxes = []
        for row, source in enumerate(found):
            box = qt.QComboBox()
            target = self._override.get(source.key, source.target)
            fillCombo(
                box, options, options.index(target) if target in options else len(options) - 1
            )
            box.connect(
                "currentIndexChanged(int)", lambda index, name=source.key: self.onMatch(name, index)
            )
            box.toolTip = source.reason
            self.ui.matchesTable.item(row, 0).setToolTip(source.reason)
            self.ui.matchesTable.setCellWidget(row, 1, box)
            qt.QWidget.setTabOrder(self._matchBoxes[-1] if row else self.ui.matchesTable, box)
            self._matchBoxes.append(box)
        fitColumns(self.ui.matchesTable)

    def onMatch(self, key, index):
        """A segment of the reference is something else."""
        options = targets(self.panel.logic.task)
        self._override[key] = options[index] if 0 <= index < len(options) else ""

    def _showScores(self, ours):
        """The table of the review that the scene holds for the result, also after loading a scene."""
        nodes = review.nodesOf(slicer.mrmlScene, ours) if ours is not None else None
        self.ui.plotButton.enabled = self.ui.saveReviewButton.enabled = nodes is not None
        key = _key(nodes)
        if key == self._shown:
            return
        self._shown = key
        columns = {
            "Region": None,
            "Dice": scoreText,
            "Sensitivity": scoreText,
            "Precision": scoreText,
            "HD95": numberText,
            "Volume": numberText,
            "Reference volume": numberText,
        }
        heads = [
            _("Region"),
            _("Dice"),
            _("Sens."),
            _("Prec."),
            _("HD95 mm"),
            _("ml"),
            _("Ref. ml"),
        ]
        fillTable(
            self.ui.reviewTable,
            heads,
            *tableRows(nodes.scores if nodes is not None else None, columns),
        )
        showText(self.ui.worstSliceLabel, "")
        if (
            key != self._foundKey
        ):  # from a loaded scene, or of another result: the labels are not at hand
            self._request = self._found = self._foundKey = None
            showText(self.ui.reviewLabel, review.EMPTY_RULE if nodes is not None else "")

    def onReview(self, clicked=False):
        """Compare, on the worker thread."""
        with saying(_("The comparison could not be started.")):
            ours, plane = self.panel.results.segmentation, self.panel.parameters().plane
            with waiting():
                request = review.collect(
                    ours, self.reference, self.panel.logic.task, self._override, plane
                )
            self.panel.run.startJob(
                lambda progress, cancelled: review.compute(request, progress, cancelled),
                lambda found: self.take(ours, request, found),
            )

    def take(self, ours, request, found):
        """Show what came out."""
        region = self.region if self.region in request.regions else None
        nodes = review.apply(slicer.mrmlScene, ours, request, found, region)
        self._request, self._found, self._rank = request, found, -1
        self._foundKey = _key(nodes)
        ours.GetDisplayNode().SetVisibility(False)
        nodes.errors.GetDisplayNode().SetVisibility(True)
        names = ", ".join(title for _key, title, _color in review.ERRORS.values())
        lines = [
            _("Compared with '{name}'.").format(name=request.referenceName),
            _("Error segmentation: {names}. The result itself is hidden.").format(
                names=names.lower()
            ),
            *(
                f"{_sign(finding)}{finding.message} {finding.remedy}".rstrip()
                for finding in request.findings
            ),
            review.EMPTY_RULE,
        ]
        showText(self.ui.reviewLabel, "\n".join(lines))
        self.panel.ui.statusLabel.text = _("Compared.")

    def onRegion(self, index=0):
        """Show the errors of another region."""
        ours = self.panel.results.segmentation
        self._rank = -1
        if self._found is not None and ours is not None and self.region in self._request.regions:
            with saying(_("The errors could not be shown.")), waiting():
                review.showErrors(slicer.mrmlScene, ours, self._request, self.region)

    def onWorstSlice(self, clicked=False):
        """Go to the slice with the most wrong voxels; then to the next worst."""
        shown = (
            self.ui.worstSliceLabel
        )  # beside the button: the status of a run may be out of sight
        if self._found is None or self.region not in self._request.regions:
            showText(shown, _("The reference does not define {region}.").format(region=self.region))
            return
        self._rank += 1
        found = review.worstSlice(self._request, self._found, self.region, self._rank, by="voxels")
        if found is None:
            showText(shown, _("Neither segmentation has this region in any slice."))
            return
        review.jumpTo(slicer.mrmlScene, found.ras)
        text = _(
            "{region}, slice {index} ({rank} of {count}): {wrong} wrong voxels, Dice {dice}"
        ).format(
            region=self.region,
            index=found.index,
            rank=found.rank + 1,
            count=found.count,
            wrong=found.wrongVoxels,
            dice=scoreText(found.dice),
        )
        showText(shown, text)

    def onSave(self, clicked=False):
        """Save the table as a file."""
        ours = self.panel.results.segmentation
        nodes = review.nodesOf(slicer.mrmlScene, ours) if ours is not None else None
        if nodes is not None:
            saveTable(nodes.scores, self.panel.ui.statusLabel)

    def onPlot(self, clicked=False):
        """Show the Dice of every slice."""
        ours = self.panel.results.segmentation
        nodes = review.nodesOf(slicer.mrmlScene, ours) if ours is not None else None
        if nodes is not None:
            slicer.modules.plots.logic().ShowChartInLayout(nodes.chart)

    def clear(self):
        """Nothing was compared."""
        self._request = self._found = self._foundKey = None
        self._shown = self._matched = None
        self._override = {}
        self._rank = -1
        fillTable(self.ui.reviewTable, [], [])
        showText(self.ui.reviewLabel, "")
        showText(self.ui.worstSliceLabel, "")


def _key(nodes):
    """Tells one review in the scene from another; None for none."""
    return (nodes.scores.GetID(), nodes.scores.GetMTime()) if nodes is not None else None


def _sign(finding):
    return "\u26a0 " if finding.level == "warning" else ""
