"""Subset card: what the chosen combination of scans is good for, as the model's own table says."""

from __future__ import annotations

from slicer.i18n import tr as _

from medmap.bundle.format import choose_entry

from ..card import NOT_VALIDATED, subsetCard
from .common import Section, fillTable, showText


class CardSection(Section):
    """Combination, measured Dice, warnings; never a number that was not measured."""

    attribute = "card"

    def update(self):
        """Follow the slots."""
        found = self.panel.inputs.read()
        if found is None:
            return
        entry = self.panel.models.entry
        card = subsetCard(self.panel.logic.task, entry.card, found.used)
        heads = [_("Region"), _("Dice, mean \u00b1 SD")] + (
            [_("All modalities")] if card.complete else []
        )
        complete = {score.region: score for score in card.complete}
        rows = []
        for score in card.scores:
            texts = [f"{score.region} ({score.title})", score.text]
            rows.append([*texts, *([complete[score.region].text] if complete else [])])
        self.ui.cardLabel.text = card.title
        fillTable(self.ui.cardTable, heads, rows)
        lines = [entry.error] if entry.error else []
        if card.validated:
            lines.append(_("Measured on {data}.").format(data=card.data))
        elif card.subset and not entry.error:
            lines.append(NOT_VALIDATED)
        lines += self._network(found.used)
        lines += [f"\u26a0 {warning}" for warning in (*found.warnings, *card.warnings)]
        showText(self.ui.cardNoteLabel, "\n".join(lines))

    def _network(self, used):
        """What a model of several networks, each for one set of scans, will do with these; known without loading it."""
        task, sets = self.panel.logic.task, self.panel.models.entry.subsets
        chosen = choose_entry(sets, used)
        if chosen is None:
            return [_("\u26a0 The model does not support this modality subset.")] if used else []
        if sets[chosen] is None or set(sets[chosen]) == set(used):
            return []
        titles = task.titles(sets[chosen])
        return [
            _(
                "\u26a0 The model has no network for exactly this modality subset: only {scans} will be used."
            ).format(scans=titles)
        ]
