"""Review: agreement with a reference or another result, region by region and slice by slice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import slicer
import slicer.util
from slicer.i18n import tr as _

from medmap.agreement import EMPTY_RULE
from medmap.errors import MedMAPError

from ..i18n.sentences import errorText, findingText, sentence
from ..mrml import choices, review, review_nodes
from ..mrml.nodes import columnOf
from ..mrml.overlay import DIFFERENCE, overlayOf, setOverlay, showOverlay
from ..mrml.reference_parts import conventionNames
from ..mrml.worst_slices import WorstSlice, jumpTo, positionOfSlice, worstSlice, worstSlices
from .common import Section, chooseIndex, fillCombo, showText
from .dialogs import saying, waiting, warningLine
from .tables import (
    clearTable,
    copyTable,
    fillTable,
    numberText,
    saveTable,
    scoreText,
    tableRows,
)

REGION = "reviewRegion"
"""Parameter of the scene: the region whose slices and differences are shown."""

COLUMNS = {
    "Region": None,
    "Dice": scoreText,
    "Sensitivity": scoreText,
    "Precision": scoreText,
    "HD95": numberText,
    "Volume": numberText,
    "Reference volume": numberText,
}
"""Columns of the table of scores that are shown, and how."""


@dataclass(frozen=True)
class Compared:
    """A comparison whose labels are at hand.

    Attributes:
        request: what was compared.
        review: what came out.
        key: distinguishes it from other comparisons of the scene.
    """

    request: review.Request
    review: review.Review
    key: tuple | None


class ReviewSection(Section):
    """Compares the latest result with a segmentation or label volume that someone else made."""

    attribute = "review"
    box = "review"

    def setup(self) -> None:
        """Connect the widgets."""
        self._compared: Compared | None = None
        self._shownScores: tuple | None = None
        self._worst: tuple[WorstSlice, ...] = ()
        self._rank = -1
        self._following = False
        self._watchesPlot = False
        self.ui.reviewSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.onReference)
        self.ui.reviewButton.connect("clicked(bool)", self.onReview)
        self.ui.worstSliceButton.connect("clicked(bool)", self.onWorstSlice)
        self.ui.worstTable.connect("cellClicked(int,int)", self.onWorstRow)
        self.ui.worstTable.connect("cellActivated(int,int)", self.onWorstRow)
        self.ui.plotButton.connect("clicked(bool)", self.onPlot)
        self.ui.copyReviewButton.connect("clicked(bool)", self.onCopy)
        self.ui.saveReviewButton.connect("clicked(bool)", self.onSave)
        self.ui.regionComboBox.connect("currentIndexChanged(int)", self.onRegion)

    def summary(self) -> str:
        """The Dice of the first region, or the reference that is chosen."""
        nodes = self._nodes()
        if nodes is not None:
            region = columnOf(nodes.scores, "Region")[0]
            return _("Dice {region} {dice}").format(
                region=region, dice=scoreText(columnOf(nodes.scores, "Dice")[0])
            )
        if self.reference is not None:
            return _("reference: {name}").format(name=self.reference.GetName())
        return ""

    def rebuild(self) -> None:
        """Regions of the task."""
        titles = []
        for region in self.state.task.regions:
            titles.append(f"{region.name} - {sentence(region.title)}")
        fillCombo(self.ui.regionComboBox, titles)

    @property
    def reference(self) -> Any:
        """The chosen reference node, or None."""
        return self.state.reviewReference

    @property
    def region(self) -> str:
        """Name of the chosen region."""
        return choices.wordOf(self.state.parameterNode(always=True), REGION, self._regionNames)

    @property
    def _convention(self) -> str:
        """Name of the chosen label convention; empty to recognize it."""
        node = self.state.parameterNode(always=True)
        return choices.wordOf(node, choices.CONVENTION, conventionNames(self.state.task))

    @property
    def _meanings(self) -> dict[str, str]:
        """Segment or label value of the reference -> what it was assigned to by hand."""
        return choices.meaningsOf(self.state.parameterNode(always=True))

    @property
    def _regionNames(self) -> tuple[str, ...]:
        return tuple(region.name for region in self.state.task.regions)

    def _nodes(self) -> review_nodes.ReviewNodes | None:
        """The comparison that the scene holds for the result, also after loading a scene."""
        if self.state.result is None:
            return None
        return review_nodes.nodesOf(self.state.scene, self.state.result)

    def onReference(self, node: Any) -> None:
        """Another reference was chosen."""
        if self._following or not self.state.isShown:
            return
        if node is not self.reference:
            choices.setMeanings(self.state.parameterNode(), {})
        self.state.choose(choices.REFERENCE, node)

    def resultArrived(self) -> None:
        """Compare a new result with the reference that is chosen; what is unclear is left open."""
        if self.reference is None or self.reference is self.state.result:
            return
        try:
            self._compare()
        except MedMAPError as error:
            showText(self.ui.reviewLabel, warningLine(errorText(error)))

    def update(self) -> None:
        """Show the choice and the scores; buttons follow what can be done."""
        reference = self.reference
        ours = self.state.result
        self._following = True
        try:
            if self.ui.reviewSelector.currentNode() is not reference:
                self.ui.reviewSelector.setCurrentNode(reference)
        finally:
            self._following = False
        chooseIndex(self.ui.regionComboBox, self._regionNames.index(self.region))
        isReady = ours is not None and reference is not None and reference is not ours
        self.ui.reviewButton.enabled = isReady and not self.state.isBusy
        tip = _("Needs a result and a reference other than the result itself.")
        if isReady:
            tip = _("Compute Dice, sensitivity, precision, HD95 and volumes, also slice by slice.")
        self.ui.reviewButton.toolTip = tip
        self._showScores()
        self.ui.worstSliceButton.enabled = self._compared is not None

    def _showScores(self) -> None:
        nodes = self._nodes()
        for button in (self.ui.plotButton, self.ui.saveReviewButton, self.ui.copyReviewButton):
            button.enabled = nodes is not None
        self._showOutdated(nodes)
        key = _key(nodes)
        if key == self._shownScores:
            return
        self._shownScores = key
        scores = nodes.scores if nodes is not None else None
        heads = [_("Region"), _("Dice"), _("Sens."), _("Prec."), _("HD95 mm"), _("ml")]
        rows, tips = tableRows(scores, COLUMNS)
        fillTable(self.ui.reviewTable, [*heads, _("Ref. ml")], rows, tips)
        showText(self.ui.worstSliceLabel, "")
        # From a loaded scene, or of another result: the labels are not at hand.
        if self._compared is None or key != self._compared.key:
            self._compared = None
            text = sentence(EMPTY_RULE) if nodes is not None else ""
            showText(self.ui.reviewLabel, text)
        self._showWorst()

    def _showOutdated(self, nodes: review_nodes.ReviewNodes | None) -> None:
        """Warn of scores that are not those of the labels and choices of today."""
        text = ""
        if nodes is not None:
            text = self._outdated(nodes)
        if text:
            text = warningLine(text)
        showText(self.ui.outdatedReviewLabel, text)

    def _outdated(self, nodes: review_nodes.ReviewNodes) -> str:
        """Why the scores are old, as a sentence; empty if they are not."""
        record = review_nodes.recordOf(nodes)
        reference = self.reference
        if reference is not None and record.get("referenceID", "") != reference.GetID():
            text = _("These scores are of '{name}'. Press Compare for the chosen reference.")
            return text.format(name=record.get("reference", ""))
        if review_nodes.isOutdated(self.state.scene, self.state.result, nodes):
            return _("The result or the reference has changed since. Press Compare again.")
        if reference is not None and record.get("choices") not in (None, self._choices):
            return _("The choices above have changed since. Press Compare again.")
        return ""

    @property
    def _choices(self) -> str:
        plane = "axial"
        if self.state.parameters is not None:
            plane = self.state.parameters.plane
        return review.choicesText(self._meanings, plane, self._convention)

    def _showWorst(self) -> None:
        """The list of slices to look at first."""
        self._rank = -1
        self._worst = ()
        compared = self._compared
        if compared is not None and self.region in compared.request.regions:
            self._worst = worstSlices(compared.request, compared.review, self.region)
        rows = []
        for entry in self._worst:
            text = _("Slice {index}").format(index=entry.index)
            rows.append([text, scoreText(entry.dice), str(entry.wrongVoxels)])
        fillTable(self.ui.worstTable, [_("Worst slices"), _("Dice"), _("Wrong voxels")], rows)

    def onReview(self, clicked: bool = False) -> None:
        """Compare, and show the difference."""
        with saying(_("The comparison could not be started.")):
            setOverlay(self.state.parameterNode(), DIFFERENCE)
            self._compare()

    def _compare(self) -> None:
        """Compare on the worker thread."""
        ours = self.state.result
        plane = self.state.parameters.plane
        with waiting():
            request = review.collect(
                ours, self.reference, self.state.task, self._meanings, plane, self._convention
            )
        self.jobs.start(
            lambda progress, cancelled: review.compute(request, progress, cancelled),
            lambda comparison: self.take(ours, request, comparison),
        )

    def take(self, ours: Any, request: review.Request, comparison: review.Review) -> None:
        """Show what came out."""
        region = self.region if self.region in request.regions else None
        nodes = review_nodes.apply(self.state.scene, ours, request, comparison, region)
        self._compared = Compared(request, comparison, _key(nodes))
        showOverlay(overlayOf(self.state.parameterNode(always=True)), ours, nodes.errors)
        showText(self.ui.reviewLabel, "\n".join(self._notes(request)))
        self.state.say(_("Compared with '{name}'.").format(name=request.referenceName))

    @staticmethod
    def _notes(request: review.Request) -> list[str]:
        titles = ", ".join(request.errorTitles.values())
        lines = [
            _("Compared with '{name}'.").format(name=request.referenceName),
            _("The overlay Difference shows: {titles}.").format(titles=titles),
        ]
        if request.reading:
            lines.append(sentence(request.reading))
        for finding in request.findings:
            text = findingText(finding.message, finding.remedy)
            lines.append(warningLine(text) if finding.level == "warning" else text)
        lines.append(sentence(EMPTY_RULE))
        return lines

    def onRegion(self, index: int = 0) -> None:
        """Show the differences and the slices of another region."""
        node = self.state.parameterNode()
        names = self._regionNames
        if node is not None and 0 <= index < len(names):
            node.SetParameter(REGION, names[index])
        ours = self.state.result
        compared = self._compared
        if compared is None or ours is None:
            return
        with saying(_("The differences could not be shown.")), waiting():
            if self.region in compared.request.regions:
                review_nodes.showErrors(self.state.scene, ours, compared.request, self.region)
            self._showWorst()

    def onWorstSlice(self, clicked: bool = False) -> None:
        """Go to the slice with the most wrong voxels; then to the next worst."""
        # Beside the button: the status of a run may be out of sight.
        label = self.ui.worstSliceLabel
        compared = self._compared
        if compared is None or self.region not in compared.request.regions:
            text = _("The reference does not define {region}.").format(region=self.region)
            showText(label, text)
            return
        self._rank += 1
        entry = worstSlice(compared.request, compared.review, self.region, self._rank, by="voxels")
        if entry is None:
            showText(label, _("Neither segmentation has this region in any slice."))
            return
        self._goTo(entry)

    def onWorstRow(self, row: int, column: int = 0) -> None:
        """Go to a slice of the list."""
        if 0 <= row < len(self._worst):
            self._rank = row
            self._goTo(self._worst[row])

    def _goTo(self, entry: WorstSlice) -> None:
        jumpTo(self.state.scene, entry.ras)
        text = _("{region}, slice {index} ({rank} of {count}): {wrong} wrong voxels, Dice {dice}")
        showText(
            self.ui.worstSliceLabel,
            text.format(
                region=self.region,
                index=entry.index,
                rank=entry.rank + 1,
                count=entry.count,
                wrong=entry.wrongVoxels,
                dice=scoreText(entry.dice),
            ),
        )

    def onCopy(self, clicked: bool = False) -> None:
        """Put the scores on the clipboard."""
        nodes = self._nodes()
        copyTable(nodes.scores if nodes is not None else None, self.state)

    def onSave(self, clicked: bool = False) -> None:
        """Save the scores as a file."""
        nodes = self._nodes()
        saveTable(nodes.scores if nodes is not None else None, self.state)

    def onPlot(self, clicked: bool = False) -> None:
        """Show the Dice of every slice; a click on a point goes to its slice."""
        nodes = self._nodes()
        if nodes is None:
            return
        slicer.modules.plots.logic().ShowChartInLayout(nodes.chart)
        widget = slicer.app.layoutManager().plotWidget(0)
        if widget is None:
            return
        # In its usual mode a plot view moves on a click and tells nobody what was clicked.
        viewNode = widget.mrmlPlotViewNode()
        viewNode.SetInteractionMode(slicer.vtkMRMLPlotViewNode.InteractionModeSelectPoints)
        if not self._watchesPlot:
            widget.plotView().connect(
                "dataSelected(vtkStringArray*,vtkCollection*)", self.onPlotSelected
            )
            self._watchesPlot = True

    def onPlotSelected(self, seriesIDs: Any, selections: Any) -> None:
        """A point of the plot was clicked: go to its slice.

        Args:
            seriesIDs: vtkStringArray with the IDs of the series in which points are selected.
            selections: vtkCollection of one vtkIdTypeArray of row numbers per series.
        """
        nodes = self._nodes()
        if nodes is None or selections.GetNumberOfItems() == 0:
            return
        series = self.state.scene.GetNodeByID(seriesIDs.GetValue(0))
        region = series.GetYColumnName() if series is not None else ""
        rows = selections.GetItemAsObject(0)
        if region not in nodes.series or rows.GetNumberOfValues() == 0:
            return
        self.goToSlice(region, columnOf(nodes.slices, "Slice")[rows.GetValue(0)])

    def goToSlice(self, region: str, index: int) -> None:
        """Show a slice of the comparison in all views."""
        compared = self._compared
        if compared is None:
            self.state.say(_("Press Compare again to go to slices of a saved comparison."))
            return
        ras = positionOfSlice(compared.request, compared.review, region, index)
        jumpTo(self.state.scene, ras)
        dice = scoreText(review.slicesOf(compared.review).dice[region][index])
        text = _("{region}, slice {index}: Dice {dice}")
        showText(self.ui.worstSliceLabel, text.format(region=region, index=index, dice=dice))

    def clear(self) -> None:
        """Nothing was compared."""
        self._compared = None
        self._shownScores = None
        self._worst = ()
        self._rank = -1
        for table in (self.ui.reviewTable, self.ui.worstTable):
            clearTable(table)
        showText(self.ui.reviewLabel, "")
        showText(self.ui.worstSliceLabel, "")


def _key(nodes: review_nodes.ReviewNodes | None) -> tuple | None:
    """Distinguishes the reviews of a scene; None for none."""
    if nodes is None:
        return None
    return nodes.scores.GetID(), nodes.scores.GetMTime()
