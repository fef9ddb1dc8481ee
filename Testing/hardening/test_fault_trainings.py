"""Faults of trainings and evaluations, rows 60 to 66 of the fault table."""

from __future__ import annotations

import json
import os
import socket

import numpy as np
import pytest
import torch


@pytest.fixture
def cohort(tmp_path, make_case):
    """Two small cases in BraTS layout, and a recipe of four steps."""
    import nibabel as nib

    for n in range(2):
        folder = tmp_path / "data" / f"Case_{n}"
        folder.mkdir(parents=True)
        volumes = make_case(seed=n)
        for name, volume in volumes.items():
            nib.save(
                nib.Nifti1Image(volume.array.astype(np.int16), volume.affine),
                folder / f"Case_{n}_{name}.nii.gz",
            )
        label = np.zeros(volumes["t1"].array.shape, np.uint8)
        label[24:30, 18:26, 18:24] = 2
        nib.save(nib.Nifti1Image(label, volumes["t1"].affine), folder / f"Case_{n}_seg.nii.gz")
    small = {
        "patch": [16, 16, 16],
        "large_patch": [16, 16, 16],
        "preprocess": {"spacing": 2.0},
        "steps": 4,
    }
    (tmp_path / "recipe.json").write_text(
        json.dumps({"network_options": {"widths": [4, 8]}, **small})
    )
    return tmp_path


def training(cohort, *more):
    run, bundle = cohort / "run", cohort / "bundle"
    return [
        "train",
        cohort / "recipe.json",
        "--data",
        cohort / "data",
        "--run",
        run,
        "--bundle",
        bundle,
        *more,
    ]


def test_61_a_run_of_another_recipe_names_what_differs(cohort, cli):
    assert cli(*training(cohort, "--minutes", "0")).code == 0
    ran = cli(*training(cohort, "--seed", "5"))
    assert ran.code == 78, ran.err
    assert "seed" in ran.error
    assert not (cohort / "bundle").exists()


def test_62_a_loss_that_is_not_finite_names_the_case_and_keeps_the_checkpoint(
    cohort, cli, monkeypatch
):
    assert cli(*training(cohort, "--minutes", "0")).code == 0
    before = (cohort / "run/checkpoint.pt").read_bytes()
    monkeypatch.setattr(
        "medmap.training.loop._total",
        lambda losses: torch.full((), np.nan, requires_grad=True),
    )
    ran = cli(*training(cohort))
    assert ran.code == 70, ran.err
    assert "Case_" in ran.error
    assert (cohort / "run/checkpoint.pt").read_bytes() == before


def test_60_two_trainings_in_one_folder_are_one_too_many(cohort, cli):
    from medmap.io.atomic import exclusive_lock

    (cohort / "run").mkdir()
    with exclusive_lock(cohort / "run"):
        ran = cli(*training(cohort))
    assert ran.code == 73, ran.err
    assert str(os.getpid()) in ran.error
    assert cli(*training(cohort, "--minutes", "0")).code == 0


def test_63_all_faults_of_a_cohort_are_told_at_once_before_the_first_step(cohort, cli):
    for n in range(2):
        path = cohort / f"data/Case_{n}/Case_{n}_t2.nii.gz"
        path.write_bytes(path.read_bytes()[:100])
    ran = cli(*training(cohort))
    assert ran.code == 65, ran.err
    assert "Case_0" in ran.error
    assert "Case_1" in ran.error
    assert not (cohort / "run/checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ({"train": ["Case_0"], "test": ["Case_0"]}, "Case_0"),
        ({"train": ["Case_0", "Case_0"]}, "Case_0"),
    ],
)
def test_65_a_case_in_two_parts_or_twice_is_refused(split, words, cohort, cli, tiny_bundle_path):
    (cohort / "split.json").write_text(json.dumps(split))
    given = [
        "--data",
        cohort / "data",
        "--bundle",
        tiny_bundle_path,
        "--split",
        cohort / "split.json",
    ]
    ran = cli("evaluate", *given, "--part", "train")
    assert ran.code == 65, ran.err
    assert words in ran.error


class _OwnSocketsOnly(socket.socket):
    """A socket that a training may hand its own workers' batches through, and none that leaves the
    machine."""

    def __init__(self, family=-1, *arguments, **options):
        assert family == socket.AF_UNIX, "a socket was asked for"
        super().__init__(family, *arguments, **options)


def test_66_no_socket_is_ever_opened(scans, cohort, cli, tmp_path, tiny_bundle_path, monkeypatch):
    def refused(*arguments, **options):
        raise AssertionError("a socket was asked for")

    monkeypatch.setattr(socket, "create_connection", refused)
    with monkeypatch.context() as inference:
        inference.setattr(socket, "socket", refused)
        given = ["--t1", scans.path("t1"), "--bundle", tiny_bundle_path, "--device", "cpu"]
        assert cli("segment", *given, "-o", tmp_path / "out").code == 0
        assert cli("evaluate", "--data", cohort / "data", "--bundle", tiny_bundle_path).code == 0
    monkeypatch.setattr(socket, "socket", _OwnSocketsOnly)
    with pytest.raises(AssertionError, match="a socket was asked for"):
        socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    assert cli(*training(cohort, "--device", "cpu")).code == 0
