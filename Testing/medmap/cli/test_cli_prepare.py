"""``medmap segment`` from scans with a skull.

Files in; labels on the scan's grid and a report of each step out.
"""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from Testing.medmap.cli.test_cli import hashes, medmap
from Testing.medmap.preparation.conftest import (
    brain_of,
    displaced,
    grown,
    head_scan,
    in_thick_slices,
    patient,
)

from medmap.io.nifti import write_labels, write_volume
from medmap.preparation.motion import Motion
from medmap.volume import Grid


@pytest.fixture
def raw(tmp_path):
    """A T1 and a displaced FLAIR in thick slices, both with a skull, and a mask of the T1."""
    folder = tmp_path / "raw"
    folder.mkdir()
    motion = Motion.identity(np.zeros(3)).shifted(np.array([5.0, 0.0, 6.0])).turned(2, 5.0)
    flair = displaced(in_thick_slices(head_scan("flair"), (2.0, 2.0, 4.0)), motion.matrix)
    for name, scan in {"t1": head_scan("t1"), "flair": flair}.items():
        write_volume(folder / f"{name}.nii.gz", scan.array, scan.affine)
    brain = brain_of()
    write_labels(
        folder / "mask.nii.gz", brain.astype(np.uint8), Grid(brain.shape, patient().affine)
    )
    return folder


def segment(folder, output, bundle, *more):
    scans = ["--t1", folder / "t1.nii.gz", "--flair", folder / "flair.nii.gz"]
    return medmap("segment", *scans, "-o", output, "--bundle", bundle, "--device", "cpu", *more)


def test_raw_scans_are_prepared_and_every_step_is_reported(raw, tmp_path, tiny_bundle_path):
    pytest.importorskip("SimpleITK")
    before = hashes(raw)
    out = tmp_path / "out"
    mask = ["--brain-mask", f"t1={raw / 'mask.nii.gz'}", "--reference", "t1", "--keep-prepared"]
    run = segment(raw, out, tiny_bundle_path, *mask)
    assert run.returncode == 0, run.stderr
    assert hashes(raw) == before
    report = json.loads((out / "report.json").read_text())
    steps = report["preparation"]["steps"]
    assert [step["step"] for step in steps] == ["brain extraction", "brain extraction", "alignment"]
    assert all(step["seconds"] >= 0 and step["figures"] for step in steps)
    assert np.shape(report["preparation"]["movements_world_ras_mm"]["flair"]) == (4, 4)
    assert "FLAIR was moved by" in run.stdout
    names = {path.name for path in out.iterdir()}
    assert {"preparation.png", "prepared_t1.nii.gz", "brain_mask_flair.nii.gz"} <= names
    assert "transform_flair.tfm" in names
    assert "transform_t1.tfm" not in names
    labels = nib.load(out / "segmentation.nii.gz")
    scan = nib.load(raw / "t1.nii.gz")
    assert np.array_equal(labels.affine, scan.affine)
    # The brain of a case is what any of its scans shows; thick slices end up to 4 mm farther out.
    near = grown(torch.from_numpy(brain_of())[None, None].float(), 4.0)[0, 0].numpy() > 0
    assert not np.asarray(labels.dataobj)[~near].any()
    prepared = nib.load(out / "prepared_flair.nii.gz")
    moved = np.array(report["preparation"]["movements_world_ras_mm"]["flair"])
    expected = moved @ nib.load(raw / "flair.nii.gz").affine
    np.testing.assert_allclose(prepared.affine, expected, atol=1e-3)


def test_never_takes_the_scans_as_they_are(raw, tmp_path, tiny_bundle_path):
    run = segment(raw, tmp_path / "out", tiny_bundle_path, "--prepare", "never")
    assert run.returncode == 0, run.stderr
    assert "does not look skull-stripped" in run.stderr
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["preparation"]["steps"] == []
    assert not (tmp_path / "out/preparation.png").exists()


def test_mistakes_leave_nothing_behind(raw, tmp_path, tiny_bundle_path):
    run = segment(raw, tmp_path / "out", tiny_bundle_path, "--prepare", "often")
    assert run.returncode == 2
    assert "auto, always, never" in run.stderr
    run = segment(
        raw, tmp_path / "out", tiny_bundle_path, "--brain-mask", f"t2={raw / 'mask.nii.gz'}"
    )
    assert run.returncode == 2
    assert "brain mask for T2, but no such scan" in run.stderr
    assert not (tmp_path / "out").exists()


def test_pictures_of_an_earlier_run_are_not_overwritten_unasked(raw, tmp_path, tiny_bundle_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "preparation.png").write_bytes(b"earlier")
    run = segment(raw, out, tiny_bundle_path)
    assert run.returncode == 73
    assert (out / "preparation.png").read_bytes() == b"earlier"


def test_overwriting_leaves_no_picture_and_no_probability_of_the_earlier_run(
    raw, tmp_path, tiny_bundle_path
):
    """Evaluating the new label map would take them for its own."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("preparation.png", "probability_WT.nii.gz", "notes.txt"):
        (out / name).write_bytes(b"earlier")
    # An input that lies in the output folder is never removed, whatever its name.
    scan = out / "probability_TC.nii.gz"
    scan.write_bytes((raw / "t1.nii.gz").read_bytes())
    arguments = ["segment", "--t1", scan, "-o", out, "--bundle", tiny_bundle_path]
    run = medmap(*arguments, "--device", "cpu", "--prepare", "never", "--overwrite")
    assert run.returncode == 0, run.stderr
    names = {path.name for path in out.iterdir()}
    assert names == {
        "segmentation.nii.gz",
        "overlay.png",
        "report.json",
        "notes.txt",
        "probability_TC.nii.gz",
    }
