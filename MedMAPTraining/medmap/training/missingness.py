"""Which modalities a training sample has: pure functions of case, epoch and generator, never all
missing.

Two questions, two answers. ``Missingness.available`` says what training may ever see of a case:
scans that it excludes are not opened, neither for the crop nor for normalization. A call says what
one sample shows of that.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medmap.errors import InputDataError, MissingInputError, UsageError
from medmap.io.atomic import write_text
from medmap.option_names import misfit
from medmap.task import Task

PREFIXES = ("HGG_", "LGG_", "HG_", "LG_")
"""What RFNet's preprocessing, and with it PASSION's lists, put before the names of BraTS cases."""

PASSION_ORDER = ("flair", "t1ce", "t1", "t2")
"""The order of the masks in PASSION's lists, which name no modality."""

Draw = Callable[[str, int, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Missingness:
    """A protocol: ``protocol(case_id, epoch, rng) -> [M] bool``, True = present, at least one.

    Attributes:
        draw: what one sample shows.
        available: what training may ever see of a case, [M] bool by its name.
    """

    draw: Draw
    available: Callable[[str], np.ndarray]

    def __call__(self, case_id: str, epoch: int, rng: np.random.Generator) -> np.ndarray:
        """[M] bool for one sample."""
        return self.draw(case_id, epoch, rng)


def full(task: Task, cases: Sequence[str] = ()) -> Missingness:
    """Every sample has every modality."""
    return dedicated(task, cases, task.modality_names)


def dedicated(task: Task, cases: Sequence[str] = (), show: Sequence[str] = ()) -> Missingness:
    """Every sample has the same modalities: ``show``, by name."""
    mask = np.array(task.presence(show))
    if not mask.any():
        raise UsageError(
            "The missingness 'dedicated' shows nothing.", "Name at least one modality in 'show'."
        )
    return Missingness(lambda case_id, epoch, rng: mask, lambda case_id: mask)


def random_subset(
    task: Task,
    cases: Sequence[str] = (),
    by: str = "subset",
    keep: float = 0.5,
    weights: Mapping[str, float] | None = None,
) -> Missingness:
    """Another non-empty subset for every sample.

    Args:
        task: names the modalities.
        cases: not looked at.
        by: ``subset``: each of the subsets alike (RFNet, Ding et al., ICCV 2021; PASSION: 15 for
            BraTS); ``cardinality``: first how many, then which (U-HVED, ShaSpec, MCKD: a single
            modality in 1/16 of the samples each, all four in 1/4); ``bernoulli``: each modality by
            itself (Robust-MSeg).
        keep: with ``bernoulli``, how likely a modality is kept; draws that keep none are repeated.
        weights: with ``subset``, how many times as often as the others a subset is shown, by its
            key (``t1ce+flair``): hard ones need more samples.
    """
    number = len(task.modalities)
    draws: dict[str, Draw] = {
        "subset": _drawn_subset(task, weights or {}),
        "cardinality": _drawn_by_cardinality(number),
        "bernoulli": _drawn_one_by_one(number, keep),
    }
    if by not in draws or not 0 < keep <= 1:
        raise UsageError(
            f"Random subsets by '{by}', keep {keep}, cannot be drawn.",
            f"Use by = {', '.join(draws)}.",
        )
    every = np.ones(number, bool)
    return Missingness(draws[by], lambda case_id: every)


def _drawn_subset(task: Task, weights: Mapping[str, float]) -> Draw:
    """One of the non-empty subsets, each alike or by its weight."""
    masks = np.array([task.presence(subset) for subset in task.subsets()])
    probability = _shares(task, weights)

    def draw(case_id: str, epoch: int, rng: np.random.Generator) -> np.ndarray:
        if probability is None:
            return masks[rng.integers(len(masks))]
        n = rng.choice(len(masks), p=probability)
        return masks[n]

    return draw


def _drawn_by_cardinality(number: int) -> Draw:
    """First how many modalities, then which."""

    def draw(case_id: str, epoch: int, rng: np.random.Generator) -> np.ndarray:
        order = rng.permutation(number)
        count = rng.integers(1, number + 1)
        modalities = np.arange(number)
        return np.isin(modalities, order[:count])

    return draw


def _drawn_one_by_one(number: int, keep: float) -> Draw:
    """Each modality by itself, again when none is kept."""

    def draw(case_id: str, epoch: int, rng: np.random.Generator) -> np.ndarray:
        mask = rng.random(number) < keep
        while not mask.any():
            mask = rng.random(number) < keep
        return mask

    return draw


def _shares(task: Task, weights: Mapping[str, float]) -> np.ndarray | None:
    """Probability of each subset in the task's order; None: all alike. Raises UsageError."""
    keys = [task.subset_key(subset) for subset in task.subsets()]
    strange = sorted(set(weights) - set(keys))
    has_nonpositive = any(value <= 0 for value in weights.values())
    if strange or has_nonpositive:
        raise UsageError(
            f"The weights {dict(weights)} are not positive numbers by modality subset.",
            f"Use keys like {keys[-1]}.",
        )
    if not weights:
        return None
    share = np.array([float(weights.get(key, 1.0)) for key in keys])
    return share / share.sum()


def fixed(
    task: Task,
    cases: Sequence[str] = (),
    rates: Mapping[str, float] | None = None,
    seed: int = 0,
    table: str | None = None,
    order: Sequence[str] = PASSION_ORDER,
) -> Missingness:
    """The same modalities of a case in every epoch, more often missing for some than for others:
    imbalanced (IDT).

    PASSION (Shi et al., ACM MM 2024, §3.1). What a case lacks is not opened, not even if it is on
    disk.

    Args:
        task: names the modalities.
        cases: names of the cases that masks are wanted for.
        rates: share of the cases that lack a modality, by its name; see ``draw_masks``.
        seed: of the draw. The masks are a function of seed, rates and the set of names.
        table: a CSV file with the masks instead; see ``read_masks``.
        order: names of the modalities in PASSION's masks.

    Raises:
        UsageError: neither rates nor table, or rates that cannot be.
        InputDataError: the table lacks a case.
    """
    if rates is not None and table is None:
        masks = draw_masks(task, cases, rates, seed)
    elif table is not None and rates is None:
        masks = read_masks(table, task, order)
        missing = [case for case in cases if bare_name(case) not in masks]
        if missing:
            raise InputDataError(
                f"{Path(table).name} has no row for the case {missing[0]}.",
                "Add it, or leave it out.",
            )
    else:
        raise UsageError(
            "Fixed missingness needs either rates or a table.", "Give one of 'rates' and 'table'."
        )

    def available(case_id: str) -> np.ndarray:
        return masks[bare_name(case_id)]

    return Missingness(lambda case_id, epoch, rng: available(case_id), available)


def dropped(
    task: Task, cases: Sequence[str] = (), inner: str = "fixed", options: Mapping | None = None
) -> Missingness:
    """ModDrop: every sample shows a random non-empty subset of what another protocol leaves, each
    alike.

    As PASSION compares with it (``idt_drop``); Neverova et al., "ModDrop", TPAMI 2016.

    Args:
        task: names the modalities.
        cases: names of the cases.
        inner, options: the other protocol.
    """
    base = build_missingness(inner, task, dict(options or {}), cases)

    def draw(case_id: str, epoch: int, rng: np.random.Generator) -> np.ndarray:
        available = np.flatnonzero(base(case_id, epoch, rng))
        # The n-th bit of the number says whether the n-th available modality is shown.
        chosen = int(rng.integers(1, 2 ** len(available)))
        mask = np.zeros(len(task.modalities), bool)
        for n, modality in enumerate(available):
            bit = chosen >> n & 1
            mask[modality] = bool(bit)
        return mask

    return Missingness(draw, base.available)


def staged(
    task: Task,
    cases: Sequence[str] = (),
    until: int = 0,
    first: str = "full",
    first_options: Mapping | None = None,
    then: str = "random-subset",
    then_options: Mapping | None = None,
) -> Missingness:
    """One protocol before an epoch (a pass over the cases), another from it on, as MCKD's released
    code trains.

    Args:
        task: names the modalities.
        cases: names of the cases.
        until: the first epoch of the second protocol.
        first, first_options, then, then_options: the two protocols.
    """
    before = build_missingness(first, task, dict(first_options or {}), cases)
    after = build_missingness(then, task, dict(then_options or {}), cases)

    def draw(case_id: str, epoch: int, rng: np.random.Generator) -> np.ndarray:
        protocol = before if epoch < until else after
        return protocol(case_id, epoch, rng)

    def available(case_id: str) -> np.ndarray:
        return before.available(case_id) | after.available(case_id)

    return Missingness(draw, available)


def draw_masks(
    task: Task, cases: Sequence[str], rates: Mapping[str, float], seed: int
) -> dict[str, np.ndarray]:
    """Masks that hit the missing rates exactly, to a whole number of cases, with at least one
    modality each.

    Every modality is given to a random set of exactly (1 - rate) * N cases, independently of the
    others; a case left with nothing then takes one over from a random case that has several. (The
    published generator truncates expected counts of the patterns, and its true rates fall short of
    the nominal ones.)

    Returns:
        [M] bool by the case's name without the prefixes of PASSION's lists.

    Raises:
        UsageError: a rate is missing, unknown or not within 0..1, or fewer scans than cases would
            be left.
    """
    names = sorted({bare_name(case) for case in cases})
    unfitting = set(rates) ^ set(task.modality_names)
    are_shares = all(0 <= rate <= 1 for rate in rates.values())
    if unfitting or not are_shares:
        raise UsageError(
            f"Missing rates of {', '.join(rates)} do not fit the task {task.name}.",
            f"Give one within 0..1 for each of {', '.join(task.modality_names)}.",
        )
    rng = np.random.default_rng([seed, len(names)])
    masks = np.zeros((len(names), len(task.modalities)), bool)
    for modality, name in enumerate(task.modality_names):
        number = round((1 - rates[name]) * len(names))
        order = rng.permutation(len(names))
        masks[order[:number], modality] = True
    if masks.sum() < len(names):
        raise UsageError(
            f"Missing rates of {', '.join(map(str, rates.values()))} leave fewer scans than cases.",
            "Lower them until their sum is at most the number of modalities minus one.",
        )
    _share_with_empty(masks, rng)
    return dict(zip(names, masks, strict=True))


def _share_with_empty(masks: np.ndarray, rng: np.random.Generator) -> None:
    """Give every case without a modality one of a random case that has several, in place.

    Moved, not added: the rates stay exact.
    """
    for empty in np.flatnonzero(~masks.any(1)):
        has_several = masks.sum(1, keepdims=True) > 1
        givers, modalities = np.nonzero(masks & has_several)
        n = rng.integers(len(givers))
        giver = givers[n]
        modality = modalities[n]
        masks[giver, modality] = False
        masks[empty, modality] = True


def read_masks(
    path: str | Path, task: Task, order: Sequence[str] = PASSION_ORDER
) -> dict[str, np.ndarray]:
    """Masks of a CSV file: ours (``case`` and a column of 0 and 1 a modality) or PASSION's
    (``data_name``, ``mask``).

    Raises:
        MissingInputError: no such file.
        InputDataError: it is neither, or a case has no modality.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError:
        raise MissingInputError(f"There is no table of masks {path}.", "Check the path.") from None
    try:
        masks = {}
        for row in rows:
            if "data_name" in rows[0]:
                case = row["data_name"]
                shows = dict(zip(order, _booleans(row["mask"]), strict=True))
            else:
                case = row["case"]
                shows = {name: bool(int(row[name])) for name in task.modality_names}
            mask = [shows[name] for name in task.modality_names]
            masks[bare_name(case)] = np.array(mask)
    except (KeyError, ValueError, TypeError) as error:
        raise InputDataError(
            f"{Path(path).name} is no table of masks for the task {task.name} ({error}).",
            f"Its columns are case, {', '.join(task.modality_names)}; "
            "or data_name and mask, as PASSION has them.",
        ) from error
    empty = [case for case, mask in masks.items() if not mask.any()]
    if empty:
        raise InputDataError(
            f"{Path(path).name} leaves nothing to the case {empty[0]}.", "Give it one modality."
        )
    return masks


def _booleans(text: str) -> list[bool]:
    values = {"True": True, "False": False}
    entries = text.strip(" []").split(",")
    return [values[entry.strip()] for entry in entries]


def write_masks(path: str | Path, task: Task, masks: Mapping[str, np.ndarray]) -> None:
    """Write masks as ``read_masks`` reads them, atomically, so that a draw can be kept and
    repeated.
    """
    header = ["case", *task.modality_names]
    lines = [",".join(header)]
    for case, mask in masks.items():
        cells = [str(int(shows)) for shows in mask]
        lines.append(",".join([case, *cells]))
    text = "\n".join(lines) + "\n"
    write_text(path, text)


def bare_name(case_id: str) -> str:
    """A case's name without the prefix that lists of RFNet's lineage put before it (``HG_``,
    ``LGG_``).
    """
    for prefix in PREFIXES:
        if case_id.startswith(prefix):
            return case_id.removeprefix(prefix)
    return case_id


PROTOCOLS: dict[str, Callable[..., Missingness]] = {
    "full": full,
    "random-subset": random_subset,
    "fixed": fixed,
    "dedicated": dedicated,
    "dropped": dropped,
    "staged": staged,
}


def build_missingness(
    name: str, task: Task, options: dict, cases: Sequence[str] = ()
) -> Missingness:
    """Build a protocol from plain data, as a recipe states it, for the cases named.

    Raises:
        UsageError: the name is unknown.
        BundleError: an option is unknown.
    """
    if name not in PROTOCOLS:
        raise UsageError(
            f"The missingness '{name}' is unknown.", f"Use one of {', '.join(PROTOCOLS)}."
        )
    try:
        return PROTOCOLS[name](task, cases, **options)
    except TypeError as error:
        raise misfit(
            f"The missingness {name}", PROTOCOLS[name], options, error, ("task", "cases")
        ) from error
