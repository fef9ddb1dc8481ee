"""Files that look like NIfTI by name and are something else by content."""

from __future__ import annotations

from medmap.errors import InputDataError

_DICOM = "Convert the series to NIfTI, for instance with dcm2niix."
_SLICER = "Convert it to NIfTI, for instance by saving it in 3D Slicer."
_UNPACK = "Unpack it and give the .nii or .nii.gz file."
_DOWNLOAD = "The download failed or needs a login: download the file itself."
_PICTURE = "Give the volume that it was made from."

_MARKS = (
    # position and value of the mark, name of the format, remedy
    (128, b"DICM", "a DICOM file", _DICOM),
    (0, b"NRRD", "an NRRD file", _SLICER),
    (0, b"ObjectType", "a MetaImage file (.mha)", _SLICER),
    (0, b"NDims", "a MetaImage file (.mha)", _SLICER),
    (
        0,
        b"\0\0\0\1",
        "a FreeSurfer volume (.mgh, .mgz)",
        "Convert it to NIfTI, for instance with mri_convert.",
    ),
    (0, b"CDF\1", "a MINC file", "Convert it to NIfTI, for instance with mnc2nii."),
    (0, b"\x89HDF", "an HDF5 file, such as MINC 2", "Convert it to NIfTI."),
    (0, b"\x93NUMPY", "a NumPy array, which has no geometry", "Save the volume as NIfTI."),
    (0, b"MATLAB 5", "a MATLAB file", "Save the volume as NIfTI (niftiwrite)."),
    (0, b"version https://git-lfs", "a pointer of Git LFS to it", "Fetch the file: git lfs pull."),
    (0, b"/annex/objects/", "a pointer of git-annex to it", "Fetch the file: git annex get."),
    (0, b"PK\3\4", "a ZIP archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"BZh", "compressed with bzip2", _UNPACK),
    (0, b"\xfd7zXZ", "compressed with xz", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACK),
    (0, b"7z\xbc\xaf", "a 7-Zip archive", _UNPACK),
    (0, b"\x89PNG", "a picture (PNG)", _PICTURE),
    (0, b"\xff\xd8\xff", "a picture (JPEG)", _PICTURE),
)
_TEXTS = (
    # beginning in lower case, behind blanks and a byte-order mark
    (b"<!doctype html", "a web page", _DOWNLOAD),
    (b"<html", "a web page", _DOWNLOAD),
    (b"<?xml", "an XML text", _DOWNLOAD),
    (b"{", "a JSON text", _DOWNLOAD),
)


def refuse_other_format(block: bytes, label: str) -> None:
    """Raise InputDataError where the first bytes of a file are those of another format.

    Args:
        block: at least 300 bytes, uncompressed; all, if the file is shorter.
        label: what the message calls the file.
    """
    for position, mark, format_name, remedy in _MARKS:
        end = position + len(mark)
        if block[position:end] == mark:
            raise InputDataError(f"{label} is not a NIfTI file but {format_name}.", remedy)
    # Editors on Windows put a byte-order mark before the text.
    text = block.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginning, format_name, remedy in _TEXTS:
        if text.startswith(beginning):
            raise InputDataError(f"{label} is not a NIfTI file but {format_name}.", remedy)
