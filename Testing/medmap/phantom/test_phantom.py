"""The phantom generator: repeatability, geometry and contrast."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
import torch
from torch.nn.functional import max_pool3d

from medmap.errors import UsageError
from medmap.phantom import Phantom, Style, generate
from medmap.phantom.artifacts import axis_operator
from medmap.phantom.contrast import MODALITIES, TISSUES, Mixture, draw_means, mix_signals
from medmap.phantom.fields import Draw, RegularGrid, interpolate, random_field, upsample
from medmap.task import BRATS

SHAPE, SPACING = (64, 78, 64), 2.5
PLAIN = Style(
    jitter=0.5,
    noise=(0.005, 0.01),
    bias=0.02,
    gamma=(1.0, 1.0),
    thick_slices=0.0,
    truncated=0.0,
    low_grade=0.0,
)
SEEDS = tuple(range(8))


@cache
def case(seed: int, style: Style | None = None, tumor: bool = True) -> Phantom:
    return generate(seed, shape=SHAPE, spacing=SPACING, tumor=tumor, style=style)


def auc(a: torch.Tensor, b: torch.Tensor) -> float:
    """Probability that a value of ``a`` exceeds one of ``b``."""
    order = torch.cat([a, b]).argsort(stable=True)
    ranks = torch.empty(len(order), dtype=torch.float64)
    ranks[order] = torch.arange(1, len(order) + 1, dtype=torch.float64)
    return float((ranks[: len(a)].sum() - len(a) * (len(a) + 1) / 2) / (len(a) * len(b)))


def near(mask: torch.Tensor) -> torch.Tensor:
    return max_pool3d(mask[None, None].float(), 3, 1, 1)[0, 0] > 0


def test_same_seed_gives_the_same_bits_and_leaves_the_global_random_state_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = case(3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    second = generate(3, shape=SHAPE, spacing=SPACING)
    assert torch.equal(first.label, second.label)
    assert torch.equal(first.brain, second.brain)
    assert all(torch.equal(first.images[m], second.images[m]) for m in MODALITIES)
    assert first.facts == second.facts


def test_different_seeds_give_different_cases():
    assert not torch.equal(case(0).brain, case(1).brain)
    assert not torch.equal(case(0).label, case(1).label)


def test_fills_the_contract_of_shapes_types_and_zeros():
    p = case(2)
    assert tuple(p.images) == MODALITIES == BRATS.modality_names
    assert p.label.shape == p.brain.shape == SHAPE
    assert (p.label.dtype, p.brain.dtype) == (torch.uint8, torch.bool)
    for image in p.images.values():
        assert (image.dtype, tuple(image.shape)) == (torch.float32, SHAPE)
        assert torch.isfinite(image).all()
        assert (image[~p.brain] == 0).all()
        assert (image[p.brain] > 0).all()
    assert int(p.label.max()) <= 3
    assert not p.label[~p.brain].any()
    assert p.seed == 2
    json.dumps(p.facts)


def test_affine_is_ras_with_the_center_of_the_volume_at_the_origin():
    affine = case(0).affine
    assert np.allclose(np.diag(affine), [SPACING, SPACING, SPACING, 1.0])
    assert np.allclose(affine @ [*((n - 1) / 2 for n in SHAPE), 1.0], [0, 0, 0, 1])


def test_any_shape_and_spacing_gives_the_same_case():
    fine = generate(4, shape=(80, 98, 80), spacing=2.0)
    coarse = case(4)
    assert fine.facts["brain_ml"] == pytest.approx(coarse.facts["brain_ml"], rel=0.04)
    assert fine.facts["tumor_ml"] == pytest.approx(coarse.facts["tumor_ml"], rel=0.12)


def test_a_limited_field_of_view_cuts_the_brain():
    p = generate(4, shape=(64, 78, 20), spacing=2.5)
    assert 0 < p.facts["brain_ml"] < 0.8 * case(4).facts["brain_ml"]


@pytest.mark.parametrize(
    ("shape", "spacing"), [((64, 64), 2.0), ((4, 64, 64), 2.0), ((64, 64, 64), 0.0)]
)
def test_rejects_an_invalid_shape_or_spacing(shape, spacing):
    with pytest.raises(UsageError):
        generate(0, shape=shape, spacing=spacing)


@pytest.mark.parametrize("seed", SEEDS)
def test_brain_and_tumor_have_plausible_volumes(seed):
    facts = case(seed, PLAIN).facts
    assert 950 < facts["brain_ml"] < 1800
    assert 1.0 < facts["tumor_ml"] < 330
    assert facts["tumor_ml"] == pytest.approx(sum(facts["volumes_ml"].values()))


def test_tumors_center_on_the_volumes_of_real_cohorts():
    facts = [case(seed, PLAIN).facts for seed in SEEDS]
    whole = np.array([f["tumor_ml"] for f in facts])
    edema = np.array([f["volumes_ml"]["ED"] for f in facts]) / whole
    assert 35 < np.median(whole) < 150
    assert 0.45 < np.median(edema) < 0.85


def test_core_lies_inside_the_tumor_and_touches_edema_not_air():
    shares = []
    for seed in SEEDS:
        p = case(seed, PLAIN)
        core, outside = (p.label == 1) | (p.label == 3), p.brain & (p.label == 0)
        rim = near(core) & ~core & p.brain
        shares.append(float((rim & ~outside).sum() / rim.sum().clamp(min=1)))
    assert np.mean(shares) > 0.5


def test_without_a_tumor_the_same_anatomy_has_no_label():
    p = case(1, None, False)
    with_tumor = case(1)
    assert not p.label.any()
    assert p.facts["foci"] == 0
    assert not p.facts["has_enhancement"]
    assert p.facts["brain_ml"] == pytest.approx(with_tumor.facts["brain_ml"], rel=0.02)


def test_a_low_grade_tumor_does_not_enhance():
    p = case(5, Style(low_grade=1.0))
    assert not (p.label == 3).any()
    assert (p.label == 1).any()
    assert not p.facts["has_enhancement"]


def test_more_foci_can_be_asked_for():
    assert case(6, Style(multifocal=1.0)).facts["foci"] >= 2


def test_tumor_shows_in_flair_and_mostly_in_t2():
    aucs: dict[str, list[float]] = {m: [] for m in MODALITIES}
    for seed in SEEDS:
        p = case(seed, PLAIN)
        for m, image in p.images.items():
            aucs[m].append(auc(image[p.label > 0], image[p.brain & (p.label == 0)]))
    assert np.mean(aucs["flair"]) > 0.9
    assert np.mean(aucs["t2"]) > 0.72
    assert np.mean(aucs["t1"]) < 0.6


def test_enhancing_tumor_shows_in_t1ce_and_in_nothing_else():
    aucs: dict[str, list[float]] = {m: [] for m in MODALITIES}
    for seed in range(14):
        p = case(seed, PLAIN)
        enhancing = p.label == 3
        beside = (p.label == 1) & near(enhancing)
        if int(enhancing.sum()) < 80 or int(beside.sum()) < 80:
            continue
        for m in MODALITIES:
            aucs[m].append(auc(p.images[m][enhancing], p.images[m][beside]))
    assert len(aucs["t1"]) >= 8
    assert np.mean(aucs["t1ce"]) > 0.9
    for m in ("t1", "t2", "flair"):
        assert abs(np.mean(aucs[m]) - 0.5) < 0.1, (m, aucs[m])


def test_contrast_agent_changes_t1ce_only():
    """With the same tissue, an enhancing map leaves T1, T2 and FLAIR bit for bit as they were."""
    parts = torch.rand(len(TISSUES), 50, generator=torch.Generator().manual_seed(0))
    parts /= parts.sum(0)
    textures = torch.zeros(3, 50)
    without = Mixture(parts, torch.zeros(50), textures)
    enhancing = Mixture(parts, torch.ones(50), textures)
    dark, _ = mix_signals(Draw(0, "x"), without, Style())
    bright, _ = mix_signals(Draw(0, "x"), enhancing, Style())
    assert torch.equal(dark[[0, 2, 3]], bright[[0, 2, 3]])
    assert (bright[1] > dark[1]).all()


@pytest.mark.parametrize(
    ("modality", "order"),
    [
        ("t1", ("wm", "gm", "csf")),
        ("t1ce", ("enhancing", "wm", "gm", "csf")),
        ("t2", ("csf", "ed", "gm", "wm")),
        ("flair", ("ed", "gm", "csf")),
        ("flair", ("solid", "gm", "csf")),
    ],
)
def test_tissues_keep_their_order_however_far_the_draw_strays(modality, order):
    for seed in range(60):
        z = draw_means(Draw(seed, "contrast"), Style(jitter=1.6))[modality]
        values = [z[name] for name in order]
        assert values == sorted(values, reverse=True)


def test_random_field_has_zero_mean_unit_variance_and_its_wavelength():
    grid = RegularGrid((0.0, 0.0, 0.0), 2.0, (48, 50, 40))
    field = random_field(Draw(0, "field"), grid, 14.0)
    assert abs(float(field.mean())) < 0.05
    assert float(field.std()) == pytest.approx(1.0, abs=0.1)
    line = field[:, 25, 20]
    crossings = int((line[1:] * line[:-1] < 0).sum())
    assert 5 <= crossings <= 20  # along a line of 96 mm; one every 7 to 12 mm


def test_sampling_a_linear_field_is_exact_on_points_and_on_grids():
    grid = RegularGrid((-4.0, -6.0, -8.0), 2.0, (5, 7, 9))
    x, y, z = grid.points().double()
    maps = (1.0 + 2.0 * x - 0.5 * y + 0.25 * z)[None]
    axes = [
        torch.tensor([-3.0, 1.5], dtype=torch.float64),
        torch.tensor([0.0, 5.0, -2.2], dtype=torch.float64),
        torch.tensor([-7.0, 7.9], dtype=torch.float64),
    ]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    expected = 1.0 + 2.0 * points[0] - 0.5 * points[1] + 0.25 * points[2]
    on_grid = upsample(maps, grid, axes)[0]
    at_points = interpolate(maps, grid, points.reshape(3, -1))[0]
    assert torch.allclose(on_grid, expected, atol=1e-9)
    assert torch.allclose(at_points, expected.flatten(), atol=1e-9)


def test_acquisition_operators_keep_a_constant_and_shift_by_the_given_distance():
    for thick in (0.0, 5.0):
        # Entries are rounded to float32, 6e-8 of their size; a row sums to one.
        sums = axis_operator(40, 1.0, 0.6, 0.3, thick).double().sum(1)
        assert torch.allclose(sums, torch.ones_like(sums), atol=1e-6)
    ramp = torch.arange(40, dtype=torch.float64)
    shifted = axis_operator(40, 1.0, 0.6, 0.5, 0.0).double() @ ramp
    assert torch.allclose(shifted[5:35], ramp[5:35] + 0.5, atol=1e-3)


def test_draws_of_different_streams_and_seeds_are_independent():
    values = {Draw(seed, stream).uniform() for seed in range(20) for stream in ("a", "b")}
    assert len(values) == 40
