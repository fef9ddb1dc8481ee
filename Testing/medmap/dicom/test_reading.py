"""Series are read as they were written, whatever the files are called and however compressed."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from generated_study import (
    IDENTIFIER,
    NAME,
    Scan,
    grid_affine,
    write_enhanced,
    write_series,
)
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless, generate_uid

from medmap.dicom.pixels import read_volume
from medmap.dicom.series import series_of
from medmap.dicom.study import assign_modalities, choose_study, read_studies
from medmap.errors import InputDataError, MissingInputError, UnavailableError, UsageError
from medmap.task import BRATS


def scan(**changes) -> Scan:
    """A small scan: 16 x 20 pixels, 10 slices, oblique."""
    rng = np.random.default_rng(3)
    array = rng.uniform(0, 900, (16, 20, 10))
    affine = grid_affine(array.shape, (1.5, 2.0, 4.0), (3.0, -5.0, 8.0), (10.0, 20.0))
    given = {"number": 5, "description": "AX T1", "array": array, "affine": affine}
    return Scan(**(given | changes))


def only_study(folder):
    studies, _ = read_studies(folder)
    return choose_study(studies, None)


def only_series(folder):
    (series,) = only_study(folder).series
    return series


def check_equal(volume, written):
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array, written.array, atol=written.array.max() / 4000)
    np.testing.assert_allclose(volume.affine, written.affine, atol=1e-4)


def test_a_series_is_read_as_it_was_written(tmp_path):
    written = scan()
    write_series(tmp_path, written)
    volume = read_volume(only_series(tmp_path))
    check_equal(volume, written)
    assert volume.name == "series 5"


@pytest.mark.parametrize("plane", ["axial", "sagittal", "coronal"])
@pytest.mark.parametrize("degrees", [(0, 0), (25, -15)])
def test_every_plane_and_obliqueness_keeps_its_place(tmp_path, plane, degrees):
    array = np.zeros((16, 20, 10))
    array[3, 7, 2] = 100.0
    affine = grid_affine(array.shape, (1.5, 2.0, 4.0), (3, -5, 8), degrees, plane)
    write_series(tmp_path, scan(array=array, affine=affine))
    volume = read_volume(only_series(tmp_path))
    place = volume.affine @ [*np.unravel_index(volume.array.argmax(), volume.array.shape), 1]
    np.testing.assert_allclose(place, affine @ [3, 7, 2, 1], atol=1e-3)


def test_names_and_endings_do_not_matter(tmp_path):
    written = scan()
    paths = write_series(tmp_path / "a", written, ending="")
    for number, path in enumerate(reversed(paths)):
        folder = tmp_path / f"{number % 3}"
        folder.mkdir(exist_ok=True)
        path.rename(folder / f"{number:08X}")
    (tmp_path / "notes.txt").write_text("not DICOM")
    (tmp_path / "._IM0001.dcm").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "empty.dcm").touch()
    check_equal(read_volume(only_series(tmp_path)), written)


def test_files_without_a_preamble_are_read(tmp_path):
    written = scan()
    for path in write_series(tmp_path, written):
        content = path.read_bytes()
        dataset = pydicom.dcmread(path)
        # Implicit little endian is what files without a preamble have.
        del dataset.file_meta
        dataset.preamble = None
        path.unlink()
        bare = path.with_suffix("")
        dataset.save_as(bare, implicit_vr=True, little_endian=True, enforce_file_format=False)
        assert bare.read_bytes()[128:132] != b"DICM"
        assert len(content) > 0
    check_equal(read_volume(only_series(tmp_path)), written)


def test_an_enhanced_file_is_read_like_a_classic_series(tmp_path):
    written = scan()
    write_enhanced(tmp_path / "frames", written)
    check_equal(read_volume(only_series(tmp_path)), written)


@pytest.mark.parametrize("syntax", ["rle", "jpeg-ls", "jpeg2000", "jpeg-lossless"])
def test_compressed_series_are_decoded_exactly(tmp_path, syntax):
    written = scan()
    plain = write_series(tmp_path / "plain", written)
    stored = np.stack([pydicom.dcmread(path).pixel_array for path in plain])
    for path in plain:
        compress(path, syntax)
    decoded = np.stack([pydicom.dcmread(path).pixel_array for path in plain])
    np.testing.assert_array_equal(decoded, stored)
    assert pydicom.dcmread(plain[0]).file_meta.TransferSyntaxUID.is_compressed
    check_equal(read_volume(only_series(tmp_path / "plain")), written)


def compress(path, syntax):
    uid = {"rle": RLELossless, "jpeg-ls": JPEGLSLossless}.get(syntax)
    if uid is not None:
        dataset = pydicom.dcmread(path)
        dataset.compress(uid, generate_instance_uid=False)
        dataset.save_as(path)
        return
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    kind = gdcm.TransferSyntax.JPEGLosslessProcess14_1
    if syntax == "jpeg2000":
        kind = gdcm.TransferSyntax.JPEG2000Lossless
    change.SetTransferSyntax(gdcm.TransferSyntax(kind))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    if syntax == "jpeg2000":
        assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == JPEG2000Lossless


def test_a_compression_without_decoder_is_named(tmp_path):
    for path in write_series(tmp_path, scan()):
        dataset = pydicom.dcmread(path)
        # High-throughput JPEG 2000.
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.201"
        dataset.PixelData = pydicom.encaps.encapsulate([b"\0" * 64])
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(path)
    with pytest.raises(UnavailableError) as caught:
        read_volume(only_series(tmp_path))
    assert "High-Throughput JPEG 2000" in caught.value.cause
    assert "without compression" in caught.value.remedy


def test_truncated_pixels_are_refused(tmp_path):
    paths = write_series(tmp_path, scan())
    paths[4].write_bytes(paths[4].read_bytes()[:-200])
    with pytest.raises(InputDataError, match="Series 5: the pixels of a file are damaged"):
        read_volume(only_series(tmp_path))


# Why a series is no volume.


def reason(folder) -> str:
    return only_series(folder).unusable


def test_a_missing_slice_is_named(tmp_path):
    paths = write_series(tmp_path, scan())
    paths[4].unlink()
    assert reason(tmp_path) == "a slice is missing"
    paths[5].unlink()
    assert reason(tmp_path) == "2 slices are missing"


def test_uneven_slices_are_named(tmp_path):
    paths = write_series(tmp_path, scan())
    dataset = pydicom.dcmread(paths[4])
    step = np.subtract(pydicom.dcmread(paths[5]).ImagePositionPatient, dataset.ImagePositionPatient)
    moved = np.array(dataset.ImagePositionPatient, float) + 0.3 * step
    dataset.ImagePositionPatient = [float(value) for value in moved]
    dataset.save_as(paths[4])
    assert reason(tmp_path) == "its slices lie 2.80 to 5.20 mm apart"


def test_rounded_positions_are_no_uneven_slices(tmp_path):
    for path in write_series(tmp_path, scan()):
        dataset = pydicom.dcmread(path)
        dataset.ImagePositionPatient = [round(float(v), 1) for v in dataset.ImagePositionPatient]
        dataset.save_as(path)
    assert reason(tmp_path) == ""


def test_mixed_orientations_are_named(tmp_path):
    uid = generate_uid()
    for number, plane in enumerate(("axial", "sagittal", "coronal")):
        affine = grid_affine((16, 20, 10), (1.5, 2.0, 4.0), plane=plane)
        write_series(tmp_path / str(number), scan(affine=affine, series_uid=uid))
    assert reason(tmp_path) == "its slices lie in 3 orientations"


def test_one_other_slice_is_left_out_and_mentioned(tmp_path):
    written = scan()
    write_series(tmp_path / "a", written)
    extra = replace(scan(series_uid=written.series_uid), array=np.ones((24, 24, 1)))
    write_series(tmp_path / "b", extra)
    volume = read_volume(only_series(tmp_path), "T1")
    check_equal(volume, written)
    (note,) = volume.notes
    assert note.message == ("T1 (series 5): 1 slice of another size or orientation left out.")


def test_files_that_are_there_twice_are_read_once(tmp_path):
    written = scan()
    paths = write_series(tmp_path / "a", written)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert len(paths) == 10
    volume = read_volume(only_series(tmp_path), "T1")
    check_equal(volume, written)
    assert "10 slices present twice" in volume.notes[0].message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sequence": ("EP",)}, "an echo-planar series"),
        ({"image_type": ("ORIGINAL", "PRIMARY", "M", "MOSAIC")}, "a mosaic"),
        ({"image_type": ("DERIVED", "PRIMARY", "ADC", "ND")}, "diffusion imaging"),
        ({"image_type": ("DERIVED", "SECONDARY", "PROJECTION IMAGE")}, "a projection"),
        ({"image_type": ("ORIGINAL", "PRIMARY", "P", "ND")}, "its voxels are the phase"),
        ({"extra": {"SamplesPerPixel": 3}}, "a color image"),
    ],
)
def test_what_is_no_anatomical_volume_is_named(tmp_path, changes, expected):
    write_series(tmp_path, scan(**changes))
    assert reason(tmp_path).startswith(expected)


def test_a_time_series_is_named(tmp_path):
    uid = generate_uid()
    for number in range(6):
        write_series(tmp_path / str(number), scan(series_uid=uid))
    assert reason(tmp_path) == "it holds 6 images at one place, as a time series does"


def test_documents_are_named(tmp_path):
    (path, *others) = write_series(tmp_path, scan())
    for other in others:
        other.unlink()
    dataset = pydicom.dcmread(path)
    for keyword in ("Rows", "Columns", "PixelData"):
        delattr(dataset, keyword)
    dataset.Modality = "SR"
    dataset.save_as(path)
    assert reason(tmp_path) == "a structured report"


def test_two_echoes_are_two_volumes(tmp_path):
    uid = generate_uid()
    for letter, echo_time in (("a", 20.0), ("b", 90.0)):
        timing = (4000.0, echo_time, None)
        write_series(tmp_path / letter, scan(timing=timing, series_uid=uid, description="PD T2"))
    study = only_study(tmp_path)
    assert [series.key for series in study.series] == ["5a", "5b"]
    assert [series.header.echo_time for series in study.series] == [20.0, 90.0]
    chosen = assign_modalities(study, BRATS, {"t2": "5b"}).chosen
    assert list(chosen) == ["t2"]


# Several studies, several patients.


def two_visits(tmp_path):
    write_series(tmp_path / "visit1", scan())
    later = scan(date="20240326", study_uid="1.2.3.4", series_uid=generate_uid())
    write_series(tmp_path / "visit2", later)
    studies, _ = read_studies(tmp_path)
    return studies


def test_several_studies_are_asked_for_and_never_mixed(tmp_path):
    studies = two_visits(tmp_path)
    with pytest.raises(InputDataError) as caught:
        choose_study(studies, None)
    assert caught.value.cause == (
        "The folder holds 2 studies: 1 (the first, 1 series), 2 (84 days later, 1 series)."
    )
    assert choose_study(studies, 2) is studies[1]
    with pytest.raises(UsageError, match="There is no study 3"):
        choose_study(studies, 3)


def test_names_of_studies_tell_neither_patient_nor_date(tmp_path):
    for study in two_visits(tmp_path):
        for secret in ("Mustermann", IDENTIFIER, "2024"):
            assert secret not in study.identifier


def test_series_of_one_date_are_one_study_whatever_their_study_uids(tmp_path):
    write_series(tmp_path / "a", scan())
    write_series(tmp_path / "b", scan(number=6, study_uid="9.8.7", series_uid=generate_uid()))
    studies, _ = read_studies(tmp_path)
    assert len(studies) == 1
    assert len(studies[0].series) == 2


def test_patients_are_kept_apart(tmp_path):
    write_series(tmp_path / "a", scan())
    other = scan(patient=("Other^Person", "PID2"), study_uid="9.8.7", series_uid=generate_uid())
    write_series(tmp_path / "b", other)
    studies, _ = read_studies(tmp_path)
    assert len(studies) == 2


def test_names_in_descriptions_are_left_out(tmp_path):
    write_series(tmp_path, scan(description="AX T1 Mustermann, Erika by arzt PID4711"))
    description = only_series(tmp_path).header.description
    assert description == "AX T1 … … by … …"
    assert NAME.split("^")[0] not in description


def test_a_folder_without_dicom_is_refused_without_its_name(tmp_path):
    folder = tmp_path / "Mustermann_Erika"
    folder.mkdir()
    (folder / "notes.txt").write_text("nothing")
    with pytest.raises(MissingInputError) as caught:
        read_studies(folder)
    assert "Mustermann" not in str(caught.value)


def test_what_a_dicomdir_misses_is_counted(tmp_path):
    from pydicom.fileset import FileSet

    paths = write_series(tmp_path / "source", scan())
    fileset = FileSet()
    for path in paths:
        fileset.add(path)
    fileset.write(tmp_path / "disc")
    shutil.rmtree(tmp_path / "source")
    studies, remarks = read_studies(tmp_path / "disc")
    assert remarks == []
    assert len(studies[0].series[0].slices) == 10
    images = [p for p in (tmp_path / "disc").rglob("*") if p.is_file() and p.name != "DICOMDIR"]
    images[0].unlink()
    _, remarks = read_studies(tmp_path / "disc")
    assert remarks == ["Files that the DICOMDIR lists and that are missing: 1."]


def test_damaged_headers_are_counted_and_passed_over(tmp_path):
    paths = write_series(tmp_path, scan())
    content = bytearray(paths[0].read_bytes())
    content[200:] = b"\xff" * 40
    paths[0].write_bytes(content)
    _, remarks = read_studies(tmp_path)
    assert len(remarks) <= 1


def test_series_with_one_number_keep_names_of_their_own(tmp_path):
    write_series(tmp_path / "a", scan())
    write_series(tmp_path / "b", scan(series_uid=generate_uid()))
    assert [series.key for series in only_study(tmp_path).series] == ["5", "5.2"]


def test_no_headers_make_no_series():
    assert series_of([]) == []
