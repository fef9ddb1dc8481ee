"""What the tables of an evaluation hold: the form in which they are written, read and drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

BORROWED_MARK = "†"
FORMER_KEYS = {"penalised": "penalized"}
"""Keys of summaries that earlier versions wrote, and what they are called today."""


@dataclass(frozen=True)
class Statistics:
    """One cell of a table: scores of one region, over cases or over subsets.

    Attributes:
        mean: of the defined scores; None where there is none.
        sd: standard deviation over cases (n - 1); None where no score is defined.
        n: number of defined scores that ``sd`` is over.
        undefined: how many scores are not defined; None for scores that always are.
        penalized: the mean with the diagonal of the labels' grid for each undefined distance.
        subsets: number of subsets that an average is over; None in a subset's own row.
    """

    mean: float | None
    sd: float | None
    n: int
    undefined: int | None = None
    penalized: float | None = None
    subsets: int | None = None

    def to_dict(self) -> dict[str, float | int | None]:
        """Plain form; what does not apply to this cell is left out."""
        content: dict[str, float | int | None] = {
            "mean": self.mean,
            "sd": self.sd,
            "n": self.n,
        }
        for name in ("undefined", "penalized", "subsets"):
            value = getattr(self, name)
            if value is not None:
                content[name] = value
        return content

    @staticmethod
    def from_dict(content: Mapping) -> Statistics:
        """Read the plain form, today's or an earlier one."""
        current = {FORMER_KEYS.get(key, key): value for key, value in content.items()}
        return Statistics(
            mean=current["mean"],
            sd=current["sd"],
            n=current.get("n", 0),
            undefined=current.get("undefined"),
            penalized=current.get("penalized"),
            subsets=current.get("subsets"),
        )


Cells = dict[str, dict[str, Statistics]]
"""Row (a subset's key or the name of a group) -> region -> cell."""


@dataclass(frozen=True)
class SubsetTable:
    """One score's table.

    Attributes:
        subsets: a row for each modality subset, in the order of the field's tables.
        averages: a row for each complete group of subsets (``groups``).
    """

    subsets: Cells
    averages: Cells = field(default_factory=dict)

    def to_dict(self) -> dict[str, dict]:
        """Plain form."""
        return {"subsets": _plain_cells(self.subsets), "averages": _plain_cells(self.averages)}

    @staticmethod
    def from_dict(content: Mapping) -> SubsetTable:
        """Read the plain form; cards of early bundles have no averages."""
        return SubsetTable(
            _cells_from(content["subsets"]), _cells_from(content.get("averages", {}))
        )


@dataclass(frozen=True)
class EmptyMasks:
    """How many empty masks of one region stand behind a summary's numbers.

    Attributes:
        reference: cases whose reference has none of the region.
        prediction: predictions (cases times subsets) that have none of it.
        both: predictions without it of cases without it.
        emptied_by_rule: predictions that the minimum-volume rule counts as empty.
        predictions: all predictions.
    """

    reference: int
    prediction: int
    both: int
    emptied_by_rule: int
    predictions: int

    @property
    def any(self) -> bool:
        """Whether there is something to report."""
        return bool(self.reference or self.prediction or self.emptied_by_rule)

    @property
    def sentence(self) -> str:
        """The counts in words, for tables' footnotes."""
        cases = counted(self.reference, "case")
        return (
            f"absent in the reference of {cases}; {self.prediction} of {self.predictions} "
            f"predictions have none ({self.both} of them rightly); the minimum-volume rule empties "
            f"{self.emptied_by_rule}."
        )

    def to_dict(self) -> dict[str, int]:
        """Plain form."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    @staticmethod
    def from_dict(content: Mapping) -> EmptyMasks:
        """Read the plain form."""
        return EmptyMasks(**{entry.name: content[entry.name] for entry in fields(EmptyMasks)})


@dataclass(frozen=True)
class Summary:
    """The tables of an evaluation, or of a bundle's card.

    Attributes:
        data: what the cases are, in words.
        cases: number of cases.
        dice: without the minimum-volume rule.
        rules: ``RULES`` of the version that made the tables.
        least_mm3: minimum volume by region, of the regions that have one.
        dice_rule: Dice after the minimum-volume rule; None in early bundles' cards.
        hd95, hd95_rule: 95 % Hausdorff distances in mm; None in early bundles' cards.
        empty: by region.
        further: tables of the scores that were asked for, by column of ``ScoreRow``.
        part: part of the split that was scored; empty for all cases, None before that is known.
        borrowed: of a bundle with a network for each of some subsets: the subset whose network was
            run, by the key of a subset that has none of its own.
    """

    data: str
    cases: int
    dice: SubsetTable
    rules: str = ""
    least_mm3: dict[str, float] = field(default_factory=dict)
    dice_rule: SubsetTable | None = None
    hd95: SubsetTable | None = None
    hd95_rule: SubsetTable | None = None
    empty: dict[str, EmptyMasks] = field(default_factory=dict)
    part: str | None = None
    further: dict[str, SubsetTable] = field(default_factory=dict)
    borrowed: dict[str, str] = field(default_factory=dict)

    def mark(self, subset: str) -> str:
        """``BORROWED_MARK`` behind a subset whose scores another subset's network gave, or ""."""
        return BORROWED_MARK if subset in self.borrowed else ""

    @property
    def borrowed_note(self) -> str:
        """The footnote of marked subsets; empty where none is."""
        if not self.borrowed:
            return ""
        pairs = []
        for subset, network in self.borrowed.items():
            pairs.append(f"{subset} by {network}")
        listed = ", ".join(pairs)
        return f"{BORROWED_MARK} segmented by the network of a smaller subset: {listed}."

    @property
    def tables(self) -> dict[str, SubsetTable]:
        """The tables that there are, by the name of their score."""
        candidates = {
            "dice": self.dice,
            "dice_rule": self.dice_rule,
            "hd95": self.hd95,
            "hd95_rule": self.hd95_rule,
        }
        available = {name: table for name, table in candidates.items() if table is not None}
        return available | self.further

    def to_dict(self) -> dict:
        """JSON-ready form.

        The Dice table stands on top, under ``subsets`` and ``averages``, where the panel reads it.
        """
        content: dict = {
            "data": self.data,
            "cases": self.cases,
            "rules": self.rules,
            "least_mm3": dict(self.least_mm3),
            **self.dice.to_dict(),
        }
        for name in ("dice_rule", "hd95", "hd95_rule"):
            score_table = getattr(self, name)
            if score_table is not None:
                content[name] = score_table.to_dict()
        if self.further:
            content["further"] = {name: entry.to_dict() for name, entry in self.further.items()}
        content["empty"] = {region: counts.to_dict() for region, counts in self.empty.items()}
        if self.part is not None:
            content["part"] = self.part
        if self.borrowed:
            content["borrowed"] = dict(self.borrowed)
        return content

    @staticmethod
    def from_dict(content: Mapping) -> Summary:
        """Read the JSON form, today's or an earlier one.

        Raises KeyError, TypeError or ValueError where it is not understood.
        """
        optional = {}
        for name in ("dice_rule", "hd95", "hd95_rule"):
            if name in content:
                optional[name] = SubsetTable.from_dict(content[name])
        empty = {
            region: EmptyMasks.from_dict(counts)
            for region, counts in content.get("empty", {}).items()
        }
        return Summary(
            data=content.get("data", ""),
            cases=content["cases"],
            dice=SubsetTable.from_dict(content),
            rules=content.get("rules", ""),
            least_mm3=dict(content.get("least_mm3", {})),
            empty=empty,
            part=content.get("part"),
            further={
                name: SubsetTable.from_dict(entry)
                for name, entry in content.get("further", {}).items()
            },
            borrowed=dict(content.get("borrowed", {})),
            **optional,
        )


def counted(number: int, noun: str) -> str:
    """A number with its noun in singular or plural: ``1 case``, ``2 cases``."""
    ending = "" if number == 1 else "s"
    return f"{number} {noun}{ending}"


def _plain_cells(cells: Cells) -> dict[str, dict[str, dict]]:
    """Rows of cells in plain form."""
    plain: dict[str, dict[str, dict]] = {}
    for row, regions in cells.items():
        plain_row = {}
        for region, cell in regions.items():
            plain_row[region] = cell.to_dict()
        plain[row] = plain_row
    return plain


def _cells_from(content: Mapping) -> Cells:
    """Rows of cells from their plain form."""
    cells: Cells = {}
    for row, regions in content.items():
        cells[row] = {}
        for region, cell in regions.items():
            cells[row][region] = Statistics.from_dict(cell)
    return cells
