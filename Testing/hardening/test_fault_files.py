"""Faults of files, geometry and intensities, rows 1 to 42 of the fault table: the sentence, the
exit code, no harm."""

from __future__ import annotations

import os
import re
import shutil

import nibabel as nib
import numpy as np
import pytest

SHAPE = (40, 48, 36)


def dims(*sizes):
    return [len(sizes), *sizes] + [1] * (7 - len(sizes))


def scaled(factor):
    return lambda array, affine: (array, affine @ np.diag([factor, factor, factor, 1.0]))


def with_value(value, count):
    def change(array, affine):
        array = array.astype(np.float32, order="C")
        array.reshape(-1)[np.linspace(0, array.size - 1, count).astype(int)] = value
        return array, affine

    return change


def bad_crc(scans):
    data = scans.path("t1").read_bytes()
    scans.path("t1").write_bytes(data[:-8] + bytes(4) + data[-4:])


def cut(scans, suffix):
    if suffix == ".nii":
        data = scans.raw()
        scans.put("t1", data[: len(data) // 2])
    else:
        data = scans.path("t1").read_bytes()
        scans.path("t1").write_bytes(data[: len(data) // 2])


def oblique(array, affine):
    turn = np.eye(4)
    turn[:2, :2] = [[0.9, -np.sqrt(0.19)], [np.sqrt(0.19), 0.9]]
    return array, turn @ affine


def moved_qform(scans):
    scans.patch(qform_code=1, sform_code=2, qoffset_x=64.0)


def sheared(scans):
    scans.patch(srow_x=[-2.0, 0.6, 0, 39], qform_code=0)


def complex_voxels(scans):
    scans.put(
        "t1",
        nib.Nifti1Image(scans.image().get_fdata().astype(np.complex64), None).to_bytes(),
        ".nii",
    )


def no_space(scans):
    scans.patch(qform_code=0, sform_code=0)


def smaller(scans):
    scans.rewrite("t2", lambda array, affine: (array[:, :, ::2], affine @ np.diag([1, 1, 2.0, 1])))


def shifted(scans):
    def aside(array, affine):
        affine[0, 3] += 3
        return array, affine

    scans.rewrite("t2", aside)


def far_apart(scans):
    def away(array, affine):
        affine[0, 3] += 500
        return array, affine

    scans.rewrite("t2", away)


def with_skull(scans):
    air = np.random.default_rng(0).integers(1, 60, SHAPE).astype(np.int16)
    scans.rewrite("t1", lambda array, affine: (np.where(array == 0, air, array), affine))


def vanished(scans):
    scans.path("t1").unlink()


def folder_instead(scans):
    path = scans.path("t1")
    path.unlink()
    path.mkdir()


# number in the table: (what is done to the files, exit code, words of the error or of the warning),
# given as t1 alone or with t2 where two scans matter.
FAULTS = {
    "1 missing": (vanished, 66, "cannot read"),
    "1 folder": (folder_instead, 66, "is a folder"),
    "2 empty": (lambda s: s.path("t1").write_bytes(b""), 65, r"is empty \(0 bytes\)"),
    "3 text": (lambda s: s.put("t1", b"no image " * 99), 65, "not a NIfTI file"),
    "4 header cut": (lambda s: s.put("t1", s.raw()[:200]), 65, "header is 200 of 348 bytes"),
    "5 data cut": (lambda s: cut(s, ".nii"), 65, "truncated: its header describes"),
    "6 gz cut": (lambda s: cut(s, ".nii.gz"), 65, "truncated"),
    "7 CRC": (bad_crc, 65, r"damaged \(CRC\)"),
    "8 gz named nii": (
        lambda s: s.put("t1", s.raw(), ".nii", packed=True),
        65,
        "its name says otherwise",
    ),
    "8 nii named gz": (
        lambda s: s.put("t1", s.raw(), ".nii.gz", packed=False),
        65,
        "its name says otherwise",
    ),
    "10 magic": (lambda s: s.patch(magic=b"abc"), 65, "lacks the NIfTI mark"),
    "11 size 0": (lambda s: s.patch(dim=dims(40, 0, 36)), 65, "size along axis 1 is 0"),
    "11 no axes": (lambda s: s.patch(dim=dims()), 65, "gives 0 dimensions"),
    "12 negative": (lambda s: s.patch(dim=dims(40, -48, 36)), 65, "size along axis 1 is -48"),
    "13 header bomb": (lambda s: s.patch(dim=dims(32767, 32767, 32767)), 65, "voxels"),
    "14 gzip bomb": (
        lambda s: s.put("t1", s.raw() + bytes(10**7), ".nii.gz"),
        65,
        "longer than the",
    ),
    "15 complex": (complex_voxels, 65, "complex64 is not"),
    "15 RGB": (lambda s: s.patch(datatype=128, bitpix=24), 65, "RGB24 is not"),
    "16 NIfTI-2": (lambda s: s.rewrite("t1", lambda a, m: (a, m), nib.Nifti2Image), 0, ""),
    "17 one slice": (lambda s: s.rewrite("t1", lambda a, m: (a[:, :, 18:19], m)), 65, "3-D"),
    "17 two axes": (
        lambda s: s.rewrite("t1", lambda a, m: (a[:, :, 18], m)),
        65,
        "3-D|2 dimensions",
    ),
    "18 one frame": (
        lambda s: s.rewrite("t1", lambda a, m: (a[..., None], m)),
        0,
        "read as one 3-D volume",
    ),
    "19 frames": (
        lambda s: s.rewrite("t1", lambda a, m: (np.stack([a, a], -1), m)),
        65,
        "40 x 48 x 36 x 2",
    ),
    "20 tiny": (
        lambda s: s.rewrite("t1", lambda a, m: (a[18:21, 22:25, 17:20], m)),
        0,
        "ml of brain",
    ),
    "21 few NaN": (
        lambda s: s.rewrite("t1", with_value(np.nan, 40)),
        0,
        r"40 voxels \(0.06%\) are NaN",
    ),
    "21 many NaN": (
        lambda s: s.rewrite("t1", with_value(np.inf, 4000)),
        65,
        r"4000 voxels \(5.8%\) are NaN",
    ),
    "22 all NaN": (
        lambda s: s.rewrite("t1", lambda a, m: (np.full(SHAPE, np.nan, np.float32), m)),
        65,
        "every voxel",
    ),
    "23 zero": (
        lambda s: s.rewrite("t1", lambda a, m: (a * 0, m)),
        65,
        "no contrast: every voxel is 0",
    ),
    "23 constant": (
        lambda s: s.rewrite("t1", lambda a, m: (a * 0 + 7, m)),
        65,
        "no contrast: every voxel is 7",
    ),
    "24 flat brain": (
        lambda s: s.rewrite("t1", lambda a, m: (np.int16(9) * (a > 0), m)),
        65,
        "no contrast within the brain",
    ),
    "25 slope NaN": (
        lambda s: s.patch(scl_slope=np.nan, scl_inter=3),
        0,
        "makes no sense and was ignored",
    ),
    "25 slope Inf": (
        lambda s: s.patch(scl_slope=np.inf, scl_inter=0),
        0,
        "makes no sense and was ignored",
    ),
    "26 1e33": (lambda s: s.patch(scl_slope=1e33, scl_inter=0), 65, "intensities reach"),
    "27 NaN sform": (lambda s: s.patch(srow_x=[np.nan, 0, 0, 0], qform_code=0), 65, "not finite"),
    "27 singular": (
        lambda s: s.patch(srow_x=[0, -2.0, 0, 39], qform_code=0),
        65,
        "singular|no extent|sheared",
    ),
    "27 zero": (
        lambda s: s.patch(srow_x=[0] * 4, srow_y=[0] * 4, srow_z=[0] * 4, qform_code=0),
        65,
        "no extent",
    ),
    "28 shear": (sheared, 65, "sheared"),
    "29 sform qform": (moved_qform, 65, "sform and qform place it up to"),
    "30 no orientation": (no_space, 65, "does not say how it lies in space"),
    "31 pixdim": (
        lambda s: s.patch(pixdim=[1, 3, 3, 3, 1, 1, 1, 1], qform_code=0),
        65,
        "by pixdim",
    ),
    "32 pixdim 0": (
        lambda s: s.patch(pixdim=[1, 0, 2, 2, 1, 1, 1, 1]),
        65,
        "voxel size in the header is 0",
    ),
    "32 pixdim -2": (
        lambda s: s.patch(pixdim=[1, -2, 2, 2, 1, 1, 1, 1]),
        65,
        "voxel size in the header is -2",
    ),
    "33 micrometers": (lambda s: s.patch(xyzt_units=3), 65, "in micrometers"),
    "33 voxels of 0.02 mm": (lambda s: s.rewrite("t1", scaled(0.01)), 65, "0.2 to 30 mm"),
    "34 oblique": (lambda s: s.rewrite("t1", oblique), 0, ""),
    "34 int64": (
        lambda s: s.put(
            "t1",
            nib.Nifti1Image(
                np.asarray(s.image().dataobj, np.int64), s.image().affine, dtype="int64"
            ).to_bytes(),
        ),
        0,
        "",
    ),
    "41 skull": (with_skull, 0, "does not look skull-stripped"),
}
PAIRS = {
    "35 other shape": (smaller, 0, "different grids"),
    "36 other place": (shifted, 0, "different grids"),
    "36 far apart": (far_apart, 65, "overlap"),
    "37 same image": (
        lambda s: shutil.copy(s.path("t1"), s.path("t2")),
        65,
        "t1 and t2 are the same image",
    ),
}


def judged(ran, output, code, words):
    assert ran.code == code, ran.err
    assert "Traceback" not in ran.err + ran.out
    assert re.search(words, " ".join((ran.error if code else ran.err).split())), ran.err
    if code:
        assert sum(line.startswith(("error: ", "fix: ")) for line in ran.err.splitlines()) == 2, (
            ran.err
        )
        assert not output.exists()
    else:
        # Scans that lie apart are aligned first, which leaves a picture.
        assert {p.name for p in output.iterdir()} - {"preparation.png"} == {
            "segmentation.nii.gz",
            "overlay.png",
            "report.json",
        }


@pytest.mark.parametrize("row", FAULTS)
def test_one_scan(row, scans, cli, tmp_path, tiny_bundle_path):
    damage, code, words = FAULTS[row]
    damage(scans)
    path = next(scans.folder.glob("t1.nii*"), scans.folder / "t1.nii.gz")
    before = scans.hashes() if path.is_file() else None
    ran = cli(
        "segment",
        "--t1",
        path,
        "-o",
        tmp_path / "out",
        "--bundle",
        tiny_bundle_path,
        "--device",
        "cpu",
        "--prepare",
        "never" if row == "41 skull" else "auto",
    )
    judged(ran, tmp_path / "out", code, words)
    assert before is None or scans.hashes() == before


@pytest.mark.parametrize("row", PAIRS)
def test_two_scans(row, scans, cli, tmp_path, tiny_bundle_path):
    damage, code, words = PAIRS[row]
    damage(scans)
    before = scans.hashes()
    given = ["--t1", scans.path("t1"), "--t2", scans.path("t2")]
    ran = cli(
        "segment", *given, "-o", tmp_path / "out", "--bundle", tiny_bundle_path, "--device", "cpu"
    )
    judged(ran, tmp_path / "out", code, words)
    assert scans.hashes() == before


def test_1_a_file_without_permission(scans, cli, tmp_path, tiny_bundle_path, monkeypatch):
    def denied(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(
        "medmap.io.nifti_bytes.open", denied, raising=False
    )  # root may read everything
    ran = cli(
        "segment", "--t1", scans.path("t1"), "-o", tmp_path / "out", "--bundle", tiny_bundle_path
    )
    judged(ran, tmp_path / "out", 66, "Permission denied")


@pytest.mark.parametrize("which", ["sform", "qform"])
def test_29_the_user_may_decide(which, scans, cli, tmp_path, tiny_bundle_path):
    moved_qform(scans)
    given = ["--t1", scans.path("t1"), "--affine", which]
    ran = cli(
        "segment", *given, "-o", tmp_path / "out", "--bundle", tiny_bundle_path, "--device", "cpu"
    )
    judged(ran, tmp_path / "out", 0, "")
    assert f"{which}, as chosen" in (tmp_path / "out/report.json").read_text()


def test_30_the_user_may_assume_an_orientation(scans, cli, tmp_path, tiny_bundle_path):
    no_space(scans)
    given = ["--t1", scans.path("t1"), "--assume-orientation"]
    ran = cli(
        "segment", *given, "-o", tmp_path / "out", "--bundle", tiny_bundle_path, "--device", "cpu"
    )
    judged(ran, tmp_path / "out", 0, "does not say how it lies in space; assumed")


def test_39_no_scan_at_all(cli, tmp_path):
    judged(cli("segment", "-o", tmp_path / "out"), tmp_path / "out", 2, "No modality was given")


@pytest.mark.parametrize(("value", "code"), [(3, 0), (4, 0), (9, 65), (0.5, 65)])
def test_42_reference_labels_of_two_conventions_and_no_others(
    value, code, scans, cli, tmp_path, tiny_bundle_path
):
    def changed(array, affine):
        array = array.astype(np.float32)
        array[22:24, 20:22, 16:18] = value
        return array, affine

    scans.rewrite("seg", changed)
    given = ["--t1", scans.path("t1"), "--truth", scans.path("seg")]
    ran = cli(
        "segment", *given, "-o", tmp_path / "out", "--bundle", tiny_bundle_path, "--device", "cpu"
    )
    judged(ran, tmp_path / "out", code, "" if code == 0 else "fractions|9")


def test_58_a_name_with_umlauts_and_spaces_works(scans, cli, tmp_path, tiny_bundle_path):
    odd = scans.folder / "Müller, T1 – σ.nii.gz"
    os.rename(scans.path("t1"), odd)
    output = tmp_path / "Ergebnis für Ωmega"
    ran = cli("segment", "--t1", odd, "-o", output, "--bundle", tiny_bundle_path, "--device", "cpu")
    judged(ran, output, 0, "")
