"""Sort the slices of a study into series that are one volume each, or say why they are none."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medmap.dicom.geometry import (
    SAME_POSITION_MM,
    Stack,
    along_normal,
    is_placed,
    same_orientation,
    stack,
    tilt_degrees,
)
from medmap.dicom.headers import Header, Slice

MIN_SLICES = 8
"""Fewer slices are a planning scan or a sample; a head in slices of 6 mm has 20 and more."""
DOMINANT = 0.8
"""A stack that holds this share of a series' slices is the series; the others are additions."""
MAX_REPETITIONS = 4
"""More images at one place are a time series or diffusion imaging, not repeated acquisitions."""
EPI = "EP"

_DERIVED_TYPES = {
    "ADC": "diffusion imaging",
    "FA": "diffusion imaging",
    "TRACEW": "diffusion imaging",
    "DIFFUSION": "diffusion imaging",
    "MOSAIC": "a mosaic of functional or diffusion imaging",
    "FMRI": "functional imaging",
    "PERFUSION": "perfusion imaging",
    "SUBTRACTION": "a subtraction",
    "SUBTRACT": "a subtraction",
    "MIP": "a projection",
    "MIN IP": "a projection",
    "PROJECTION IMAGE": "a projection",
    "MAP": "a parameter map",
    "LOCALIZER": "a planning scan",
    "SCOUT": "a planning scan",
    "SCREEN SAVE": "a document",
}
_COMPONENTS = {"P": "phase", "PHASE": "phase", "R": "real part", "I": "imaginary part"}
_DOCUMENTS = {
    "SR": "a structured report",
    "PR": "a presentation state",
    "KO": "a list of key images",
    "SEG": "a segmentation",
    "RTSTRUCT": "contours for radiotherapy",
    "REG": "a registration",
    "DOC": "a document",
}
_REFORMATTED_TYPES = {"MPR", "REFORMATTED", "RESAMPLED", "CSA MPR", "CSAPARALLEL", "AVERAGE"}


@dataclass(frozen=True)
class Series:
    """One volume of a study, or why there is none.

    Attributes:
        key: what a user calls it by: the series number, with a letter where a series holds several
            volumes (``7a``, ``7b``).
        header: of one of its files.
        stack: its slices, in order; None without a usable volume.
        unusable: why it is no input; empty if it may be one.
        notes: remarks on how the volume was made.
    """

    key: str
    header: Header
    stack: Stack | None
    unusable: str = ""
    notes: tuple[str, ...] = ()

    @property
    def slices(self) -> tuple[Slice, ...]:
        """Its slices, in order; none without a volume."""
        if self.stack is None:
            return ()
        return self.stack.slices

    @property
    def is_derived(self) -> bool:
        """Whether it was computed from another series, as a reformat is."""
        types = {part.upper() for part in self.header.image_type}
        return "DERIVED" in types and bool(types & _REFORMATTED_TYPES)


def series_of(headers: Iterable[Header]) -> list[Series]:
    """Series of one study, ordered by their numbers.

    Args:
        headers: of all files of the study.
    """
    files_by_series: dict[str, list[Header]] = defaultdict(list)
    for header in headers:
        files_by_series[header.series_uid].append(header)
    collected: list[Series] = []
    for files in files_by_series.values():
        collected.extend(_series_of_files(files))
    return _with_unique_keys(sorted(collected, key=_order))


def _order(series: Series) -> tuple[float, str]:
    """Series with a number first, in its order; the others behind them."""
    number = series.header.number
    if number.lstrip("-").isdigit():
        return float(number), series.key
    return float("inf"), series.key


def _with_unique_keys(series: Sequence[Series]) -> list[Series]:
    """Numbers occur twice when studies were merged; the second one becomes ``5.2``."""
    counts: Counter[str] = Counter()
    unique = []
    for entry in series:
        counts[entry.key] += 1
        if counts[entry.key] > 1:
            entry = replace(entry, key=f"{entry.key}.{counts[entry.key]}")
        unique.append(entry)
    return unique


def _series_of_files(files: Sequence[Header]) -> list[Series]:
    """Volumes of one DICOM series: one in most cases, several for echoes or acquisitions."""
    header = files[0]
    key = header.number or "0"
    all_slices: list[Slice] = []
    for file in files:
        all_slices.extend(file.slices)
    slices, notes = _without_copies(all_slices)
    if not slices:
        document = _DOCUMENTS.get(header.modality, "it holds no image")
        return [Series(key, header, None, document)]
    slices, reasons = _usable(slices, header)
    if len(slices) < MIN_SLICES and reasons:
        most_frequent_reason, _ = reasons.most_common(1)[0]
        return [Series(key, header, None, most_frequent_reason)]
    for reason, count in reasons.items():
        notes.append(f"{_slices_text(count)} left out: {reason}")
    groups = _parallel_groups(slices)
    largest = max(groups, key=len)
    if len(groups) > 1:
        # A localizer has slices in three orientations; a volume with a few strays has one.
        if len(largest) < DOMINANT * len(slices):
            return [Series(key, header, None, f"its slices lie in {len(groups)} orientations")]
        extra_count = len(slices) - len(largest)
        notes.append(f"{_slices_text(extra_count)} of another size or orientation left out")
    volumes = _split_by_content(largest)
    return _keyed_series(key, header, volumes, notes)


def _keyed_series(
    key: str, header: Header, volumes: Sequence[Sequence[Slice]], notes: Sequence[str]
) -> list[Series]:
    """Series with keys: the number alone, or ``5a``, ``5b`` ... where one number has several."""
    collected = []
    for number, slices in enumerate(volumes):
        letter = ""
        if len(volumes) > 1:
            # Beyond z the letters begin again; ``_with_unique_keys`` then adds a number.
            letter = chr(ord("a") + number % 26)
        first = slices[0]
        own_header = replace(header, image_type=first.image_type)
        if not math.isnan(first.echo_time):
            own_header = replace(own_header, echo_time=first.echo_time)
        built, reason = _volume_of(slices)
        own_notes = list(notes)
        if built is not None and built.is_tilted:
            own_notes.append(f"a gantry tilt of {tilt_degrees(built.slices):.0f}° was undone")
        entry = Series(f"{key}{letter}", own_header, built, reason, tuple(own_notes))
        collected.append(entry)
    return collected


def _usable(slices: Sequence[Slice], header: Header) -> tuple[list[Slice], Counter[str]]:
    """Slices that may belong to a volume, and why the others do not, with their number."""
    usable = []
    reasons: Counter[str] = Counter()
    for item in slices:
        reason = _no_volume(item, header)
        if reason:
            reasons[reason] += 1
        else:
            usable.append(item)
    return usable, reasons


def _no_volume(item: Slice, header: Header) -> str:
    """Why a slice belongs to no volume, as far as headers tell; empty if it may belong to one."""
    if item.samples > 1:
        return "a color image"
    types = {part.upper() for part in item.image_type}
    for image_type, meaning in _DERIVED_TYPES.items():
        if image_type in types:
            return meaning
    # Philips: T1 MAP, T2 MAP, B0 MAP, and so on.
    if any(part.endswith(" MAP") for part in types):
        return "a parameter map"
    if EPI in header.scanning_sequence:
        return "an echo-planar series (diffusion, perfusion, or functional imaging)"
    if not is_placed(item):
        return "its slices do not say where they lie"
    return ""


def _volume_of(slices: Sequence[Slice]) -> tuple[Stack | None, str]:
    """Stack of slices with distinct positions, or why there is none."""
    component = _COMPONENTS.get(_component(slices[0]))
    if component:
        return None, f"its voxels are the {component} of the signal"
    repetitions = _repetitions(slices)
    if repetitions > 1:
        return None, f"it holds {repetitions} images at one place, as a time series does"
    if len(slices) < MIN_SLICES:
        return None, f"it has only {_slices_text(len(slices))}, as a planning scan has"
    built = stack(slices)
    if built.problem:
        return None, built.problem
    return built, ""


def _slices_text(count: int) -> str:
    if count == 1:
        return "1 slice"
    return f"{count} slices"


def _component(item: Slice) -> str:
    """Third value of ImageType: magnitude, phase, real or imaginary part (Siemens, Philips)."""
    for part in item.image_type[2:]:
        if part.upper() in _COMPONENTS:
            return part.upper()
    return "M"


def _without_copies(slices: Sequence[Slice]) -> tuple[list[Slice], list[str]]:
    """Leave out files that hold an image once more."""
    # From the last to the first, so that the first of several copies stays.
    unique: dict[tuple, Slice] = {}
    for item in reversed(slices):
        unique[_identity(item)] = item
    copies = len(slices) - len(unique)
    notes = []
    if copies:
        notes.append(f"{_slices_text(copies)} present twice, read once")
    in_order = list(reversed(unique.values()))
    return in_order, notes


def _identity(item: Slice) -> tuple:
    """What copies of an image have in common.

    Tools that remove names leave files without UIDs, or with one for all; the place of the image
    and its content distinguish those.
    """
    name = item.sop_instance or str(item.path)
    content = (f"{item.echo_time}", *item.discriminators, *item.image_type)
    return name, item.frame, item.instance, item.position, content


def _parallel_groups(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Slices by size and orientation."""
    groups: list[list[Slice]] = []
    for item in slices:
        for group in groups:
            first = group[0]
            same_size = (item.rows, item.columns) == (first.rows, first.columns)
            same_spacing = np.allclose(item.spacing, first.spacing, rtol=1e-3)
            if same_size and same_spacing and same_orientation(item, first):
                group.append(item)
                break
        else:
            groups.append([item])
    return groups


def _repetitions(slices: Sequence[Slice]) -> int:
    """Largest number of slices at one position."""
    return max(Counter(_positions(slices)).values())


def _positions(slices: Sequence[Slice]) -> list[float]:
    """Positions along the normal, equal where slices lie at one place."""
    return np.rint(along_normal(slices) / SAME_POSITION_MM / 2).tolist()


def _split_by_content(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Divide slices that lie at one place by what distinguishes them, in the order of the files.

    Echoes and components are divided always. A few acquisitions or temporal positions are divided
    if each is complete then; many remain together and are recognized as a time series.
    """
    groups = _grouped(slices, lambda item: (_component(item), _echo(item)))
    volumes: list[list[Slice]] = []
    for group in groups:
        volumes.extend(_split_repetitions(group))
    return volumes


def _echo(item: Slice) -> str:
    """What distinguishes echoes: their time, to a tenth of a ms, or else their number."""
    if math.isnan(item.echo_time):
        return item.discriminators[0]
    return f"{item.echo_time:.1f}"


def _split_repetitions(slices: list[Slice]) -> list[list[Slice]]:
    repetitions = _repetitions(slices)
    if not 1 < repetitions <= MAX_REPETITIONS:
        return [slices]
    for position in range(len(slices[0].discriminators)):
        groups = _grouped(slices, _discriminator(position))
        is_complete = len(groups) == repetitions
        if is_complete and all(_repetitions(group) == 1 for group in groups):
            return groups
    return _in_turns(slices, repetitions) or [slices]


def _at_one_position(slices: Sequence[Slice]) -> list[list[Slice]]:
    by_position: dict[float, list[Slice]] = defaultdict(list)
    for item, position in zip(slices, _positions(slices), strict=True):
        by_position[position].append(item)
    return list(by_position.values())


def _in_turns(slices: Sequence[Slice], repetitions: int) -> list[list[Slice]]:
    """Volumes by the numbers of the images: the first at each position, the second, and so on.

    None unless every position has as many, and every image a number of its own.
    """
    numbers = {item.instance for item in slices}
    if len(numbers) != len(slices):
        return []
    if not all(number.isdigit() for number in numbers):
        return []
    groups = _at_one_position(slices)
    if any(len(group) != repetitions for group in groups):
        return []
    volumes: list[list[Slice]] = [[] for _ in range(repetitions)]
    for group in groups:
        # By number: as texts, 10 would come before 9.
        ordered = sorted(group, key=lambda item: int(item.instance))
        for volume, item in zip(volumes, ordered, strict=True):
            volume.append(item)
    return volumes


def _discriminator(position: int) -> Callable[[Slice], object]:
    return lambda item: item.discriminators[position]


def _grouped(slices: Sequence[Slice], key: Callable[[Slice], object]) -> list[list[Slice]]:
    """Slices with the same key together, groups and members in the order of the slices."""
    groups: dict[object, list[Slice]] = defaultdict(list)
    for item in slices:
        groups[key(item)].append(item)
    return list(groups.values())
