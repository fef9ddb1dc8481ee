"""Hearts: the challenge's layout, slices that never mix, large label values, a bundle."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from Testing.medmap.small_networks import SMALL

from medmap.bundle.format import InferenceSpec, NetworkSpec
from medmap.bundle.loading import load_bundle, save_bundle
from medmap.checks import check_inputs
from medmap.commands.phantoms import write_hearts
from medmap.commands.segment import Options, segment_files
from medmap.commands.training import train_bundle
from medmap.commands.training_options import TrainOptions
from medmap.errors import MissingInputError, UsageError
from medmap.inference import segment, segment_subsets
from medmap.io.cohorts import find_cases
from medmap.io.nifti import read_nifti
from medmap.metrics import label_masks
from medmap.networks import NETWORKS, build_network
from medmap.phantom import generate_heart
from medmap.postprocess.reference_labels import labels_on_reference
from medmap.postprocess.spec import PostprocessSpec
from medmap.preprocess import PreprocessSpec, prepare
from medmap.resampling import slice_axis_of
from medmap.subset_comparison import what_if
from medmap.task import BRATS, MYOPS, MYOPS_ANATOMY, Task, find_task
from medmap.training.cache import cache_case
from medmap.training.dataset import Augmentation, PatchSampler, rotated
from medmap.training.missingness import build_missingness
from medmap.training.options import RuntimeOptions
from medmap.training.recipe import Recipe
from medmap.volume import Volume

SPEC = PreprocessSpec(spacing=4.0, slices=True, field=256.0)
NAMES = MYOPS.modality_names


def quiet(fraction, text):
    return None


@pytest.fixture(scope="module")
def challenge(tmp_path_factory):
    root = tmp_path_factory.mktemp("challenge")
    write_hearts(root, 2, 7, 4.0, "cpu", False, quiet)
    return root


@pytest.fixture
def hearts(challenge) -> dict[str, Volume]:
    return find_cases(challenge, MYOPS)[0].read()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    torch.manual_seed(1)
    options = {"modalities": 3, "classes": 6, "spatial_dims": 2, "widths": [8, 8]}
    network = build_network("SubsetUNet", options)
    with torch.no_grad():
        network.head.weight.mul_(4)
    path = save_bundle(
        tmp_path_factory.mktemp("bundle") / "heart",
        name="heart",
        version="1.0.0",
        task=MYOPS,
        network=network,
        network_spec=NetworkSpec("SubsetUNet", options),
        preprocess=SPEC,
        inference=InferenceSpec(),
        card={},
    )
    return load_bundle(path)


# --- task ---


def test_the_task_has_seven_subsets_and_the_challenges_values():
    assert len(MYOPS.subsets()) == 7
    assert MYOPS.label_values() == (0, 200, 500, 600, 1220, 2221)
    assert MYOPS.label_dtype == np.int16
    assert BRATS.label_dtype == np.uint8
    assert [MYOPS.find(word) for word in ("C0", "de", "T2", "bSSFP")] == [
        "bssfp",
        "lge",
        "t2",
        "bssfp",
    ]
    assert find_task("myops") is MYOPS


@pytest.mark.parametrize("task", [MYOPS, MYOPS_ANATOMY], ids=lambda t: t.name)
def test_the_task_survives_its_bundle(task):
    assert Task.from_dict(task.to_dict()) == task


def test_a_task_of_an_older_bundle_is_a_brain():
    data = {
        k: v for k, v in BRATS.to_dict().items() if k not in ("organ", "target", "skull_stripped")
    }
    assert Task.from_dict(data) == BRATS


def test_passions_targets_take_scar_and_edema_as_myocardium():
    values = np.array([0, 200, 500, 600, 1220, 2221])
    assert label_masks(values, MYOPS_ANATOMY)["MYO"].tolist() == [
        False,
        True,
        False,
        False,
        True,
        True,
    ]


# --- phantom and layout ---


def test_a_phantom_has_the_challenges_names_values_and_one_grid(challenge):
    scans = {p.name for p in (challenge / "train25").iterdir()}
    assert scans == {
        f"myops_training_{n}_{m}.nii.gz" for n in (101, 102) for m in ("C0", "DE", "T2")
    }
    label = nib.load(challenge / "train25_myops_gd/myops_training_101_gd.nii.gz")
    assert set(np.unique(label.dataobj)) <= set(MYOPS.label_values())
    assert {200, 500, 600} <= set(np.unique(label.dataobj))
    for name in ("C0", "DE", "T2"):
        scan = nib.load(challenge / f"train25/myops_training_101_{name}.nii.gz")
        assert scan.shape == label.shape
        assert np.array_equal(scan.affine, label.affine)
    assert 10 <= nib.affines.voxel_sizes(label.affine)[2] <= 14


def test_the_same_seed_is_the_same_heart_and_another_is_not():
    one, two, other = (generate_heart(seed, spacing=4.0) for seed in (3, 3, 4))
    assert all(torch.equal(one.images[m], two.images[m]) for m in NAMES)
    assert one.facts == two.facts != other.facts


@pytest.mark.parametrize("spacing", [0.1, 9.0])
def test_an_impossible_phantom_is_refused(spacing):
    with pytest.raises(UsageError):
        generate_heart(0, spacing=spacing)


def test_each_contrast_tells_something_else():
    def contrast(modality: str, one: int, other: int) -> float:
        found = []
        for seed in range(6):
            heart = generate_heart(seed, spacing=3.0)
            image, label = heart.images[modality], heart.label
            if (label == one).sum() > 20 and (label == other).sum() > 20:
                found.append(float(image[label == one].mean() / image[label == other].mean()))
        return float(np.mean(found))

    normal, blood, edema, scar = 1, 2, 4, 5
    assert contrast("bssfp", blood, normal) > 1.6
    assert 0.8 < contrast("bssfp", scar, normal) < 1.25
    assert contrast("lge", scar, normal) > 2
    assert contrast("lge", edema, normal) < contrast("lge", scar, normal) / 1.5
    assert contrast("t2", edema, normal) > 1.4


def test_cases_are_found_from_the_challenge_and_from_its_folder(challenge, tmp_path):
    for folder in (challenge, challenge / "train25"):
        cases = find_cases(folder, MYOPS)
        assert [c.case_id for c in cases] == ["myops_training_101", "myops_training_102"]
        assert all(set(c.scans) == set(NAMES) and c.label is not None for c in cases)
    test = tmp_path / "test20"
    test.mkdir()
    for name in ("C0", "T2"):
        (test / f"myops_test_201_{name}.nii.gz").touch()
    (case,) = find_cases(test, MYOPS)
    assert (case.case_id, set(case.scans), case.label) == ("myops_test_201", {"bssfp", "t2"}, None)


def test_cases_in_the_layout_of_brats_are_found_for_hearts_too(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("bssfp", "LGE", "seg"):
        (tmp_path / "a" / f"a_{name}.nii.gz").touch()
    (case,) = find_cases(tmp_path, MYOPS)
    assert set(case.scans) == {"bssfp", "lge"}
    assert case.label is not None


def test_a_folder_of_brains_holds_no_hearts(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/a_flair.nii.gz").touch()
    with pytest.raises(MissingInputError, match="MyoPS"):
        find_cases(tmp_path, MYOPS)


# --- slices ---


def turned(volume: Volume) -> Volume:
    """The same voxels at the same places, stored with other axes."""
    array = np.ascontiguousarray(volume.array.transpose(2, 0, 1)[:, ::-1])
    change = np.array(
        [[0, -1, 0, volume.array.shape[0] - 1], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]]
    )
    return Volume(array, volume.affine @ change, volume.name)


def test_slices_of_the_wanted_spacing_are_copied_voxel_for_voxel(hearts):
    prepared = prepare(hearts, MYOPS, SPEC, multiple=4)
    axis = prepared.slice_axis
    assert prepared.grid.shape[axis] == hearts["lge"].array.shape[2]
    assert [n for a, n in enumerate(prepared.grid.shape) if a != axis] == [64, 64]
    z = (hearts["lge"].array - hearts["lge"].array.mean()) / hearts["lge"].array.std()
    inside = prepared.image[MYOPS.index("lge")].movedim(axis, -1).numpy()
    middle = z[8:72, 8:72]
    flips = [middle[::a, ::b, ::c] for a in (1, -1) for b in (1, -1) for c in (1, -1)]
    assert max(np.corrcoef(inside.ravel(), f.ravel())[0, 1] for f in flips) > 0.999


def test_every_stored_orientation_gives_the_same_tensor(hearts):
    expected = prepare(hearts, MYOPS, SPEC, multiple=4)
    again = prepare({n: turned(v) for n, v in hearts.items()}, MYOPS, SPEC, multiple=4)
    assert torch.equal(expected.image, again.image)
    assert expected.slice_axis == again.slice_axis


def test_a_field_larger_than_the_scan_is_padded_and_none_keeps_it_whole(hearts):
    axis = prepare(hearts, MYOPS, SPEC).slice_axis
    for field, size in ((512.0, 128), (0.0, 80)):
        prepared = prepare(hearts, MYOPS, replace(SPEC, field=field), multiple=16)
        assert [n for a, n in enumerate(prepared.grid.shape) if a != axis] == [size, size]
    assert not prepare(hearts, MYOPS, replace(SPEC, field=512.0)).brain.all()


@pytest.mark.parametrize("spacing", [4.0, 3.0])
@pytest.mark.parametrize("turn", [False, True])
def test_labels_come_back_to_their_places(challenge, hearts, spacing, turn):
    truth = read_nifti(find_cases(challenge, MYOPS)[0].label, modality="seg")
    volumes = {"t2": turned(hearts["t2"]) if turn else hearts["t2"]}
    truth = turned(truth) if turn else truth
    prepared = prepare(volumes, MYOPS, replace(SPEC, spacing=spacing), multiple=4)
    from medmap.resampling import to_grid

    masks = [truth.array == v for v in MYOPS.label_values()]
    probability = torch.stack(
        [to_grid(m.astype(np.float32), truth.grid, prepared.grid, True) for m in masks]
    )
    back = labels_on_reference(probability, prepared, MYOPS)
    assert back.dtype == np.int16
    heart = (truth.array > 0) | (back > 0)
    assert (back == truth.array)[heart].mean() > (0.999 if spacing == 4.0 else 0.85)


def test_across_thick_slices_nothing_is_interpolated(hearts):
    """A scan with other slices gives each of ours its nearest one, and none where it has none."""
    source = hearts["bssfp"]
    count = source.array.shape[2]
    shifted = source.affine.copy()
    shifted[:3, 3] += 0.3 * source.affine[:3, 2]
    numbered = np.broadcast_to(np.arange(1.0, count + 1), source.array.shape).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 1e-3, numbered.shape).astype(np.float32)
    prepared = prepare(
        {"bssfp": source, "lge": Volume(numbered + noise, shifted)},
        MYOPS,
        SPEC,
        reference="bssfp",
        multiple=4,
    )
    seen = prepared.image[MYOPS.index("lge")].movedim(prepared.slice_axis, 0)[:, 20:44, 20:44]
    levels = seen.flatten(1).mean(1)
    assert float(seen.flatten(1).std(1).max()) < 0.02
    steps = levels.diff().abs()
    assert torch.allclose(steps, steps[0].expand_as(steps), atol=0.02)


def test_a_slice_is_segmented_alone(hearts, bundle, network_logits):
    prepared = prepare(hearts, MYOPS, SPEC, multiple=4)
    (before,) = network_logits(bundle, prepared, [NAMES])
    axis = prepared.slice_axis
    image = prepared.image.clone()
    image.movedim(axis + 1, 0)[1] = torch.randn_like(image.movedim(axis + 1, 0)[1])
    (after,) = network_logits(bundle, replace(prepared, image=image), [NAMES])
    changed = (before != after).movedim(axis + 1, 0).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [1]


# --- the leak law ---


@pytest.mark.parametrize("subset", MYOPS.subsets()[:-1], ids="+".join)
@pytest.mark.parametrize("content", ["noise", "nan"])
def test_what_absent_scans_hold_changes_nothing(hearts, bundle, network_logits, subset, content):
    present = {name: hearts[name] for name in subset}
    expected = prepare(present, MYOPS, SPEC, multiple=4)
    (logits,) = network_logits(bundle, expected, [subset])
    filled = expected.image.clone()
    absent = ~expected.present
    filled[absent] = float("nan") if content == "nan" else torch.randn_like(filled[absent]) * 9
    (leaked,) = network_logits(bundle, replace(expected, image=filled), [subset])
    assert torch.equal(leaked, logits)
    together = prepare(hearts, MYOPS, SPEC, reference=expected.reference, multiple=4)
    for name in subset:
        assert torch.equal(together.image[MYOPS.index(name)], expected.image[MYOPS.index(name)])


@pytest.mark.parametrize("subset", [("t2",), ("bssfp", "lge")], ids="+".join)
@pytest.mark.parametrize("name", ["SubsetUNet", "RFNet", "UHeMIS"])
def test_backbones_in_two_dimensions_do_not_leak(name, subset):

    options = {**SMALL.get(name, {}), "modalities": 3, "classes": 6, "spatial_dims": 2}
    torch.manual_seed(0)
    network = NETWORKS[name](**options).eval()
    present = torch.tensor([MYOPS.presence(subset)])
    image = torch.randn(1, 3, 32, 32)
    other = torch.where(present[..., None, None], image, float("nan"))
    with torch.no_grad():
        assert torch.equal(network(image, present).logits, network(other, present).logits)


# --- checks, training, files ---


def test_checks_of_brains_do_not_look_at_hearts(hearts):
    assert not {f.check for f in check_inputs(hearts, MYOPS)} & {
        "skull-strip",
        "brain-volume",
        "field-of-view",
    }
    assert "skull-strip" in {f.check for f in check_inputs({"t2": hearts["t2"]}, BRATS)}


def test_rotating_moves_image_and_label_alike():
    label = np.zeros((40, 40), np.uint8)
    label[8:16, 18:30] = 3
    image = label.astype(np.float32)[None]
    turned_label, turned_image = rotated(label, 30.0), rotated(image, 30.0)[0]
    assert set(np.unique(turned_label)) == {0, 3}
    assert ((turned_image > 1.5) == (turned_label == 3)).mean() > 0.98
    assert not np.array_equal(turned_label, label)
    assert np.array_equal(rotated(label, 0.0), label)


def test_batches_are_slices_and_never_show_what_is_absent(challenge, tmp_path):
    folders = [cache_case(case, MYOPS, SPEC, tmp_path) for case in find_cases(challenge, MYOPS)]
    sampler = PatchSampler(
        folders,
        build_missingness("random-subset", MYOPS, {}),
        0,
        Augmentation(rotate=20.0, flip=0.0),
    )
    seen = set()
    for step in range(8):
        batch = sampler.batch(step, 2, (48, 48))
        assert batch.image.shape == (2, 3, 48, 48)
        assert batch.label.shape == batch.brain.shape == (2, 48, 48)
        assert (batch.image[~batch.present] == 0).all()
        seen |= set(batch.label.unique().tolist())
    assert {0, 1, 2, 3} <= seen


def test_a_recipe_trains_a_bundle_that_segments_any_subset_from_files(challenge, tmp_path):
    recipe = Recipe(
        task="MyoPS",
        network_options={"widths": (4, 8)},
        steps=3,
        batch=2,
        patch=(48, 48),
        large_share=0.0,
        preprocess=SPEC,
        postprocess=PostprocessSpec(),
    )
    (tmp_path / "r.json").write_text(json.dumps(asdict(recipe)))
    options = TrainOptions(
        recipe=tmp_path / "r.json", runtime=RuntimeOptions(precision="fp32", device="cpu")
    )
    assert train_bundle(tmp_path / "run", challenge, tmp_path / "bundle", options, quiet) == (3, 3)
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.task == MYOPS
    assert loaded.preprocess.slices
    case = find_cases(challenge, MYOPS)[1]
    result = segment_files(
        [("C0", case.scans["bssfp"]), ("lge", case.scans["lge"])],
        tmp_path / "out",
        tmp_path / "bundle",
        Options(device="cpu", truth=case.label),
        progress=quiet,
        cancel=lambda: False,
    )
    label, scan = nib.load(tmp_path / "out/segmentation.nii.gz"), nib.load(case.scans["lge"])
    assert label.get_data_dtype() == np.int16
    assert np.array_equal(label.affine, scan.affine)
    assert set(np.unique(label.dataobj)) <= set(MYOPS.label_values())
    assert set(result.scores) == {"LVB", "RVB", "MYO", "SCAR", "PATH"}
    assert result.segmentation.provenance.missing == ("t2",)
    with pytest.raises(UsageError, match="MyoPS") as caught:
        segment_files(
            {"flair": case.scans["lge"]},
            tmp_path / "no",
            tmp_path / "bundle",
            Options(device="cpu"),
            progress=quiet,
            cancel=lambda: False,
        )
    assert "bssfp, lge, t2" in caught.value.remedy
    assert not (tmp_path / "no").exists()


def test_all_seven_subsets_at_once_equal_each_alone(hearts, bundle):
    at_once = segment_subsets(hearts, bundle, MYOPS.subsets(), reference="bssfp")
    assert len(at_once) == 7
    for subset in (s for s in MYOPS.subsets() if "bssfp" in s):
        alone = segment({name: hearts[name] for name in subset}, bundle, reference="bssfp")
        assert np.array_equal(alone.labels, at_once[MYOPS.subset_key(subset)])


def test_what_if_takes_hearts(hearts, bundle):
    found = what_if(hearts, bundle)
    assert len(found.variants) == 7
    assert np.array_equal(found.labels, segment(hearts, bundle).labels)
    assert found.maps["entropy"].shape == hearts["lge"].array.shape


def test_the_axis_across_slices_is_that_of_the_largest_voxels(hearts):
    from medmap.resampling import canonical_grid

    grid = canonical_grid(hearts["t2"].grid)
    assert grid.spacing[slice_axis_of(grid)] == pytest.approx(max(grid.spacing))


def test_the_split_is_that_of_myops_net():

    from medmap.training.splits import read_split

    split = read_split(
        Path(__file__).resolve().parents[2] / "MedMAPTraining/recipes/splits/myops2020.json"
    )
    assert split["test"] == tuple(f"myops_training_{n}" for n in (101, 106, 111, 116, 121))
    assert len(split["train"]) == 20
    assert not set(split["train"]) & set(split["test"])


def test_the_picture_of_a_stack_shows_its_slices(challenge, hearts, tmp_path):
    from PIL import Image

    from medmap.report.overlay import save_overlay
    from medmap.report.planes import prepare as arrange

    case = find_cases(challenge, MYOPS)[0]
    truth = read_nifti(case.label, modality="seg")
    labels = truth.array.astype(np.int16)
    arrays = {name: volume.array for name, volume in hearts.items()}
    shown = arrange(arrays, labels, None, truth.grid, MYOPS)
    count = labels.shape[2]
    with_labels = np.flatnonzero(labels.any((0, 1)))
    assert len(shown.planes) == min(3, len(with_labels))
    assert {plane.title.split()[0] for plane in shown.planes} == {"Slice"}
    assert {plane.title.split()[-1] for plane in shown.planes} == {str(count)}
    axis = shown.planes[0].normal
    for plane in shown.planes:
        masks = np.logical_or.reduce(list(shown.prediction.values()))
        assert masks.take(plane.at, axis).any()
    save_overlay(tmp_path / "a.png", arrays, labels, truth.grid, MYOPS, reference_labels=labels)
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    assert picture.shape[0] > 300
    colors = np.array([label.color for label in MYOPS.labels if (labels == label.value).sum() > 30])
    for color in colors:
        assert (np.abs(picture[..., :3].astype(int) - color).max(-1) < 12).sum() > 20


@pytest.mark.parametrize("name", ["subset_unet", "anatomy_mmformer"])
def test_the_recipes_name_task_split_and_slices(name):
    from medmap.training.published import find_split, recipes_folder

    recipe = Recipe.read(recipes_folder() / "myops" / f"{name}.json")
    assert find_task(recipe.task) in (MYOPS, MYOPS_ANATOMY)
    assert find_split(recipe.split).name == "myops2020.json"
    assert recipe.preprocess.slices
    assert len(recipe.patch) == 2


@pytest.mark.parametrize("name", ["subset_unet", "anatomy_mmformer"])
def test_the_recipes_train_stop_go_on_and_export(name, challenge, tmp_path):
    from medmap.training.published import recipes_folder

    recipe = Recipe.read(recipes_folder() / "myops" / f"{name}.json")
    recipe = replace(
        recipe,
        network_options={**recipe.network_options, **SMALL[recipe.network]},
        steps=2,
        patch=(16, 16),
        large_patch=(16, 16),
        split="",
        preprocess=replace(recipe.preprocess, spacing=4.0, field=64.0),
    )
    (tmp_path / "r.json").write_text(json.dumps(asdict(recipe)))
    for minutes, steps in ((0.0, 1), (None, 2)):
        options = TrainOptions(
            recipe=tmp_path / "r.json",
            runtime=RuntimeOptions(precision="fp32", device="cpu", minutes=minutes),
        )
        assert train_bundle(tmp_path / "run", challenge, tmp_path / "bundle", options, quiet) == (
            steps,
            2,
        )
    loaded = load_bundle(tmp_path / "bundle")
    assert loaded.task == find_task(recipe.task)
    found = segment({"lge": find_cases(challenge, MYOPS)[0].read()["lge"]}, loaded)
    assert set(np.unique(found.labels)) <= set(loaded.task.label_values())
