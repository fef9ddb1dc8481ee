"""Published rows: their splits, their names, and the layouts that they read."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, replace
from itertools import combinations

import pytest
from Testing.medmap.small_networks import SMALL
from Testing.medmap.training.recipe_networks import network_for
from typer.testing import CliRunner

from medmap.bundle.format import InferenceSpec, NetworkSpec
from medmap.commands.dedicated import expand_subsets
from medmap.commands.phantoms import LAYOUTS, write_phantoms
from medmap.commands.training import train_bundle
from medmap.commands.training_data import split_cases
from medmap.commands.training_options import TrainOptions
from medmap.errors import BundleError, InputDataError, MissingInputError, UsageError
from medmap.io.cohorts import find_cases
from medmap.networks import build_network
from medmap.postprocess.spec import NO_POSTPROCESSING
from medmap.task import BRATS, find_task
from medmap.training.export import TrainedNetwork, default_name, inference_spec
from medmap.training.published import (
    find_recipe,
    find_split,
    merge,
    published_rows,
    recipes_folder,
    row_name,
)
from medmap.training.recipe import Recipe, WindowedInference
from medmap.training.splits import read_split

ROWS = {
    name: row
    for name, row in published_rows().items()
    if name.startswith(("journal-", "conference-"))
}
"""MedMAP's own; the others' have tests beside their objectives."""


# --- splits ---


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("brats2018_protokd", (200, 28, 57)),
        ("brats2018_uhved_1", (199, 29, 57)),
        ("brats2018_uhved_2", (199, 29, 57)),
        ("brats2018_uhved_3", (199, 29, 57)),
        ("brats2020_rfnet", (219, 50, 100)),
    ],
)
def test_splits_are_complete_and_disjoint(name, counts):
    split = read_split(find_split(name))
    parts = [set(split[part]) for part in ("train", "val", "test")]
    assert tuple(map(len, parts)) == counts
    assert all(not a & b for a, b in combinations(parts, 2))
    union = set.union(*parts)
    assert union == (
        {f"BraTS20_Training_{n:03d}" for n in range(1, 370)}
        if "2020" in name
        else set.union(*(set(v) for v in read_split(find_split("brats2018_protokd")).values()))
    )


def test_the_splits_are_those_that_were_published():
    """Hashes and overlaps are facts of the published lists; the hash is that of the sorted list."""
    split = read_split(find_split("brats2018_protokd"))
    found = {
        part: hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:16]
        for part, names in split.items()
    }
    assert found == HASHES
    tests = [set(read_split(find_split(f"brats2018_uhved_{n}"))["test"]) for n in (1, 2, 3)]
    assert [len(a & b) for a, b in combinations(tests, 2)] == [14, 9, 14]
    assert len(set.union(*tests)) == 137


HASHES = {"train": "4f25352d27f08262", "val": "39c18114a0fca92a", "test": "5a005ec127fbbce9"}


def test_a_split_that_the_data_do_not_hold_is_refused(tmp_path):
    with pytest.raises(MissingInputError, match="brats2018_protokd"):
        find_split("nowhere")
    with pytest.raises(InputDataError, match="200"):
        split_cases([], "brats2018_protokd")


# --- rows ---


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_row_is_what_its_name_says(name):
    row = ROWS[name]
    assert row.petaflop > 0
    assert find_split(row.recipe.split)
    assert not row.teacher or row.teacher in ROWS
    anchor = {"pn": "normal", "pk": "peer", "pmix": "mixture"}
    aligned = ROWS[row.teacher].recipe if row.teacher else row.recipe
    parts = name.split("-")
    expected = next((anchor[part] for part in parts if part in anchor), None)
    assert aligned.alignment.get("anchor") == expected
    assert aligned.alignment.get("joint", False) is ("joint" in parts)
    forms = {"pn": "printed", "pk": "eq12", "pmix": "eq13"}
    printed = next((forms[part] for part in parts if part in forms), None)
    is_printed = "printed" in parts
    assert aligned.alignment.get("form") == (printed if is_printed else None)
    if expected == "peer":
        assert aligned.alignment["k"] == ("t2" if name.endswith("pk-t2") else "t1ce")
    for _, part in expand_subsets(row.recipe, BRATS):
        assert Recipe.from_dict(json.loads(json.dumps(asdict(part)))).digest() == part.digest()
    taught = row.recipe.objective in ("kd-net", "pmkl", "protokd")
    assert bool(row.teacher) is taught


def test_every_row_does_inference_as_the_papers_do():
    for name, row in published_rows().items():
        assert row.recipe.inference == WindowedInference(0.5, "uniform"), name
        assert row.recipe.postprocess == NO_POSTPROCESSING, name
    assert Recipe().inference is None


@pytest.mark.parametrize(
    "name", ["conference-unet-teacher-none", "passion-backbones-rfnet-pdt", "passion-myops2020-pdt"]
)
def test_a_bundle_carries_the_windows_of_its_training_patch(name):
    recipe = published_rows()[name].recipe
    small = replace(recipe, network_options=recipe.network_options | SMALL[recipe.network])
    task = find_task(recipe.task)
    spec = inference_spec(small, network_for(small, task))
    # Slices stack along an axis that only a case knows.
    window = tuple(recipe.patch) if len(recipe.patch) == 3 else (max(recipe.patch),) * 3
    assert spec.window == window
    assert (spec.overlap, spec.weighting) == (0.5, "uniform")
    assert InferenceSpec.from_dict(spec.to_dict()) == spec


def test_intensities_are_scaled_as_the_papers_or_their_codes_do():
    """Conference, Section IV: [-1, 1]; the codes of ACN and SMU-Net scale between extremes."""
    for name, row in ROWS.items():
        spec = row.recipe.preprocess
        is_scaled = name.startswith(("conference-", "journal-acn-"))
        assert (spec.scaling == "minmax") is is_scaled, name
        if is_scaled:
            assert spec.percentiles == (0, 100), name


def test_the_encoders_of_the_ablation_have_equal_weights():
    """Journal, VI-C.1: T* has J * c channels for as many weights as J encoders of c channels."""
    stems = {}
    for encoder in ("nonshared", "tstar"):
        recipe = ROWS[f"journal-encoder-teacher-{encoder}"].recipe
        network = build_network("UNet", recipe.network_options | {"modalities": 4, "classes": 4})
        stems[encoder] = sum(p.numel() for p in network.maps.parameters())
        assert len(network.maps) == (4 if encoder == "nonshared" else 1)
    assert stems["nonshared"] == stems["tstar"] == 108


def test_what_is_installed_has_every_recipe():
    folder = recipes_folder()
    project = (folder.parent / "pyproject.toml").read_text()
    for path in folder.rglob("*"):
        if path.is_file():
            inner = path.parent.relative_to(folder.parent).as_posix()
            assert f'"share/medmap/{inner}" = ["{inner}/*' in project, (
                f"{inner} is not in pyproject's data-files"
            )


def test_recipes_are_found_by_name_and_by_file(tmp_path):
    recipe, row = find_recipe("journal-mmformer-pk-brats2020")
    assert row.name == "journal-mmformer-pk-brats2020"
    (tmp_path / "own.json").write_text(json.dumps(asdict(recipe)))
    assert find_recipe(tmp_path / "own.json")[0].digest() == recipe.digest()
    assert find_recipe("rfnet")[0].network == "RFNet"
    with pytest.raises(MissingInputError, match="medmap recipes"):
        find_recipe("nothing")


def test_bundles_of_rows_are_named_after_them():
    recipe = ROWS["journal-mmformer-none-brats2018"].recipe
    small = replace(recipe, network_options=recipe.network_options | SMALL[recipe.network])
    network = TrainedNetwork(NetworkSpec(recipe.network, {}), network_for(small, BRATS), 1, {})
    name = default_name(row_name("journal-mmformer-none-brats2018"), [network])
    assert re.fullmatch(r"journal-mmformer-none-brats2018-[0-9a-f]{8}", name)
    assert row_name("rfnet") == "", "a recipe of one's own has no row"


def test_a_student_without_its_teacher_is_told_how(tmp_path):
    options = TrainOptions(recipe="journal-pmkl-pk-brats2018")
    with pytest.raises(UsageError, match="journal-pmkl-teacher-pk-brats2018"):
        train_bundle(
            tmp_path / "run", tmp_path, tmp_path / "bundle", options, lambda fraction, text: None
        )


def test_a_table_that_is_not_understood_is_refused(tmp_path):
    (tmp_path / "parts.json").write_text('{"parts": {"a": {"netwerk": "UNet"}}}')
    row = {"name": "x", "title": "x", "table": "x", "use": ["a"]}
    (tmp_path / "t.json").write_text(json.dumps({"source": "s", "rows": [row]}))
    with pytest.raises(BundleError, match="netwerk"):
        published_rows(tmp_path)


def test_parts_merge_key_by_key():
    assert merge({"a": {"b": 1, "c": [1]}, "notes": ["x"]}, {"a": {"c": [2]}, "notes": ["y"]}) == {
        "a": {"b": 1, "c": [2]},
        "notes": ["x", "y"],
    }


def test_the_list_of_recipes_names_each_once_in_full():
    from medmap.cli.main import app

    shown = CliRunner().invoke(app, ["recipes"])
    assert shown.exit_code == 0
    words = shown.stdout.split()
    assert all(words.count(name) == 1 for name in ROWS)
    one = CliRunner().invoke(app, ["recipes", "journal-mmformer-pmix-brats2018"])
    assert "70.58" in one.stderr
    recipe = Recipe.from_dict(json.loads(one.stdout))
    assert recipe.digest() == ROWS["journal-mmformer-pmix-brats2018"].recipe.digest()


# --- layouts on disk ---


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_a_release_is_found_as_it_is_downloaded(layout, tmp_path):
    write_phantoms(
        tmp_path, 2, 7, 4.0, False, "cpu", False, lambda fraction, text: None, layout=layout
    )
    cases = find_cases(tmp_path, BRATS)
    assert len(cases) == 2
    for case in cases:
        assert set(case.scans) == set(BRATS.modality_names)
        assert case.label is not None
        cache = tmp_path / "cache"
        cache.mkdir(exist_ok=True)
    if layout == "brats2018":
        assert {p.name for p in (tmp_path / "MICCAI_BraTS_2018_Data_Training").iterdir()} == {
            "HGG",
            "LGG",
        }
        cases[0].label.rename(cases[0].label.with_name("W39_1998.09.19_Segm.nii.gz"))
        assert find_cases(tmp_path, BRATS)[0].label is not None, (
            "the odd name of a case of BraTS2020"
        )


def test_labels_mean_the_same_in_every_release(tmp_path):
    from medmap.training.cache import read_label

    maps = []
    for layout in ("brats2018", "brats2023"):
        write_phantoms(
            tmp_path / layout,
            1,
            7,
            4.0,
            False,
            "cpu",
            False,
            lambda fraction, text: None,
            layout=layout,
        )
        case = find_cases(tmp_path / layout, BRATS)[0]
        volumes = case.read(["t1"])
        maps.append(read_label(case, BRATS, volumes, volumes["t1"].grid))
    assert (maps[0] == maps[1]).all()
    assert set(maps[0].flat) == {0, 1, 2, 3}


def test_two_patients_of_one_name_are_refused(tmp_path):
    for grade in ("HGG", "LGG"):
        (tmp_path / "data" / grade / "A").mkdir(parents=True)
        for scan in ("t1", "t2"):
            (tmp_path / "data" / grade / "A" / f"A_{scan}.nii.gz").touch()
    with pytest.raises(InputDataError, match="named A"):
        find_cases(tmp_path / "data", BRATS)
