"""Which parts of a network's output are excluded: what a bundle says about post-processing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from medmap.errors import BundleError

_EARLIER_FIELDS = {
    "island_ml": "min_component_ml",
    "island_share": "min_component_fraction",
    "small_regions": "min_region_multiple",
}
"""Names of the fields in bundles and recipes of before version 0.2; both are read."""


@dataclass(frozen=True)
class PostprocessSpec:
    """What is done to a network's output; stored in the bundle.

    Attributes:
        min_component_ml: connected components of tumor smaller than this, in ml, are excluded ...
        min_component_fraction: ... if they are also smaller than this share of the largest
            component. 0 excludes nothing: a small lesion that stands alone is never excluded.
        min_region_multiple: a region of less than this multiple of the task's minimum volume
            (``Region.min_volume_mm3``) counts as absent, and its voxels get the next most probable
            class: 0.4 is 200 mm³ for ET, as in the winning entry of BraTS 2020 (Isensee et al.,
            arXiv 2011.00848, section 3.3). 0 keeps every region.
        by_region: decide region by region instead of taking the most probable class
            (``medmap.postprocess.decoding.decode_by_region``), for tasks with nested regions.
    """

    min_component_ml: float = 0.0
    min_component_fraction: float = 0.0
    min_region_multiple: float = 0.0
    by_region: bool = False

    def to_dict(self) -> dict:
        """Plain JSON-ready form; ``by_region`` only where it is used, for earlier readers."""
        data = asdict(self)
        if not self.by_region:
            del data["by_region"]
        return data

    @staticmethod
    def from_dict(data: Mapping) -> PostprocessSpec:
        """Rebuild; raises BundleError for unknown keys, since an unknown step cannot be honored."""
        try:
            named = current_postprocess(data)
            by_region = bool(named.pop("by_region", False))
            numbers = {key: float(value) for key, value in named.items()}
            return PostprocessSpec(**numbers, by_region=by_region)
        except (TypeError, ValueError) as error:
            raise BundleError(
                f"Invalid post-processing in the bundle's metadata ({error}).",
                "Use a newer MedMAP or export it again.",
            ) from error


def current_postprocess(data: Mapping) -> dict:
    """Plain data of a ``PostprocessSpec`` under the field names of today."""
    return {_EARLIER_FIELDS.get(key, key): value for key, value in data.items()}


def earlier_postprocess(data: Mapping) -> dict:
    """The plain form of a ``PostprocessSpec`` under the field names of before version 0.2."""
    current_names = {current: earlier for earlier, current in _EARLIER_FIELDS.items()}
    return {current_names.get(key, key): value for key, value in data.items()}


@dataclass(frozen=True)
class ConfidenceSpec:
    """Confidence thresholds of a bundle; stored in it.

    The confidence of a connected component is the 90th percentile, over its voxels, of the
    probability of any tumor class.

    Attributes:
        minimum: by modality subset (``Task.subset_key``), the confidence below which a component is
            excluded from the result; subsets that are not named have no threshold.
    """

    minimum: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """Plain JSON-ready form."""
        return {"minimum": dict(self.minimum)}

    @staticmethod
    def from_dict(data: Mapping) -> ConfidenceSpec:
        """Rebuild; raises BundleError for unknown fields: an unknown step cannot be honored.

        Bundles of before version 0.2 spell the key ``least``.
        """
        try:
            unknown = set(data) - {"minimum", "least"}
            if unknown:
                raise TypeError(f"unknown key {', '.join(sorted(unknown))}")
            thresholds = dict(data.get("minimum", data.get("least", {})))
            return ConfidenceSpec({str(key): float(value) for key, value in thresholds.items()})
        except (TypeError, ValueError) as error:
            raise BundleError(
                f"Invalid confidence thresholds in the bundle's metadata ({error}).",
                "Use a newer MedMAP or export it again.",
            ) from error


@dataclass(frozen=True)
class OffsetSpec:
    """What is added to a network's logits where classes are decided; stored in the bundle.

    The most probable labels are not those with the largest expected Dice: of a region that cannot
    be seen well, less probable voxels belong to the best label map, too. Constants that are added
    to the logits of the classes move the decision: logit adjustment (Menon et al., ICLR 2021, arXiv
    2007.07314, Eq. 9). Probabilities, uncertainty and confidence stay the network's own.

    Attributes:
        by_subset: modality subset (``Task.subset_key``) -> name of a label -> what is added to its
            logit. What is not named gets nothing.
    """

    by_subset: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """Plain JSON-ready form."""
        return {key: dict(offsets) for key, offsets in self.by_subset.items()}

    @staticmethod
    def from_dict(data: Mapping) -> OffsetSpec:
        """Rebuild; raises BundleError for what is no finite number: it would decide everything."""
        by_subset = {}
        try:
            for key, offsets in data.items():
                numbers = {str(name): float(value) for name, value in offsets.items()}
                if not all(math.isfinite(number) for number in numbers.values()):
                    raise ValueError(f"an offset of {key} is not finite")
                by_subset[str(key)] = numbers
        except (TypeError, ValueError, AttributeError) as error:
            raise BundleError(
                f"Invalid logit offsets in the bundle's metadata ({error}).",
                "Use a newer MedMAP or export it again.",
            ) from error
        return OffsetSpec(by_subset)


NO_POSTPROCESSING = PostprocessSpec()

NO_THRESHOLDS = ConfidenceSpec()

NO_OFFSETS = OffsetSpec()
