"""From folds to one bundle: trained one by one or together, averaged, and scored crosswise."""

from __future__ import annotations

import json

import pytest
import torch
from Testing.medmap.commands.tiny_training import write_cohort, write_recipe

from medmap.bundle.loading import load_bundle
from medmap.commands.bundle_export import export_run
from medmap.commands.evaluation import EvaluateOptions, evaluate_bundle
from medmap.commands.splitting import SplitOptions, check_split, write_folds
from medmap.commands.training import train_bundle
from medmap.commands.training_options import BundleOptions, TrainOptions
from medmap.errors import BundleError, InputDataError, UsageError
from medmap.networks import Ensemble
from medmap.progress import ignore_progress
from medmap.task import BRATS
from medmap.training.options import RuntimeOptions


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"), 4)


@pytest.fixture(scope="module")
def folds(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("folds") / "folds.json"
    report = write_folds(data, path, BRATS, SplitOptions(folds=2))
    assert [len(fold["val"]) for fold in report.folds] == [2, 2]
    assert report.patients == 4
    return path


def options_for(folder, split, fold):
    path = write_recipe(folder)
    runtime = RuntimeOptions(device="cpu", precision="fp32")
    return TrainOptions(recipe=path, split=str(split), fold=fold, runtime=runtime)


@pytest.fixture(scope="module")
def trained(data, folds, tmp_path_factory):
    """All folds at once; returns the folder of the run and of the bundle."""
    folder = tmp_path_factory.mktemp("trained")
    options = options_for(folder, folds, "all")
    done = train_bundle(folder / "run", data, folder / "bundle", options, ignore_progress)
    assert done == (2, 2)
    return folder


def test_all_folds_become_one_bundle_of_their_mean_probabilities(trained):
    bundle = load_bundle(trained / "bundle")
    assert isinstance(bundle.network, Ensemble)
    assert len(bundle.network.members) == 2
    assert "2 times the computation" in bundle.card["cost"]
    assert bundle.training_cases.count == 4
    torch.manual_seed(0)
    image = torch.randn(2, 4, 32, 32, 32, dtype=torch.float64)
    present = torch.tensor([[True, True, False, True], [False, False, True, False]])
    image[~present] = torch.nan
    network = bundle.network.double().eval()
    with torch.no_grad():
        found = network(image, present).logits.softmax(1)
        members = [member(image, present).logits.softmax(1) for member in network.members]
    assert not torch.allclose(members[0], members[1])
    torch.testing.assert_close(found, sum(members) / 2)


def test_folds_trained_one_by_one_are_the_same_ensemble(trained, data, folds, tmp_path):
    """As several machines would, and again where nothing is left to do."""
    for fold in ("0", "1"):
        options = options_for(tmp_path, folds, fold)
        bundle = tmp_path / f"bundle{fold}"
        assert train_bundle(tmp_path / "run", data, bundle, options, ignore_progress) == (1, 1)
        assert not isinstance(load_bundle(bundle).network, Ensemble)
    assert export_run(tmp_path / "run", tmp_path / "bundle", BundleOptions()) == 1
    whole = load_bundle(trained / "bundle").network.state_dict()
    pieces = load_bundle(tmp_path / "bundle").network.state_dict()
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)


def test_cross_validation_scores_each_case_with_the_network_that_has_not_seen_it(
    trained, data, folds, tmp_path
):
    options = EvaluateOptions(split=folds, cross_validate=True, device="cpu", output=tmp_path / "e")
    result = evaluate_bundle(data, trained / "bundle", options, ignore_progress)
    assert result.summary.cases == 4
    assert not result.warnings
    # The ensemble as a whole has seen them all, and so has each member with the folds exchanged.
    plain = evaluate_bundle(
        data, trained / "bundle", EvaluateOptions(device="cpu"), ignore_progress
    )
    assert "4 of 4 cases were in the bundle's training" in plain.warnings[0]
    content = json.loads(folds.read_text())
    content["folds"].reverse()
    exchanged = tmp_path / "exchanged.json"
    exchanged.write_text(json.dumps(content))
    wrong = EvaluateOptions(split=exchanged, cross_validate=True, device="cpu")
    result = evaluate_bundle(data, trained / "bundle", wrong, ignore_progress)
    assert "4 of 4 cases were in the bundle's training" in result.warnings[0]


def test_ensembles_and_folds_that_do_not_fit_are_refused(trained, data, folds, tmp_path):
    three = tmp_path / "three.json"
    write_folds(data, three, BRATS, SplitOptions(folds=3))
    options = EvaluateOptions(split=three, cross_validate=True, device="cpu")
    with pytest.raises(BundleError, match="has 3 folds, and the bundle"):
        evaluate_bundle(data, trained / "bundle", options, ignore_progress)
    for fold in (None, "2", "x"):
        with pytest.raises(UsageError, match="fold"):
            train_bundle(
                tmp_path / "run",
                data,
                tmp_path / "b",
                options_for(tmp_path, folds, fold),
                ignore_progress,
            )
    assert not (tmp_path / "run").exists()


def test_folds_are_checked_against_the_data(data, folds, tmp_path):
    assert check_split(data, folds, BRATS, SplitOptions()).remarks == []
    content = json.loads(folds.read_text())
    content["folds"][0]["train"].append("nobody")
    faulty = tmp_path / "faulty.json"
    faulty.write_text(json.dumps(content))
    with pytest.raises(InputDataError, match="1 cases are not in the data, such as nobody"):
        check_split(data, faulty, BRATS, SplitOptions())
    nnunet = tmp_path / "splits_final.json"
    write_folds(data, nnunet, BRATS, SplitOptions(folds=2, nnunet=True))
    assert isinstance(json.loads(nnunet.read_text()), list)
    assert check_split(data, nnunet, BRATS, SplitOptions()).remarks == []
