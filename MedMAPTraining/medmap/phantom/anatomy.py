"""What every anatomy consists of: tissues, distances, and the methods of an atlas.

A procedural atlas (``procedural.py``) and one from a label map (``labelmap.py``) share the frame of
a template. Its axes are RAS in mm. z = 0 is the height of the anterior commissure, y = 0 the middle
of the brain (MNI's y plus 16), x = 0 the midline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from medmap.phantom.fields import Draw, RegularGrid

WORLD_GRID = RegularGrid((-106.5, -118.5, -106.5), 3.0, (72, 80, 72))
"""The coarse grid in world mm on which placement and tumor growth are computed."""

BROAD_GRID = RegularGrid((-110.0, -121.0, -110.0), 11.0, (21, 23, 21))
"""A coarser grid for fields that vary over many centimeters."""

TISSUES = (
    "csf",
    "ventricle",
    "gm",
    "wm",
    "striatum",
    "pallidum",
    "thalamus",
    "cb_gm",
    "stem",
    "vessel",
    "choroid",
    "wmh",
    "ed",
    "solid",
    "necrosis",
    "blood",
)
"""Rows of tissue fractions: healthy tissue, white-matter hyperintensities, tumor, blood."""

_ROW = {name: row for row, name in enumerate(TISSUES)}


@dataclass(frozen=True)
class HealthyTissue:
    """Tissue at N points, and the distances that lesions need.

    Attributes:
        parts: [len(TISSUES), N] fractions that sum to one.
        hull: [N] mm inside the smooth envelope of the brain.
        ventricle: [N] mm inside the ventricles.
        pial: [N] mm inside the outer surface of gray matter.
    """

    parts: torch.Tensor
    hull: torch.Tensor
    ventricle: torch.Tensor
    pial: torch.Tensor


@dataclass(frozen=True)
class Landmarks:
    """Distances that decide where a tumor may start, [N] in mm.

    Attributes:
        cerebrum: inside the cerebrum.
        ventricle: inside the ventricles.
        sheet: from the falx and the large fissures, where they are known.
    """

    cerebrum: torch.Tensor
    ventricle: torch.Tensor
    sheet: torch.Tensor


class Atlas(Protocol):
    """The anatomy of one case in the template's frame: procedural or from a label map."""

    @property
    def device(self) -> torch.device:
        """The device of its tensors."""

    def landmarks(self, template: torch.Tensor) -> Landmarks:
        """Distances at [3, N] template positions."""

    def hull(self, template: torch.Tensor) -> torch.Tensor:
        """[N] mm inside the smooth envelope of the brain at [3, N] template positions."""

    def side(self, template: torch.Tensor) -> torch.Tensor:
        """[N] mm right of the midline at [3, N] template positions; left is negative."""

    def tissues(
        self, template: torch.Tensor, width: float, squeeze: torch.Tensor | float = 0.0
    ) -> HealthyTissue:
        """Cut the anatomy into healthy tissues.

        Args:
            template: [3, N] template positions.
            width: mm over which a surface is blurred (partial volume): the size of a voxel.
            squeeze: [N] or a number, 0 to 1: how far the mass effect closes sulci.
        """


@dataclass(frozen=True)
class Leukoaraiosis:
    """Age-related white-matter hyperintensities of one case: bright in FLAIR, not tumor.

    Attributes:
        caps: strength of caps and bands along the ventricles.
        haze: strength of a broad haze around the ventricles.
        haze_mm: distance over which the haze fades.
        spot_level: threshold of the random field above which there are spots; low values give many.
    """

    caps: float
    haze: float
    haze_mm: float
    spot_level: float

    def fraction(self, ventricle: torch.Tensor, field: torch.Tensor) -> torch.Tensor:
        """[N] 0 to 1: the affected part of white matter.

        Args:
            ventricle: [N] mm inside the ventricles.
            field: [N] unit-variance field.
        """
        distance = (-ventricle).clamp(min=0.0)
        caps = self.caps * torch.exp(-distance / 2.5)
        caps = caps * (1.0 + 0.4 * field)
        haze = self.haze * torch.exp(-distance / self.haze_mm)
        haze = haze * (1.0 + 0.2 * field)
        periventricular = torch.maximum(caps, haze).clamp(0.0, 1.0)

        # Spots cluster within about 12 mm of the ventricles.
        beyond = (-ventricle - 12.0).clamp(min=0.0)
        proximity = torch.exp(-beyond / 10.0)
        level = field + 0.8 * proximity - self.spot_level
        spots = torch.sigmoid(level / 0.12)
        return torch.maximum(periventricular, spots)


def draw_leukoaraiosis(draw: Draw, age: float) -> Leukoaraiosis:
    """Draw the hyperintensities of a case; ``age`` is 0 (young adult) to 1 (old)."""
    return Leukoaraiosis(
        caps=draw.uniform(0.0, 0.9) * (0.3 + 0.7 * age),
        haze=draw.uniform(0.0, 0.6),
        haze_mm=draw.uniform(5.0, 18.0),
        spot_level=3.6 - 1.9 * age * draw.uniform(),
    )


def paint(parts: torch.Tensor, name: str, weight: torch.Tensor) -> None:
    """Paint a tissue over the others, in place.

    Args:
        parts: [len(TISSUES), N] fractions; they keep summing to one.
        name: one of ``TISSUES``.
        weight: [N] 0 to 1.
    """
    parts.mul_(1.0 - weight)
    parts[_ROW[name]].add_(weight)
