"""Expected performance: how well the model does with exactly the selected modalities."""

from __future__ import annotations

import re

import slicer.util
from slicer.i18n import tr as _

from medmap.bundle.format import choose_entry

from ..expected_performance import NOT_VALIDATED, subsetCard
from .common import Section, fillTable, showText


class CardSection(Section):
    """Modality subset, measured Dice, warnings; never a number that was not measured."""

    attribute = "card"

    def setup(self):
        """Connect the link to the details."""
        self._details = ""
        self.ui.cardDetailsLabel.connect("linkActivated(QString)", self.onDetails)

    def update(self):
        """Follow the selected modalities."""
        inputs = self.panel.inputs.read()
        if inputs is None:
            return
        entry = self.panel.models.entry
        card = subsetCard(self.panel.logic.task, entry.card, inputs.used)
        self.ui.cardLabel.text = card.title
        self._showScores(card)
        lines = [entry.error] if entry.error else []
        if card.validated:
            lines.append(_("Measured on {data}.").format(data=withoutDetails(card.data)))
        elif card.subset and not entry.error:
            lines.append(NOT_VALIDATED)
        lines += self._networkWarnings(inputs.used)
        lines += [f"\u26a0 {warning}" for warning in (*inputs.warnings, *card.warnings)]
        showText(self.ui.cardNoteLabel, "\n".join(lines))
        self._details = card.data
        self.ui.cardDetailsLabel.setVisible(withoutDetails(card.data) != card.data)

    def _showScores(self, card):
        """One row per region; a column more where there are figures for all modalities."""
        heads = [_("Region"), _("Dice, mean \u00b1 SD")]
        if card.complete:
            heads.append(_("All modalities"))
        complete = {score.region: score.text for score in card.complete}
        rows = []
        for score in card.scores:
            row = [f"{score.region} ({score.title})", score.text]
            if complete:
                row.append(complete[score.region])
            rows.append(row)
        fillTable(self.ui.cardTable, heads, rows)

    def _networkWarnings(self, used):
        """What a model with one network per subset will do with these; known without loading it."""
        subsets = self.panel.models.entry.subsets
        index = choose_entry(subsets, used)
        if index is None:
            if not used:
                return []
            return [_("\u26a0 The model does not support this modality subset.")]
        subset = subsets[index]
        if subset is None or set(subset) == set(used):
            return []
        titles = self.panel.logic.task.titles(subset)
        return [
            _(
                "\u26a0 The model has no network for exactly this modality subset: only {scans} "
                "will be used."
            ).format(scans=titles)
        ]

    def onDetails(self, link=""):
        """Show everything that the model records about the measurement."""
        slicer.util.infoDisplay(self._details, windowTitle=_("Expected performance"))


def withoutDetails(data):
    """The data of a measurement without remarks in parentheses inside the description.

    How to generate the very same cases (commands, seeds, label maps) is recorded there, which is of
    use to a developer and of none to a reader.
    """
    count, opening, description = data.partition(" (")
    inner = description.removesuffix(")")
    while re.search(r"\([^()]*\)", inner):
        inner = re.sub(r" ?\([^()]*\)", "", inner)
    if not opening or not description.endswith(")"):
        return data
    return f"{count} ({inner})"
