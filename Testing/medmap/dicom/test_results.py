"""Results in DICOM refer to their source, hold every voxel, and are standard-conformant."""

from __future__ import annotations

import shutil
import subprocess

import highdicom
import numpy as np
import pydicom
import pytest
from generated_study import write_enhanced

from medmap.diameters import region_diameters
from medmap.dicom.measurement_report import measurement_report
from medmap.dicom.segmentation_object import labels_object, regions_object
from medmap.dicom.study import assign_modalities, choose_study, read_studies
from medmap.metrics import region_masks, region_volumes_ml
from medmap.task import BRATS
from medmap.volume import Grid

BUNDLE = "a-bundle-1.0.0"


def series_of(folder, modality):
    studies, _ = read_studies(folder)
    return assign_modalities(choose_study(studies, None), BRATS).chosen[modality]


def labels_on(series):
    """A tumor of three labels and a second, small lesion."""
    first = series.slices[0]
    labels = np.zeros((first.columns, first.rows, len(series.slices)), np.uint8)
    labels[20:31, 22:34, 15:24] = 2
    labels[22:28, 25:31, 17:22] = 4
    labels[24:26, 27:29, 18:20] = 1
    labels[40, 40, 30] = 2
    return labels


@pytest.fixture(scope="module")
def series(study_folder):
    """An oblique series with thick slices."""
    return series_of(study_folder, "flair")


@pytest.fixture(scope="module")
def labels(series):
    return labels_on(series)


@pytest.fixture(scope="module")
def written(series, labels, tmp_path_factory):
    """The three objects of one result as files, by name."""
    return write_objects(tmp_path_factory.mktemp("objects"), series, labels)


def write_objects(folder, series, labels):
    grid = Grid(labels.shape, series.stack.affine)
    volumes_ml = region_volumes_ml(labels, BRATS, grid.voxel_ml)
    diameters = region_diameters(labels, BRATS, grid)
    regions = regions_object(labels, BRATS, series, BUNDLE)
    objects = {
        "segmentation": labels_object(labels, BRATS, series, BUNDLE),
        "regions": regions,
        "measurements": measurement_report(regions, volumes_ml, diameters, BRATS, series, BUNDLE),
    }
    paths = {}
    for name, content in objects.items():
        paths[name] = folder / f"{name}.dcm"
        content.save_as(paths[name])
    return paths


def read_segments(path, series):
    """[segments, columns, rows, slices] bool, read back by highdicom through the source images."""
    segmentation = highdicom.seg.segread(path)
    instances = [item.sop_instance for item in series.slices]
    if len(set(instances)) > 1:
        pixels = segmentation.get_pixels_by_source_instance(
            instances, assert_missing_frames_are_empty=True
        )
    else:
        frames = [item.frame + 1 for item in series.slices]
        pixels = segmentation.get_pixels_by_source_frame(
            instances[0], frames, assert_missing_frames_are_empty=True
        )
    return pixels.transpose(3, 2, 1, 0).astype(bool)


def test_every_voxel_is_read_back(written, series, labels):
    segments = read_segments(written["segmentation"], series)
    for label, mask in zip(BRATS.labels, segments, strict=True):
        np.testing.assert_array_equal(mask, labels == label.value)


def test_regions_are_read_back(written, series, labels):
    segments = read_segments(written["regions"], series)
    for mask, expected in zip(segments, region_masks(labels, BRATS).values(), strict=True):
        np.testing.assert_array_equal(mask, expected)


def test_the_frames_of_an_enhanced_source_keep_their_order(tmp_path, scans):
    flair = next(scan for scan in scans if scan.number == 4)
    write_enhanced(tmp_path / "study" / "frames", flair)
    series = series_of(tmp_path / "study", "flair")
    labels = labels_on(series)
    paths = write_objects(tmp_path, series, labels)
    segments = read_segments(paths["segmentation"], series)
    for label, mask in zip(BRATS.labels, segments, strict=True):
        np.testing.assert_array_equal(mask, labels == label.value)


def test_codes_are_those_of_the_panel(written):
    segments = pydicom.dcmread(written["segmentation"]).SegmentSequence
    for label, segment in zip(BRATS.labels, segments, strict=True):
        category = segment.SegmentedPropertyCategoryCodeSequence[0]
        assert (category.CodeValue, category.CodingSchemeDesignator) == ("49755003", "SCT")
        kind = segment.SegmentedPropertyTypeCodeSequence[0]
        assert (kind.CodingSchemeDesignator, kind.CodeValue, kind.CodeMeaning) == (
            label.code.scheme,
            label.code.value,
            label.code.meaning,
        )
        assert segment.AnatomicRegionSequence[0].CodeMeaning == "Brain"


def test_objects_refer_to_the_source_series_and_its_space(written, series):
    source = pydicom.dcmread(series.slices[0].path)
    for name in ("segmentation", "regions"):
        result = pydicom.dcmread(written[name])
        assert result.FrameOfReferenceUID == source.FrameOfReferenceUID
        assert result.StudyInstanceUID == source.StudyInstanceUID
        assert result.PatientID == source.PatientID
        (reference,) = result.ReferencedSeriesSequence
        assert reference.SeriesInstanceUID == source.SeriesInstanceUID
        assert result.SeriesInstanceUID != source.SeriesInstanceUID
    evidence = pydicom.dcmread(written["measurements"]).CurrentRequestedProcedureEvidenceSequence
    series_uids = {
        entry.SeriesInstanceUID for study in evidence for entry in study.ReferencedSeriesSequence
    }
    regions = pydicom.dcmread(written["regions"])
    assert series_uids == {source.SeriesInstanceUID, regions.SeriesInstanceUID}


def test_the_report_holds_volumes_and_diameters_of_each_region(written, series, labels):
    grid = Grid(labels.shape, series.stack.affine)
    volumes_ml = region_volumes_ml(labels, BRATS, grid.voxel_ml)
    diameters = region_diameters(labels, BRATS, grid)
    report = highdicom.sr.srread(written["measurements"])
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert len(groups) == len(BRATS.regions)
    regions_uid = pydicom.dcmread(written["regions"]).SOPInstanceUID
    for number, (region, group) in enumerate(zip(BRATS.regions, groups, strict=True), 1):
        values = {
            item.name.meaning: (item.value, item.unit.value) for item in group.get_measurements()
        }
        assert group.tracking_identifier == region.title
        assert values == {
            "Volume": (pytest.approx(volumes_ml[region.name], abs=1e-3), "cm3"),
            "Long Axis": (pytest.approx(diameters[region.name].axial_mm, abs=1e-3), "mm"),
            "Maximum 3D Diameter of a Mesh": (
                pytest.approx(diameters[region.name].longest_mm, abs=1e-3),
                "mm",
            ),
        }
        reference = group.reference_type
        assert reference.meaning == "Referenced Segment"
        segment = group.referenced_segment[0]
        assert segment.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == regions_uid
        assert segment.ReferencedSOPSequence[0].ReferencedSegmentNumber == number


def test_a_result_without_tumor_is_written(tmp_path, series):
    labels = np.zeros_like(labels_on(series))
    paths = write_objects(tmp_path, series, labels)
    assert not read_segments(paths["segmentation"], series).any()
    check_conformance(paths)


def test_the_same_result_has_the_same_uids(tmp_path, series, labels, written):
    repeated = write_objects(tmp_path, series, labels)
    for name, path in repeated.items():
        one, other = pydicom.dcmread(path), pydicom.dcmread(written[name])
        assert one.SOPInstanceUID == other.SOPInstanceUID
        assert one.SeriesInstanceUID == other.SeriesInstanceUID


def check_conformance(paths):
    """No error by dciodvfy of Debian's dicom3tools, where it is installed (CI has it)."""
    program = shutil.which("dciodvfy")
    if program is None:
        return
    for path in paths.values():
        run = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
        errors = [line for line in run.stderr.splitlines() if line.startswith("Error")]
        assert errors == []
        assert run.returncode == 0


def test_objects_conform_to_the_standard(written):
    check_conformance(written)


def test_the_check_of_conformance_finds_errors(tmp_path, written):
    if shutil.which("dciodvfy") is None:
        return
    damaged = pydicom.dcmread(written["segmentation"])
    del damaged.SegmentSequence
    damaged.save_as(tmp_path / "damaged.dcm")
    with pytest.raises(AssertionError):
        check_conformance({"damaged": tmp_path / "damaged.dcm"})
