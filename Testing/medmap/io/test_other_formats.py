"""Files of another format are told by their content, whatever they are called."""

from __future__ import annotations

import gzip

import pytest

from medmap.errors import InputDataError
from medmap.io.nifti import read_nifti

CONTENTS = {
    "FreeSurfer": (b"\0\0\0\1\0\0\1\0\0\0\1\0\0\0\1\0" + bytes(400), "mri_convert"),
    "NRRD": (b"NRRD0004\ntype: short\n" + bytes(400), "3D Slicer"),
    "MetaImage": (b"ObjectType = Image\nNDims = 3\n" + bytes(400), "3D Slicer"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "git lfs pull"),
    "git-annex": (b"/annex/objects/MD5E-s1--0.nii.gz\n", "git annex get"),
    "web page": (b"\xef\xbb\xbf\n <!DOCTYPE html>\n<html><body>Login</body></html>", "download"),
    "JSON": (b'{"error": "not found"}', "download"),
    "ZIP": (b"PK\3\4" + bytes(400), "Unpack"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(400), "Convert"),
    "xz": (b"\xfd7zXZ\0" + bytes(400), "Unpack"),
    "DICOM": (bytes(128) + b"DICM" + bytes(400), "dcm2niix"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mgz", ".nrrd"])
@pytest.mark.parametrize("kind", CONTENTS)
def test_the_content_is_named_and_the_remedy_is_not_to_rename_it(tmp_path, kind, suffix, packed):
    data, remedy = CONTENTS[kind]
    path = tmp_path / f"scan{suffix}"
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(InputDataError, match=kind) as error:
        read_nifti(path)
    assert remedy in error.value.remedy
    assert "Rename" not in error.value.remedy
