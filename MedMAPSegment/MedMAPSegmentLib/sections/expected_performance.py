"""Expected performance: how well the model does with exactly the selected modalities."""

from __future__ import annotations

import slicer.util
from slicer.i18n import tr as _

from medmap.bundle.format import choose_entry

from ..expected_performance import ExpectedPerformance, expectedPerformance, measurementText
from ..i18n.sentences import sentence
from .common import Section, showText
from .dialogs import warningLine
from .tables import fillTable, shortText


class ExpectedPerformanceSection(Section):
    """Measured Dice, whom the model was made for, one warning; never a number not measured."""

    attribute = "performance"
    box = "inputs"

    def setup(self) -> None:
        """Connect the link to the details."""
        self._details = ""
        self.ui.performanceDetailsLabel.connect("linkActivated(QString)", self.onDetails)

    def summary(self) -> str:
        """The expected Dice of the first region."""
        performance = self._performance()
        if performance is None or not performance.validated:
            return ""
        score = performance.scores[0]
        text = _("expected {region} {mean}")
        return text.format(region=score.region, mean=shortText(score.mean))

    def _performance(self) -> ExpectedPerformance | None:
        used = self.state.usedVolumes
        if not used:
            return None
        return expectedPerformance(self.state.task, self.state.entry.card, used)

    def update(self) -> None:
        """Follow the selected modalities."""
        if self.state.inputs is None:
            return
        performance = self._performance()
        title = ""
        if performance is not None:
            title = _("Expected with {modalities}:").format(modalities=performance.title)
        showText(self.ui.performanceLabel, title)
        self._showScores(performance)
        showText(self.ui.performanceNoteLabel, "\n".join(self._notes(performance)))
        self._details = ""
        if performance is not None:
            self._details = performance.details
        self.ui.performanceDetailsLabel.setVisible(bool(self._details))

    def _showScores(self, performance: ExpectedPerformance | None) -> None:
        rows = []
        if performance is not None:
            for score in performance.scores:
                title = f"{sentence(score.title)} ({score.region})"
                rows.append([title, shortText(score.mean), score.range])
        heads = [_("Region"), _("Dice"), _("Typical range")]
        tips = ["", "", _("Mean minus and plus one standard deviation")]
        fillTable(self.ui.performanceTable, heads, rows, tips)

    def _notes(self, performance: ExpectedPerformance | None) -> list[str]:
        """How it was measured, whom the model was made for, and the most important warning."""
        entry = self.state.entry
        if entry.error:
            return [entry.error]
        if performance is None:
            return []
        lines = [measurementText(performance)]
        if performance.population:
            lines.append(sentence(performance.population))
        warning = self._networkWarning() or performance.warning
        if warning:
            lines.append(warningLine(sentence(warning)))
        inputs = self.state.inputs
        if inputs is not None:
            lines += [warningLine(sentence(text)) for text in inputs.warnings]
        return lines

    def _networkWarning(self) -> str:
        """What a model with one network per subset will do; known without loading it."""
        used = self.state.usedVolumes
        subsets = self.state.entry.subsets
        index = choose_entry(subsets, used)
        if index is None:
            return _("The model does not support this modality subset.")
        subset = subsets[index]
        if subset is None or set(subset) == set(used):
            return ""
        text = _(
            "The model has no network for exactly this modality subset: only {scans} will be used."
        )
        return text.format(scans=self.state.task.titles(subset))

    def onDetails(self, link: str = "") -> None:
        """Show everything that the model records about the measurement."""
        slicer.util.infoDisplay(self._details, windowTitle=_("Expected performance"))
