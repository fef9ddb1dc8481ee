"""A bundle says what it was trained on, takes nothing else, and recognizes its training cases."""

from __future__ import annotations

import csv
import shutil

import nibabel
import pytest
from Testing.medmap.commands.tiny_training import write_cohort, write_recipe

from medmap.bundle.format import choose_entry, read_bundle_texts
from medmap.bundle.loading import load_bundle
from medmap.commands.evaluation import EvaluateOptions, evaluate_bundle
from medmap.commands.training import train_bundle
from medmap.commands.training_options import BundleOptions, TrainOptions
from medmap.errors import BundleError, InputDataError, UsageError
from medmap.evaluation.scoring import supported_subsets
from medmap.inference import segment
from medmap.io.cohorts import find_cases
from medmap.progress import ignore_progress
from medmap.task import BRATS
from medmap.training.options import RuntimeOptions


def train_on(data, folder, recipe=None, **changes):
    """Train one step; returns the bundle's folder."""
    folder.mkdir(exist_ok=True)
    path = write_recipe(folder, **(recipe or {}))
    options = TrainOptions(
        recipe=path, runtime=RuntimeOptions(device="cpu", precision="fp32"), **changes
    )
    train_bundle(folder / "run", data, folder / "bundle", options, ignore_progress)
    return folder / "bundle"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"), 3)


@pytest.fixture(scope="module")
def without_t2(data, tmp_path_factory):
    """The first two cases without T2; T1 is missing from one of them."""
    folder = tmp_path_factory.mktemp("partial") / "data"
    shutil.copytree(data, folder)
    cases = sorted(folder.iterdir())
    shutil.rmtree(cases[2])
    for case in cases[:2]:
        (case / f"{case.name}_t2.nii.gz").unlink()
    (cases[1] / f"{cases[1].name}_t1.nii.gz").unlink()
    return folder


@pytest.fixture(scope="module")
def partial_bundle(without_t2, tmp_path_factory):
    return train_on(without_t2, tmp_path_factory.mktemp("partial-training"))


def test_a_bundle_takes_no_modality_that_no_training_case_had(partial_bundle, data):
    bundle = load_bundle(partial_bundle)
    assert bundle.modalities == ("t1", "t1ce", "flair")
    assert "any subset of T1, T1ce, FLAIR." in bundle.card["description"]
    scans = find_cases(data, BRATS)[0].read()
    with pytest.raises(BundleError, match="never trained with T2") as error:
        segment({"t2": scans["t2"]}, bundle)
    assert "T1, T1ce, FLAIR" in error.value.cause
    result = segment(scans, bundle)
    assert tuple(result.provenance.used) == ("t1", "t1ce", "flair")
    assert any("T2 was not" in finding.message for finding in result.findings)
    subsets = supported_subsets(bundle, BRATS.modality_names)
    assert len(subsets) == 7
    assert not any("t2" in subset for subset in subsets)


def test_the_metadata_alone_say_so_too(partial_bundle):
    """As the panel reads them, without building a network."""
    metadata = read_bundle_texts(partial_bundle).metadata
    assert choose_entry(metadata.subsets, ["t2"]) is None
    position = choose_entry(metadata.subsets, ["t1", "t2", "flair"])
    assert metadata.subsets[position] == ("t1", "flair")
    assert metadata.raw["image_classes"] == "T1, T1ce, FLAIR; any non-empty subset"
    cases = metadata.training_cases
    assert cases.count == 2
    assert cases.counts == {"t1": 1, "t1ce": 2, "t2": 0, "flair": 2}


def test_the_run_says_which_scans_are_on_disk(partial_bundle):
    with (partial_bundle.parent / "run/scans.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["t2"] for row in rows] == ["0", "0"]
    assert [row["t1"] for row in rows] == ["1", "0"]
    assert [row["flair"] for row in rows] == ["1", "1"]


def test_what_a_protocol_never_shows_is_not_taken_either(data, tmp_path):
    protocol = {"missingness": "dedicated", "missingness_options": {"show": ["t1", "flair"]}}
    bundle = load_bundle(train_on(data, tmp_path, protocol))
    assert bundle.modalities == ("t1", "flair")


def test_fine_tuning_adds_to_what_the_start_has_seen(partial_bundle, data, tmp_path):
    case = sorted(data.iterdir())[0]
    only_t2 = tmp_path / "data" / case.name
    only_t2.mkdir(parents=True)
    for kind in ("t2", "seg"):
        shutil.copy(case / f"{case.name}_{kind}.nii.gz", only_t2)
    options = TrainOptions(
        start=partial_bundle, steps=1, runtime=RuntimeOptions(device="cpu", precision="fp32")
    )
    train_bundle(tmp_path / "run", tmp_path / "data", tmp_path / "bundle", options, ignore_progress)
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.modalities == BRATS.modality_names
    before = load_bundle(partial_bundle)
    assert before.training_cases.hashes < bundle.training_cases.hashes
    assert before.id in bundle.card["training"]
    assert before.sha256[:12] in bundle.card["training"]


def test_a_network_for_a_subset_that_no_case_has_is_refused(without_t2, tmp_path):
    recipe = {"network": "UNet", "missingness": "full", "network_options": {"widths": [4, 8]}}
    with pytest.raises(InputDataError, match="No training case has T2"):
        train_on(without_t2, tmp_path, recipe, subsets=("t1ce+t2",))


def test_evaluation_recognizes_training_cases(partial_bundle, without_t2, data, tmp_path):
    """Copies with other names, decompressed, beside one case that training has not seen."""
    cohort = tmp_path / "data"
    names = []
    for number, case in enumerate(find_cases(data, BRATS)):
        name = f"Patient_{number}"
        names.append(name)
        (cohort / name).mkdir(parents=True)
        for kind, path in (*case.scans.items(), ("seg", case.label)):
            nibabel.save(nibabel.load(path), cohort / name / f"{name}_{kind}.nii")
    options = EvaluateOptions(output=tmp_path / "evaluation", pictures=False, device="cpu")
    result = evaluate_bundle(cohort, partial_bundle, options, ignore_progress)
    assert any("2 of 3 cases were in the bundle's training" in text for text in result.warnings)
    assert "2 of 3 are training cases" in result.summary.data
    # Also where an earlier evaluation is resumed.
    again = evaluate_bundle(cohort, partial_bundle, options, ignore_progress)
    assert again.warnings == result.warnings
    shutil.rmtree(cohort / names[0])
    shutil.rmtree(cohort / names[1])
    unseen = evaluate_bundle(cohort, partial_bundle, EvaluateOptions(device="cpu"), ignore_progress)
    assert not unseen.warnings
    assert "training cases" not in unseen.summary.data


def test_a_part_without_a_split_is_refused(partial_bundle, data):
    with pytest.raises(UsageError, match="part test was asked for, but no split"):
        evaluate_bundle(data, partial_bundle, EvaluateOptions(part="test"), ignore_progress)


def test_a_run_does_not_go_on_with_other_cases(data, tmp_path):
    cohort = tmp_path / "data"
    shutil.copytree(data, cohort)
    first, _, third = sorted(cohort.iterdir())
    third_elsewhere = tmp_path / "aside"
    third.rename(third_elsewhere)
    train_on(cohort, tmp_path)
    shutil.rmtree(tmp_path / "bundle")
    train_on(cohort, tmp_path)
    shutil.rmtree(tmp_path / "bundle")

    third_elsewhere.rename(third)
    with pytest.raises(BundleError, match=f"1 added, such as {third.name}"):
        train_on(cohort, tmp_path)
    shutil.rmtree(third)
    label = first / f"{first.name}_seg.nii.gz"
    corrected = nibabel.load(label)
    values = corrected.get_fdata().astype("uint8")
    values[values > 0] = 2
    nibabel.save(nibabel.Nifti1Image(values, corrected.affine), label)
    with pytest.raises(BundleError, match=f"1 changed, such as {first.name}"):
        train_on(cohort, tmp_path)


def test_bundles_carry_their_owner_and_a_name_of_their_own(data, tmp_path):
    owner = BundleOptions(author="A. Smith", license="CC-BY-4.0")
    stated = read_bundle_texts(train_on(data, tmp_path / "stated", bundle=owner))
    raw = stated.metadata.raw
    assert raw["authors"] == "A. Smith"
    assert raw["copyright"] == "A. Smith, CC-BY-4.0"
    assert "**Author.** A. Smith" in stated.card_text
    assert "**License.** CC-BY-4.0" in stated.card_text
    other = read_bundle_texts(train_on(data, tmp_path / "other", {"seed": 1}))
    assert other.metadata.raw["authors"] == "not stated"
    assert other.metadata.raw["copyright"] == "not stated"
    assert other.metadata.id != stated.metadata.id
    assert other.metadata.id.startswith("run-")
