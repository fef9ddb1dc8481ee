"""Brain outside the reference's field of view is stated; the unit of intensities is no matter."""

from __future__ import annotations

import numpy as np
import pytest

from medmap.errors import InputDataError
from medmap.inference import segment
from medmap.preprocess import PreprocessSpec, normalize
from medmap.volume import Volume


def part(volume, first, last):
    """Slices of a volume, where they lie."""
    affine = volume.affine.copy()
    affine[:3, 3] = (affine @ [0, 0, first, 1])[:3]
    return Volume(np.ascontiguousarray(volume.array[:, :, first:last]), affine, volume.name)


def coverage(volumes, bundle, **options):
    result = segment(volumes, bundle, device="cpu", **options)
    return [finding for finding in result.findings if finding.check == "coverage"]


def test_brain_outside_the_reference_is_a_warning_with_a_way_out(volumes, tiny_bundle):
    scans = {"t1ce": part(volumes["t1ce"], 12, 24), "flair": volumes["flair"]}
    (finding,) = coverage(scans, tiny_bundle)
    assert finding.level == "warning"
    inside = np.count_nonzero(scans["flair"].foreground[:, :, 12:24])
    outside = 1 - inside / np.count_nonzero(scans["flair"].foreground)
    assert f"({outside:.0%})" in finding.message
    assert "T1ce ends before the brain does" in finding.message
    assert finding.modalities == ("t1ce", "flair")
    assert not coverage(scans, tiny_bundle, reference="flair")


def test_scans_that_cover_the_same_brain_are_no_warning(volumes, tiny_bundle):
    assert not coverage(volumes, tiny_bundle)
    # Padding of zeros around one of them covers no brain.
    padded = np.pad(volumes["flair"].array, 4)
    affine = volumes["flair"].affine.copy()
    affine[:3, 3] = (affine @ [-4, -4, -4, 1])[:3]
    scans = {"t1ce": volumes["t1ce"], "flair": Volume(padded, affine, "flair")}
    assert not coverage(scans, tiny_bundle)


@pytest.mark.parametrize("exponent", [-40, -30, 20])
def test_the_unit_of_the_intensities_does_not_matter(volumes, tiny_bundle, exponent):
    scaled = {}
    for name in ("t1ce", "flair"):
        volume = volumes[name]
        # A power of two changes no digit: every comparison and ratio stays the same.
        array = volume.array * np.float32(2.0**exponent)
        scaled[name] = Volume(array, volume.affine, name)
    plain = {name: volumes[name] for name in scaled}
    expected = segment(plain, tiny_bundle, device="cpu").labels
    labels = segment(scaled, tiny_bundle, device="cpu").labels
    assert np.array_equal(labels, expected)


def test_a_scan_without_contrast_is_named():
    array = np.full((4, 4, 4), 7.0, np.float32)
    with pytest.raises(InputDataError, match=r"flair\.nii has no contrast"):
        normalize(array, array > 0, PreprocessSpec(), title="flair.nii")
