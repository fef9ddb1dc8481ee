"""Anatomy from label maps: any stored orientation, and the tumor code of procedural anatomy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medmap.errors import InputDataError, MissingInputError
from medmap.io.nifti import write_volume
from medmap.phantom import generate
from medmap.phantom.anatomy import TISSUES
from medmap.phantom.fields import Draw
from medmap.phantom.label_atlas import build_label_atlas
from medmap.phantom.labelmap import find_label_maps, read_label_map

SMALL = {"shape": (40, 48, 40), "spacing": 4.0}


def labeled_brain(unknown: bool = False) -> np.ndarray:
    """[I, J, K] RAS at 1 mm: cortex and white matter in two halves, ventricles, thalami, skull."""
    x, y, z = np.meshgrid(*(np.arange(-n, n) + 0.5 for n in (80, 95, 75)), indexing="ij")

    def inside(a, b, c, cx=0.0, cy=0.0, cz=0.0):
        return ((np.abs(x) - cx) / a) ** 2 + ((y - cy) / b) ** 2 + ((z - cz) / c) ** 2 < 1

    ids = np.zeros(x.shape, np.int16)
    right = x > 0
    ids[inside(76, 92, 72)] = 515
    ids[inside(68, 84, 64)] = 24
    ids[inside(64, 80, 60)] = 3
    ids[inside(58, 74, 54)] = 2
    ids[inside(6, 30, 9, 12, 5, 15)] = 4
    ids[inside(9, 14, 9, 12, -10, 0)] = 10
    ids = np.where(right & np.isin(ids, (2, 3)), ids + 39, ids)
    ids = np.where(right & np.isin(ids, (4, 10)), ids + 39, ids)
    ids[(np.abs(x) < 1.5) & (np.abs(z - 30) < 40) & np.isin(ids, (3, 42))] = 24
    if unknown:
        ids[inside(5, 5, 5, 30, 30, 20)] = 136
    return ids


@pytest.fixture(scope="module")
def label_map(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    ids = labeled_brain()
    affine = np.eye(4)
    affine[:3, 3] = (-79.5, -94.5, -74.5)
    write_volume(folder / "brain.nii.gz", ids, affine)
    return folder / "brain.nii.gz"


def test_a_case_has_the_tissues_of_its_label_map(label_map):
    phantom = generate(3, **SMALL, anatomy=find_label_maps(label_map), tumor=False)
    ids = labeled_brain()
    brain_ml = (ids > 0).sum() / 1000 - (ids == 515).sum() / 1000
    # The brain is scaled and imperfectly stripped.
    assert phantom.facts["brain_ml"] == pytest.approx(brain_ml, rel=0.35)
    assert not phantom.label.any()
    atlas = build_label_atlas(Draw(3, "anatomy"), [label_map], "cpu")
    assert torch.allclose(atlas.parts.sum(0), torch.ones(()), atol=1e-4)
    middle = torch.tensor([[40.0, 0.0, 10.0], [-40.0, 0.0, 10.0]]).T.contiguous()
    parts = atlas.tissues(middle, 1.0).parts
    assert (parts[TISSUES.index("wm")] + parts[TISSUES.index("wmh")] > 0.8).all()
    assert float(atlas.side(middle)[0]) > 20
    assert float(atlas.side(middle)[1]) < -20


def test_a_tumor_grows_in_it_and_the_seed_decides_everything(label_map):
    maps = find_label_maps(label_map)
    first, second = (generate(5, **SMALL, anatomy=maps) for _ in range(2))
    assert first.facts["tumor_ml"] > 1
    assert torch.equal(first.label, second.label)
    assert all(torch.equal(first.images[m], second.images[m]) for m in first.images)
    assert not torch.equal(first.label, generate(6, **SMALL, anatomy=maps).label)


def test_the_stored_orientation_does_not_matter(label_map, tmp_path):
    ids = labeled_brain()[::-1].transpose(2, 0, 1)
    affine = np.zeros((4, 4))
    affine[0, 1], affine[1, 2], affine[2, 0], affine[3, 3] = -1, 1, 1, 1
    affine[:3, 3] = (79.5, -94.5, -74.5)
    write_volume(tmp_path / "permuted.nii.gz", np.ascontiguousarray(ids), affine)
    original = read_label_map(label_map)
    permuted = read_label_map(tmp_path / "permuted.nii.gz")
    assert torch.equal(original.tissue, permuted.tissue)
    assert torch.equal(original.distances, permuted.distances)


def test_an_unknown_id_inside_the_brain_takes_the_tissue_around_it(label_map, tmp_path):
    ids = labeled_brain(unknown=True)
    write_volume(tmp_path / "odd.nii.gz", ids, np.eye(4))
    assert torch.equal(
        read_label_map(tmp_path / "odd.nii.gz").tissue, read_label_map(label_map).tissue
    )


def test_a_file_that_is_no_label_map_is_rejected(tmp_path):
    ids = np.zeros((60, 60, 60), np.int16)
    ids[20:40, 20:40, 20:40] = 1
    write_volume(tmp_path / "lesion.nii.gz", ids, np.eye(4))
    with pytest.raises(InputDataError, match="FreeSurfer"):
        read_label_map(tmp_path / "lesion.nii.gz")
    write_volume(tmp_path / "coarse.nii.gz", ids, np.diag([2.0, 2.0, 2.0, 1.0]))
    with pytest.raises(InputDataError, match="1 mm"):
        read_label_map(tmp_path / "coarse.nii.gz")
    with pytest.raises(MissingInputError):
        find_label_maps(tmp_path / "nothing")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("procedural", [True, False])
def test_a_gpu_makes_the_case_of_the_cpu(label_map, procedural):
    maps = () if procedural else find_label_maps(label_map)
    cpu, gpu = (generate(7, **SMALL, anatomy=maps, device=d) for d in ("cpu", "cuda"))
    assert (cpu.label != gpu.label.cpu()).float().mean() < 1e-3
    for m, image in cpu.images.items():
        off = (image - gpu.images[m].cpu()).abs()[cpu.brain] / image[cpu.brain].mean()
        assert float(off.quantile(0.999)) < 0.02
