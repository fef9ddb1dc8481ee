"""Missingness: fixed masks stay fixed and hit their rates, tables are read by name, absent scans
are never opened.
"""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import numpy as np
import pytest

from medmap.commands.training import train_bundle
from medmap.commands.training_options import CacheOptions, TrainOptions
from medmap.errors import BundleError, InputDataError, MissingInputError, UsageError
from medmap.io.cohorts import find_cases
from medmap.io.nifti import write_labels, write_volume
from medmap.preprocess import PreprocessSpec
from medmap.task import BRATS
from medmap.training.cache import cache_case
from medmap.training.dataset import Augmentation, PatchSampler
from medmap.training.missingness import (
    build_missingness,
    dedicated,
    draw_masks,
    fixed,
    random_subset,
    read_masks,
    write_masks,
)
from medmap.training.options import RuntimeOptions
from medmap.training.recipe import Recipe

RATES = {"t1": 0.2, "t1ce": 0.4, "flair": 0.6, "t2": 0.8}
CASES = [f"case{n:03d}" for n in range(219)]
SPEC = PreprocessSpec(spacing=2.0)


@pytest.mark.parametrize("number", [3, 10, 25, 219])
@pytest.mark.parametrize(
    "rates",
    [(0.2, 0.4, 0.6, 0.8), (0.1, 0.3, 0.7, 0.9), (0.8, 0.8, 0.2, 0.5), (0.0, 0.0, 1.0, 1.0)],
)
def test_fixed_rates_are_hit_exactly_and_no_case_is_left_with_nothing(number, rates):
    rates = dict(zip(("t1", "t1ce", "flair", "t2"), rates, strict=True))
    masks = np.array(list(draw_masks(BRATS, CASES[:number], rates, seed=5).values()))
    assert masks.shape == (number, 4)
    assert masks.any(1).all()
    for name, rate in rates.items():
        assert masks[:, BRATS.index(name)].sum() == round((1 - rate) * number)


def test_fixed_masks_depend_on_seed_and_names_alone():
    protocol, again = fixed(BRATS, CASES, RATES, 3), fixed(BRATS, CASES[::-1], RATES, 3)
    other = fixed(BRATS, CASES, RATES, 4)
    for case in CASES:
        masks = [protocol(case, epoch, np.random.default_rng(epoch)) for epoch in range(5)]
        assert all((mask == protocol.available(case)).all() for mask in masks)
        assert (masks[0] == again.available(case)).all()
    assert any((protocol.available(case) != other.available(case)).any() for case in CASES)


def test_fixed_patterns_look_independent():
    masks = np.array(
        [list(draw_masks(BRATS, CASES, RATES, seed).values()) for seed in range(30)]
    ).reshape(-1, 4)
    together = (masks[:, 0] & masks[:, 1]).mean()
    assert abs(together - 0.8 * 0.6) < 0.03


def test_rates_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match="fewer scans than cases"):
        draw_masks(BRATS, CASES, dict.fromkeys(BRATS.modality_names, 0.8), 0)
    with pytest.raises(UsageError, match="do not fit"):
        draw_masks(BRATS, CASES, {"t1": 0.2}, 0)
    with pytest.raises(UsageError, match="either rates or a table"):
        fixed(BRATS, CASES)


def test_tables_of_passion_are_read_by_name(tmp_path):
    path = tmp_path / "split.csv"
    path.write_text(
        "data_name,mask_id,mask,pos_mask_ids\n"
        'HG_BraTS20_Training_002,10,"[True, True, True, False]","[1, 2, 3]"\n'
        'LG_BraTS20_Training_338,0,"[False, False, False, True]",[0]\n'
        'Brats18_2013_0_1,1,"[False, True, False, False]",[1]\n'
    )
    cases = ["BraTS20_Training_002", "BraTS20_Training_338", "Brats18_2013_0_1"]
    protocol = build_missingness("fixed", BRATS, {"table": str(path)}, cases)
    shown = [
        {n for n, s in zip(BRATS.modality_names, protocol.available(case), strict=True) if s}
        for case in cases
    ]
    assert shown == [{"flair", "t1ce", "t1"}, {"t2"}, {"t1ce"}]
    with pytest.raises(InputDataError, match="BraTS20_Training_999"):
        build_missingness("fixed", BRATS, {"table": str(path)}, [*cases, "BraTS20_Training_999"])


def test_our_own_tables_survive(tmp_path):
    masks = draw_masks(BRATS, CASES, RATES, 0)
    write_masks(tmp_path / "m.csv", BRATS, masks)
    assert (tmp_path / "m.csv").read_text().startswith("case,t1,t1ce,t2,flair\n")
    read = read_masks(tmp_path / "m.csv", BRATS)
    assert all((read[case] == masks[case]).all() for case in CASES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("case,t1,t1ce,t2,flair\na,0,0,0,0\n", "nothing to the case a"),
        ("id,x\na,1\n", "no table"),
        ("data_name,mask\na,[1]\n", "no table"),
    ],
)
def test_other_tables_are_refused(tmp_path, text, words):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(InputDataError, match=words):
        read_masks(tmp_path / "m.csv", BRATS)
    with pytest.raises(MissingInputError):
        read_masks(tmp_path / "none.csv", BRATS)


def drawn(protocol, number=4000):
    rng = np.random.default_rng(0)
    return np.array([protocol("case000", n, rng) for n in range(number)])


def test_subsets_by_cardinality_weigh_single_modalities_and_the_whole_set():
    masks = drawn(random_subset(BRATS, by="cardinality"))
    assert np.abs(np.bincount(masks.sum(1), minlength=5)[1:] / len(masks) - 0.25).max() < 0.03
    assert np.abs(masks[masks.sum(1) == 1].mean(0) - 0.25).max() < 0.05


def test_bernoulli_keeps_each_modality_by_itself_and_at_least_one():
    masks = drawn(random_subset(BRATS, by="bernoulli"))
    assert masks.any(1).all()
    assert np.abs(masks.mean(0) - 8 / 15).max() < 0.03


def test_dedicated_shows_what_is_named_and_dropped_a_part_of_what_another_leaves():
    assert drawn(dedicated(BRATS, show=["flair", "t1ce"]), 1).tolist() == [
        [False, True, False, True]
    ]
    protocol = build_missingness(
        "dropped", BRATS, {"inner": "fixed", "options": {"rates": RATES, "seed": 1}}, CASES
    )
    base = fixed(BRATS, CASES, RATES, 1)
    rng = np.random.default_rng(0)
    for case in CASES:
        assert (protocol.available(case) == base.available(case)).all()
        masks = np.array([protocol(case, 0, rng) for _ in range(20)])
        assert masks.any(1).all()
        assert not masks[:, ~base.available(case)].any()
    three = next(case for case in CASES if base.available(case).sum() == 3)
    patterns, counts = np.unique(
        [protocol(three, 0, rng) for _ in range(3500)], axis=0, return_counts=True
    )
    assert len(patterns) == 7
    assert np.abs(counts / 500 - 1).max() < 0.25


def test_unknown_protocols_and_options_are_refused():
    with pytest.raises(UsageError, match="unknown"):
        build_missingness("sometimes", BRATS, {})
    with pytest.raises(BundleError, match="do not fit"):
        build_missingness("full", BRATS, {"rate": 1})
    with pytest.raises(UsageError, match="cannot be drawn"):
        random_subset(BRATS, by="moon")
    with pytest.raises(UsageError, match="shows nothing"):
        dedicated(BRATS)


@pytest.fixture
def cohort(tmp_path, make_case):
    """Four cases; absent scans under the table of masks are garbage on disk."""
    masks = dict(
        zip("abcd", [("t1",), ("t1ce", "flair"), ("t2", "t1"), BRATS.modality_names], strict=True)
    )
    write_masks(
        tmp_path / "masks.csv",
        BRATS,
        {case: np.array(BRATS.presence(shown)) for case, shown in masks.items()},
    )
    for n, (case, shown) in enumerate(masks.items()):
        folder = tmp_path / "data" / case
        folder.mkdir(parents=True)
        volumes = make_case(seed=n)
        for name, volume in volumes.items():
            path = folder / f"{case}_{name}.nii.gz"
            if name in shown:
                write_volume(path, volume.array.astype(np.int16), volume.affine)
            else:
                path.write_bytes(b"this is no scan")
        label = np.zeros(volumes["t1"].array.shape, np.uint8)
        label[24:30, 18:26, 18:24] = 2
        write_labels(folder / f"{case}_seg.nii.gz", label, volumes["t1"].grid)
    return tmp_path, masks


@pytest.fixture
def opened(monkeypatch):
    """Names of all files opened while a test runs, however they are opened from Python."""
    import gzip
    import io

    names: list[str] = []

    def spy(function):
        def wrapper(path, *args, **kwargs):
            names.append(str(path))
            return function(path, *args, **kwargs)

        return wrapper

    for module, name in ((builtins, "open"), (io, "open"), (gzip, "open")):
        monkeypatch.setattr(module, name, spy(getattr(module, name)))
    read_bytes = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda self: names.append(str(self)) or read_bytes(self)
    )
    return names


def test_a_training_under_fixed_masks_never_opens_an_absent_scan(cohort, opened):
    root, masks = cohort
    recipe = {
        "network_options": {"widths": [4, 8]},
        "missingness": "dropped",
        "missingness_options": {"inner": "fixed", "options": {"table": str(root / "masks.csv")}},
        "steps": 6,
        "patch": [16, 16, 16],
        "large_share": 0.0,
        "preprocess": {"spacing": 2.0},
    }
    (root / "recipe.json").write_text(json.dumps(recipe))
    options = TrainOptions(
        recipe=root / "recipe.json",
        runtime=RuntimeOptions(device="cpu", precision="fp32"),
        cache=CacheOptions(root / "cache"),
    )
    train_bundle(root / "run", root / "data", root / "bundle", options, lambda fraction, text: None)
    scans = {Path(name).name for name in opened if name.endswith(".nii.gz") and "seg" not in name}
    assert scans == {f"{case}_{name}.nii.gz" for case, shown in masks.items() for name in shown}
    cached = {f"{path.parent.name}/{path.name}" for path in (root / "cache").rglob("*.npy")}
    expected = {
        f"{case}/{name}.npy" for case, shown in masks.items() for name in (*shown, "label", "brain")
    }
    assert cached == expected
    assert (root / "run/scans.csv").read_text() == (root / "masks.csv").read_text()


def test_crop_and_normalization_come_from_what_training_may_see(cohort, make_case):
    root, masks = cohort
    cases = {case.case_id: case for case in find_cases(root / "data", BRATS)}
    (root / "cache").mkdir()
    (root / "alone").mkdir()
    folder = cache_case(cases["b"], BRATS, SPEC, root / "cache", BRATS.presence(masks["b"]))
    for name in ("t1", "t2"):
        (root / f"data/b/b_{name}.nii.gz").unlink()
    alone = cache_case(find_cases(root / "data", BRATS)[1], BRATS, SPEC, root / "alone")
    for name in ("t1ce", "flair", "label", "brain"):
        assert (np.load(folder / f"{name}.npy") == np.load(alone / f"{name}.npy")).all()


def test_a_batch_under_fixed_masks_is_the_same_subset_every_epoch(cohort):
    root, masks = cohort
    protocol = fixed(BRATS, list("abcd"), table=str(root / "masks.csv"))
    (root / "cache").mkdir()
    folders = [
        cache_case(case, BRATS, SPEC, root / "cache", protocol.available(case.case_id))
        for case in find_cases(root / "data", BRATS)
    ]
    sampler = PatchSampler(folders, protocol, 0, Augmentation())
    for step in range(20):
        batch = sampler.batch(step, 2, (16, 16, 16))
        for case, present in zip(batch.case_id, batch.present, strict=True):
            assert tuple(present.tolist()) == BRATS.presence(masks[case])
        assert (batch.image[~batch.present] == 0).all()
    assert (sampler.available("b") == np.array(BRATS.presence(masks["b"]))).all()


def test_another_mask_prepares_a_case_anew(cohort):
    root, _ = cohort
    case = find_cases(root / "data", BRATS)[3]
    (root / "cache").mkdir()
    cache_case(case, BRATS, SPEC, root / "cache")
    folder = cache_case(case, BRATS, SPEC, root / "cache", BRATS.presence(["t2"]))
    assert sorted(path.stem for path in folder.glob("*.npy")) == ["brain", "label", "t2"]


def test_a_case_without_any_scan_to_show_is_refused(cohort):
    root, _ = cohort
    (root / "cache").mkdir()
    (root / "data/a/a_t2.nii.gz").unlink()
    case = find_cases(root / "data", BRATS)[0]
    with pytest.raises(InputDataError, match="none of the scans that training may see"):
        cache_case(case, BRATS, SPEC, root / "cache", BRATS.presence(["t2"]))
    folder = cache_case(case, BRATS, SPEC, root / "cache", BRATS.presence(["t1"]))
    sampler = PatchSampler([folder], dedicated(BRATS, show=["flair"]), 0, Augmentation())
    with pytest.raises(InputDataError, match="none of the modalities that the missingness shows"):
        sampler.batch(0, 1, (16, 16, 16))


def test_cases_are_held_out_by_name_or_number():
    assert Recipe(held_out_cases=("case002",)).hold_out(CASES) == {"case002"}
    five = Recipe(held_out_cases=5, seed=3).hold_out(CASES)
    assert len(five) == 5
    assert five == Recipe(held_out_cases=5, seed=3).hold_out(CASES)
    assert not Recipe().hold_out(CASES)
    for wrong in (("nobody",), 219):
        with pytest.raises(UsageError, match="out of training"):
            Recipe(held_out_cases=wrong).hold_out(CASES)
