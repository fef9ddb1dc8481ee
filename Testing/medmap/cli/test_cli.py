"""The command line as a user meets it.

Files in, files out; one sentence of cause and one of remedy on any fault.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from medmap import NOTICE
from medmap.io.nifti import write_volume

NAMES = ("t1", "t1ce", "t2", "flair")


def medmap(*arguments, environment=None, **options):
    command = [sys.executable, "-m", "medmap.cli", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
        **options,
    )


@pytest.fixture
def files(tmp_path, volumes):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, volume in volumes.items():
        write_volume(folder / f"{name}.nii.gz", volume.array.astype(np.int16), volume.affine)
    label = np.zeros(volumes["t1"].array.shape, np.int16)
    label[20:28, 18:26, 14:22] = 2
    write_volume(folder / "seg.nii.gz", label, volumes["t1"].affine)
    return folder


def hashes(folder) -> dict:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def options(folder, *names):
    return [part for name in names for part in (f"--{name}", folder / f"{name}.nii.gz")]


def rewritten(path, change) -> None:
    image = nib.load(path)
    array, affine = change(np.asarray(image.dataobj), image.affine.copy())
    nib.save(nib.Nifti1Image(array, affine), path)


def test_segment_writes_labels_picture_and_report_on_the_grid_of_the_scan(
    files, tmp_path, tiny_bundle_path
):
    before = hashes(files)
    run = medmap(
        "segment",
        *options(files, "t1ce", "flair"),
        "--truth",
        files / "seg.nii.gz",
        "-o",
        tmp_path / "out",
        "--bundle",
        tiny_bundle_path,
        "--device",
        "cpu",
    )
    assert run.returncode == 0, run.stderr
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "segmentation.nii.gz",
        "overlay.png",
        "report.json",
    }
    label, scan = nib.load(tmp_path / "out/segmentation.nii.gz"), nib.load(files / "t1ce.nii.gz")
    assert label.shape == scan.shape
    assert np.array_equal(label.affine, scan.affine)
    assert label.get_data_dtype() == np.uint8
    assert set(np.unique(label.dataobj)) <= {0, 1, 2, 4}
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["modalities"]["missing"] == ["t1", "t2"]
    assert report["bundle"]["id"] == "tiny-1.0.0"
    assert set(report["volumes_ml"]) == set(report["scores"]) == {"WT", "TC", "ET"}
    assert report["input_sha256"]["t1ce"] == before["t1ce.nii.gz"]
    for said in ("WT", "Dice", "segmentation.nii.gz", "overlay.png", NOTICE):
        assert said in " ".join(run.stdout.split())
    assert hashes(files) == before


def test_the_same_input_gives_the_same_bytes(files, tmp_path, tiny_bundle_path):
    for name in ("a", "b"):
        assert (
            medmap(
                "segment",
                *options(files, "t2"),
                "-o",
                tmp_path / name,
                "--bundle",
                tiny_bundle_path,
            ).returncode
            == 0
        )
    for name in ("segmentation.nii.gz", "overlay.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def fault_none(files):
    return []


def fault_same(files):
    shutil.copy(files / "t1.nii.gz", files / "t2.nii.gz")
    return options(files, "t1", "t2")


def fault_4d(files):
    rewritten(files / "t1.nii.gz", lambda a, m: (np.stack([a, a], -1), m))
    return options(files, "t1")


def fault_empty(files):
    rewritten(files / "t1.nii.gz", lambda a, m: (a * 0, m))
    return options(files, "t1")


def fault_constant(files):
    rewritten(files / "t1.nii.gz", lambda a, m: (a * 0 + 7, m))
    return options(files, "t1")


def fault_nan(files):
    rewritten(
        files / "t1.nii.gz", lambda a, m: (np.where(a > 250, np.nan, a).astype(np.float32), m)
    )
    return options(files, "t1")


def fault_inf(files):
    rewritten(
        files / "t1.nii.gz", lambda a, m: (np.where(a > 250, np.inf, a).astype(np.float32), m)
    )
    return options(files, "t1")


def fault_truncated(files):
    path = files / "t1.nii.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return options(files, "t1")


def fault_singular(files):
    path = files / "t1.nii.gz"
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[280:296] = bytes(16)  # srow_x
    path.write_bytes(gzip.compress(bytes(data)))
    return options(files, "t1")


def fault_apart(files):
    def away(array, affine):
        affine[0, 3] += 900
        return array, affine

    rewritten(files / "t2.nii.gz", away)
    return options(files, "t1", "t2")


def fault_no_file(files):
    return ["--t1", files / "nowhere.nii.gz"]


FAULTS = [
    (fault_none, 2, "No modality was given"),
    (fault_same, 65, "same image"),
    (fault_4d, 65, "4"),
    (fault_empty, 65, "contrast"),
    (fault_constant, 65, "contrast"),
    (fault_nan, 65, "NaN"),
    (fault_inf, 65, "infinite"),
    (fault_truncated, 65, "ends early|truncated|cut|damaged"),
    (fault_singular, 65, "invert|singular|flat|no volume|axis"),
    (fault_apart, 65, "overlap"),
    (fault_no_file, 66, "nowhere"),
]


@pytest.mark.parametrize(
    ("fault", "code", "words"), FAULTS, ids=lambda x: getattr(x, "__name__", None)
)
def test_each_fault_has_its_message_and_its_exit_code_and_leaves_nothing(
    fault, code, words, files, tmp_path, tiny_bundle_path
):
    arguments = fault(files)
    before = hashes(files)
    run = medmap("segment", *arguments, "-o", tmp_path / "out", "--bundle", tiny_bundle_path)
    lines = [line for line in run.stderr.splitlines() if line.startswith(("error: ", "fix: "))]
    assert run.returncode == code, run.stderr
    assert len(lines) == 2, run.stderr
    assert re.search(words, lines[0]), lines[0]
    assert "Traceback" not in run.stderr + run.stdout
    assert not (tmp_path / "out").exists()
    assert hashes(files) == before


def test_every_fault_is_told_apart_by_its_message(files, tmp_path, tiny_bundle_path):
    messages = []
    for n, (fault, _, _) in enumerate(FAULTS[:4]):
        folder = shutil.copytree(files, tmp_path / f"in{n}")
        run = medmap(
            "segment", *fault(folder), "-o", tmp_path / "out", "--bundle", tiny_bundle_path
        )
        messages.append(
            next(line for line in run.stderr.splitlines() if line.startswith("error: "))
        )
    assert len(set(messages)) == len(messages)


def test_a_bundle_with_one_flipped_byte_is_refused(files, tmp_path, tiny_bundle_path):
    bundle = shutil.copytree(tiny_bundle_path, tmp_path / "bundle")
    data = bytearray((bundle / "model.safetensors").read_bytes())
    data[-100] ^= 1
    (bundle / "model.safetensors").write_bytes(data)
    run = medmap("segment", *options(files, "t1"), "-o", tmp_path / "out", "--bundle", bundle)
    assert run.returncode == 78
    assert "SHA-256" in run.stderr
    assert medmap("verify", bundle).returncode == 78
    assert not (tmp_path / "out").exists()


def test_a_bundle_of_an_unknown_version_is_refused(files, tmp_path, tiny_bundle_path):
    bundle = shutil.copytree(tiny_bundle_path, tmp_path / "bundle")
    text = (bundle / "metadata.json").read_text().replace('"format": 1', '"format": 99')
    (bundle / "metadata.json").write_text(text)
    sums = [
        f"{hashlib.sha256((bundle / n).read_bytes()).hexdigest()}  {n}\n"
        for n in ("README.md", "metadata.json", "model.safetensors")
    ]
    (bundle / "SHA256SUMS").write_text("".join(sums))
    run = medmap("segment", *options(files, "t1"), "-o", tmp_path / "out", "--bundle", bundle)
    assert run.returncode == 78
    assert "format 99" in run.stderr


def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    files, tmp_path, tiny_bundle_path
):
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "no/such/parent"):
        run = medmap("segment", *options(files, "t1"), "-o", place, "--bundle", tiny_bundle_path)
        assert run.returncode == 73, run.stderr
        assert "error: " in run.stderr
    assert (tmp_path / "file").read_text() == "in the way"


def test_results_that_are_there_are_kept_unless_told_otherwise(files, tmp_path, tiny_bundle_path):
    arguments = [
        "segment",
        *options(files, "t1"),
        "-o",
        tmp_path / "out",
        "--bundle",
        tiny_bundle_path,
    ]
    assert medmap(*arguments).returncode == 0
    before = hashes(tmp_path / "out")
    refused = medmap(*arguments)
    assert refused.returncode == 73
    assert hashes(tmp_path / "out") == before
    assert medmap(*arguments, "--overwrite").returncode == 0


def test_without_torch_it_says_so(files, tmp_path, tiny_bundle_path):
    (tmp_path / "shadow").mkdir()
    (tmp_path / "shadow/torch.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')"
    )
    path = os.pathsep.join([str(tmp_path / "shadow"), *sys.path])
    run = medmap(
        "segment",
        *options(files, "t1"),
        "-o",
        tmp_path / "out",
        "--bundle",
        tiny_bundle_path,
        environment={"PYTHONPATH": path},
    )
    assert run.returncode == 69
    assert "PyTorch" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lines", [1, 3, 6, 9])
def test_ctrl_c_leaves_no_file(lines, files, tmp_path, tiny_bundle_path):
    command = [sys.executable, "-m", "medmap.cli", "segment", *map(str, options(files, *NAMES))]
    command += ["-o", str(tmp_path / "out"), "--bundle", str(tiny_bundle_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(lines):  # one line of progress a tenth
        assert "%" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    if (tmp_path / "out").exists():  # everything was published before the signal came
        assert {p.name for p in (tmp_path / "out").iterdir()} == {
            "segmentation.nii.gz",
            "overlay.png",
            "report.json",
        }
        assert nib.load(tmp_path / "out/segmentation.nii.gz").get_fdata().shape == (40, 48, 36)
        return
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_info_and_verify_describe_the_bundle(tiny_bundle_path):
    info = medmap("info", tiny_bundle_path)
    assert "tiny-1.0.0" in info.stdout
    assert "SubsetUNet" in info.stdout
    assert "intact" in medmap("verify", tiny_bundle_path).stdout


def test_help_explains_the_choice_of_the_reference_grid():
    said = " ".join(medmap("segment", "--help").stdout.split())
    assert "smallest voxels" in said
    assert "--t1ce" in said


def test_short_help_is_help_and_debug_is_documented():
    for arguments in ((), ("segment",), ("bench", "networks")):
        short = medmap(*arguments, "-h")
        assert short.returncode == 0, short.stderr
        assert short.stdout == medmap(*arguments, "--help").stdout
    assert "--debug" in medmap("-h").stdout


def test_the_package_itself_can_be_run():
    run = subprocess.run(
        [sys.executable, "-m", "medmap", "--version"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == medmap("--version").stdout


def test_the_british_spelling_of_analyze_works_but_is_not_listed():
    assert (
        medmap("analyse", "-h").stdout.replace("analyse", "analyze")
        == medmap("analyze", "-h").stdout
    )
    assert "analyse" not in medmap("-h").stdout


def test_remedies_name_the_option_of_the_command_line(files, tmp_path, tiny_bundle_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text("kept")
    run = medmap(
        "segment", *options(files, "t1"), "-o", tmp_path / "out", "--bundle", tiny_bundle_path
    )
    assert run.returncode == 73
    assert "fix: Choose another name, or allow overwriting (--overwrite)." in run.stderr


def test_version_carries_the_notice():
    assert "not approved for clinical use" in " ".join(medmap("--version").stdout.split())


def test_phantom_evaluate_and_train_work_together(tmp_path):
    data, run, bundle = tmp_path / "data", tmp_path / "run", tmp_path / "bundle"
    made = medmap("phantom", data, "--count", 2, "--seed", 5, "--spacing", 3)
    assert made.returncode == 0, made.stderr
    assert {p.name for p in (data / "Phantom_00005").iterdir()} >= {
        f"Phantom_00005_{n}.nii.gz" for n in (*NAMES, "seg")
    }
    (tmp_path / "r.json").write_text(
        json.dumps(
            {
                "network_options": {"widths": [4, 8]},
                "steps": 3,
                "patch": [16, 16, 16],
                "large_patch": [32, 32, 32],
                "preprocess": {"spacing": 3.0},
            }
        )
    )
    trained = medmap(
        "train",
        "--run",
        run,
        "--data",
        data,
        "--bundle",
        bundle,
        tmp_path / "r.json",
        "--device",
        "cpu",
        "--data-statement",
        "two phantoms",
    )
    assert trained.returncode == 0, trained.stderr
    scored = medmap(
        "evaluate",
        "--data",
        data,
        "--bundle",
        bundle,
        "--table",
        tmp_path / "dice.csv",
        "--update-card",
        "--data-statement",
        "the training phantoms",
        "--device",
        "cpu",
    )
    assert scored.returncode == 0, scored.stderr
    assert "2 of 2 cases were in the bundle's training" in scored.stderr
    assert len((tmp_path / "dice.csv").read_text().splitlines()) == 1 + 2 * 15 * 3
    assert "the training phantoms" in medmap("info", bundle).stdout.replace("\n", " ")
    assert "15" not in scored.stderr.splitlines()[-1:]


SETTINGS = ["THP_MEM_ALLOC_ENABLE"]
if sys.platform == "linux":
    SETTINGS.append("MALLOC_ARENA_MAX")


@pytest.mark.parametrize("setting", SETTINGS)
def test_memory_comes_in_large_pages_from_one_pool_unless_the_environment_says_otherwise(
    monkeypatch, setting
):
    import importlib

    entry = importlib.import_module("medmap.cli.main")
    monkeypatch.setattr(entry, "app", lambda *arguments, **options: None)
    monkeypatch.setenv(setting, "4")
    entry.main()
    assert os.environ[setting] == "4"
    monkeypatch.delenv(setting)
    entry.main()
    assert os.environ[setting] == "1"
