"""One file through our reader and through Slicer's own: every voxel lands within 0.01 mm, or is
refused with a reason.

Slicer's reader is the real one (slicer-core). Four voxels of the file carry numbers of their own;
where they come out in the world is compared, whatever order of axes a reader prefers. Of files that
only one side reads it is noted which.
"""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest

slicer = pytest.importorskip("slicer")

from medmap.errors import MedMAPError  # noqa: E402
from medmap.io.nifti import read_nifti  # noqa: E402
from MedMAPSegmentLib.mrml import scene as mrmlScene  # noqa: E402

SHAPE = (14, 12, 10)
AFFINE = np.array([[-1.0, 0, 0, 90], [0, -1.2, 0, 126], [0, 0, 2, -72], [0, 0, 0, 1]])
MARKS = {101: (1, 1, 1), 102: (12, 1, 1), 103: (1, 10, 1), 104: (1, 1, 8)}


def voxels(dtype=np.int16):
    array = np.random.default_rng(0).integers(1, 90, SHAPE)
    for value, place in MARKS.items():
        array[place] = value
    return array.astype(dtype)


def saved(
    array=None, affine=AFFINE, cls=nib.Nifti1Image, endian="<", codes=(1, 1), qform=None, **fields
):
    array = voxels() if array is None else array
    header = cls.header_class(endianness=endian)
    header.set_data_dtype(array.dtype)
    image = cls(array, affine, header)
    image.set_sform(affine, codes[0])
    image.set_qform(affine if qform is None else qform, codes[1])
    data, size = image.to_bytes(), len(header.binaryblock)
    block = np.frombuffer(data[:size], header.structarr.dtype).copy()
    for name, value in fields.items():
        block[name] = value
    return block.tobytes() + data[size:]


def turned(*degrees):
    matrix = np.eye(4)
    for axis, angle in enumerate(degrees):
        c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        one, two = [a for a in range(3) if a != axis]
        turn = np.eye(4)
        turn[one, one], turn[one, two], turn[two, one], turn[two, two] = c, -s, s, c
        matrix = turn @ matrix
    return matrix @ AFFINE


def oriented(codes):
    wanted = nib.orientations.axcodes2ornt(codes)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, (world, sign) in enumerate(wanted):
        affine[int(world), axis] = sign * (1.0, 1.2, 2.0)[axis]
        affine[int(world), 3] = -sign * 20
    return affine


def moved(mm):
    affine = AFFINE.copy()
    affine[0, 3] += mm
    return affine


def dim(*sizes):
    return [len(sizes), *sizes] + [1] * (7 - len(sizes))


def packed(data):
    return gzip.compress(data, mtime=0)


def four(frames):
    return np.stack([voxels()] * frames, -1)


FLIPPED = AFFINE @ np.diag([-1, 1, 1, 1])
GOOD = saved()
FILES = {
    **{f"type {t}": saved(voxels(t)) for t in ("u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8")},
    "type i8": saved(voxels("i8")),
    "big endian": saved(endian=">"),
    **{
        f"axes {c}": saved(affine=oriented(c))
        for c in ("RAS", "LPS", "LAS", "RPS", "PIR", "SRP", "ILA", "ARI")
    },
    "oblique 10": saved(affine=turned(0, 0, 10)),
    "oblique three ways": saved(affine=turned(12, -7, 25)),
    "oblique left-handed": saved(affine=turned(12, -7, 25) @ np.diag([-1, 1, 1, 1])),
    "thick": saved(affine=np.diag([0.5, 0.5, 7.0, 1])),
    "sform alone": saved(codes=(1, 0)),
    "qform alone": saved(codes=(0, 1)),
    "codes 2 and 1": saved(codes=(2, 1)),
    "codes 4 and 4": saved(codes=(4, 4)),
    "sform 25 mm away": saved(codes=(2, 1), qform=moved(25)),
    "sform 0.2 mm away": saved(codes=(2, 1), qform=moved(0.2)),
    "sform mirrored": saved(codes=(2, 1), qform=FLIPPED),
    "no orientation": saved(codes=(0, 0), quatern_b=0, quatern_c=0, quatern_d=0),
    "sheared sform": saved(codes=(1, 0), srow_x=[-1, 0.4, 0, 90]),
    "singular sform": saved(codes=(1, 0), srow_x=[0, -1.2, 0, 90]),
    "zero sform": saved(codes=(1, 0), srow_x=[0] * 4, srow_y=[0] * 4, srow_z=[0] * 4),
    "NaN sform": saved(codes=(1, 0), srow_x=[np.nan, 0, 0, 0]),
    "infinite sform": saved(codes=(1, 0), srow_x=[np.inf, 0, 0, 0]),
    "pixdim 3 against sform": saved(codes=(1, 0), pixdim=[1, 3, 3, 3, 1, 1, 1, 1]),
    "pixdim 0": saved(pixdim=[1, 0, 1.2, 2, 1, 1, 1, 1]),
    "pixdim negative": saved(pixdim=[1, -1, 1.2, 2, 1, 1, 1, 1]),
    "qfac 0": saved(pixdim=[0, 1, 1.2, 2, 1, 1, 1, 1]),
    "micrometers": saved(xyzt_units=3),
    "meters": saved(xyzt_units=1),
    "no unit": saved(xyzt_units=0),
    "slope NaN": saved(scl_slope=np.nan, scl_inter=0),
    "slope 0": saved(scl_slope=0, scl_inter=0),
    "one frame": saved(four(1)),
    "two frames": saved(four(2)),
    "two axes": saved(voxels()[:, :, 1]),
    "size 0": saved(dim=dim(14, 0, 10)),
    "size -12": saved(dim=dim(14, -12, 10)),
    "wrong magic": saved(magic=b"abc"),
    "complex": saved(voxels("c8")),
    "empty": b"",
    "text": b"no image " * 99,
    "header cut": GOOD[:200],
    "data cut": GOOD[: len(GOOD) // 2],
    "NIfTI-2": saved(cls=nib.Nifti2Image),
    "gz": packed(GOOD),
    "gz cut": packed(GOOD)[:900],
    "gz CRC": packed(GOOD)[:-8] + bytes(4) + packed(GOOD)[-4:],
    "gz named nii": packed(GOOD),
    "nii named gz": GOOD,
}  # fmt: skip
SLICER_CANNOT = {"NIfTI-2", "type i8"}


def placed(array, affine) -> np.ndarray | None:
    """[4, 3] world positions of the marks; None where a mark is missing or not alone."""
    found = [np.argwhere(array == value) for value in MARKS]
    if any(len(place) != 1 for place in found):
        return None
    return np.array([affine[:3, :3] @ place[0] + affine[:3, 3] for place in found])


def by_us(path):
    try:
        volume = read_nifti(path)
    except MedMAPError as error:
        return None, error.cause
    return placed(volume.array, volume.affine), ""


def by_slicer(path, scene):
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    scene.AddNode(storage)
    storage.SetFileName(str(path))
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "scan")
    try:
        read = bool(storage.ReadData(node)) and node.GetImageData() is not None
    except RuntimeError:
        read = False
    if not read:
        return None, "", None
    node.SetAndObserveStorageNodeID(storage.GetID())
    try:
        volume = mrmlScene.volumeFromNode(node)
    except MedMAPError as error:
        return None, error.cause, node
    return placed(volume.array, volume.affine), "", node


@pytest.fixture
def written(tmp_path):
    def write(name):
        suffix = (
            ".nii.gz"
            if name.startswith("gz") != name.endswith(("named nii", "named gz"))
            else ".nii"
        )
        path = tmp_path / f"scan{suffix}"
        path.write_bytes(FILES[name])
        return path

    return write


def test_there_are_as_many_files_as_in_the_measured_table():
    assert len(FILES) >= 57


@pytest.mark.parametrize("name", FILES)
def test_the_same_place_or_a_reason(name, written, scene):
    path = written(name)
    ours, refusal = by_us(path)
    theirs, reason, _ = by_slicer(path, scene)
    if ours is not None and theirs is not None:
        assert np.linalg.norm(ours - theirs, axis=1).max() < 0.01
    elif ours is None:
        assert refusal
        # What the command line refuses, the panel does not take in silence either.
        assert theirs is None, f"the panel takes what the command line refuses: {refusal}"
    else:
        assert name in SLICER_CANNOT or reason


def test_slicer_opens_the_wrong_one_of_two_files_and_the_panel_says_so(tmp_path, scene):
    other = voxels()[::-1].copy()
    (tmp_path / "A.nii.gz").write_bytes(packed(GOOD))
    (tmp_path / "A.nii").write_bytes(saved(other * 2))
    theirs, reason, node = by_slicer(tmp_path / "A.nii.gz", scene)
    shown = int(np.asarray(slicer.util.arrayFromVolume(node)).max())
    assert shown in (104, 208)
    assert (theirs is not None) == (shown == 104)
    if shown == 208:
        assert "not those of its file A.nii.gz" in reason


def test_a_volume_that_was_changed_since_is_taken_as_it_is(tmp_path, scene):
    path = tmp_path / "scan.nii"
    path.write_bytes(FILES["data cut"])
    _, reason, node = by_slicer(path, scene)
    assert "truncated" in reason
    slicer.util.updateVolumeFromArray(node, voxels().transpose(2, 1, 0).copy())
    assert mrmlScene.volumeFromNode(node).array.shape == SHAPE
