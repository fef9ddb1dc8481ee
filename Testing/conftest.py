"""Small patients and a small bundle for the tests of the package."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from Testing.medmap.small_networks import SMALL

from medmap.bundle.format import InferenceSpec, NetworkSpec
from medmap.bundle.loading import load_bundle, save_bundle
from medmap.networks import build_network
from medmap.preprocess import Prepared, PreprocessSpec
from medmap.resampling import lattice_offset, orientation_of
from medmap.sliding_window import SlidingWindow
from medmap.task import BRATS
from medmap.training.batch import Batch
from medmap.training.cache import write_case_record
from medmap.volume import Volume


def head(shape=(40, 48, 36), spacing=2.0, seed=0, noise=5.0) -> dict[str, Volume]:
    """Four smooth, skull-stripped scans of a small egg-shaped brain with a blob; background 0."""
    axes = [np.linspace(-1, 1, n) for n in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    inside = (x / 0.8) ** 2 + (y / 0.9) ** 2 + (z / 0.75) ** 2 < 1
    blob = np.exp(-(((x - 0.3) / 0.25) ** 2 + ((y + 0.2) / 0.3) ** 2 + ((z - 0.1) / 0.25) ** 2))
    rng = np.random.default_rng(seed)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -spacing * (np.array(shape) - 1) / 2
    volumes = {}
    for n, name in enumerate(BRATS.modality_names):
        wave = np.sin((n + 2) * x + y) + np.cos((3 - n) * z)
        array = 300 + 100 * wave + (n + 1) * 80 * blob + rng.normal(0, noise, shape)
        volumes[name] = Volume(
            np.where(inside, array, 0).astype(np.float32), affine, f"{name}.nii.gz"
        )
    return volumes


@pytest.fixture
def volumes() -> dict[str, Volume]:
    return head()


@pytest.fixture
def make_case():
    return head


@pytest.fixture(scope="session")
def tiny_bundle_path(tmp_path_factory):
    """A bundle of an untrained, seeded network at 2 mm, whose labels vary with place and scan."""
    torch.manual_seed(3)
    options = {"modalities": 4, "classes": 4, "widths": [8, 8, 8]}
    network = build_network("SubsetUNet", options)
    with torch.no_grad():
        network.head.weight.mul_(4)
    return save_bundle(
        tmp_path_factory.mktemp("bundles") / "tiny",
        name="tiny",
        version="1.0.0",
        task=BRATS,
        network=network,
        network_spec=NetworkSpec("SubsetUNet", options),
        preprocess=PreprocessSpec(spacing=2.0),
        inference=InferenceSpec(),
        card={"description": "An untrained network for tests.", "data": "none"},
    )


@pytest.fixture(scope="session")
def tiny_bundle(tiny_bundle_path):
    return load_bundle(tiny_bundle_path)


def small_network(name, dims=3, **options):
    """A backbone in its small options, always with the same weights."""
    torch.manual_seed(0)
    return build_network(
        name, {"modalities": 4, "classes": 4, "spatial_dims": dims, **SMALL[name], **options}
    )


def random_batch(
    dims=3,
    present=((True, True, False, True), (False, True, False, False), (True, False, False, True)),
    size=16,
    seed=1,
):
    """Noise with random labels; NaN where a modality is absent."""
    torch.manual_seed(seed)
    present = torch.tensor(present)
    shape = (size,) * dims
    image = torch.randn(len(present), 4, *shape)
    image[~present] = torch.nan
    label = torch.randint(0, 4, (len(present), *shape))
    return Batch(
        image,
        present,
        label,
        torch.ones_like(label, dtype=torch.bool),
        tuple("abc"[: len(present)]),
    )


@pytest.fixture
def network():
    return small_network


@pytest.fixture
def make_batch():
    return random_batch


@pytest.fixture
def make_prepared():
    return prepared_case


def prepared_case(image, brain, grid, reference_grid=None, reference="t1"):
    """A prepared case with every modality, on the grid of the result or on another one."""
    reference_grid = reference_grid or grid
    orientation = orientation_of(reference_grid)
    return Prepared(
        image=image,
        present=torch.ones(len(image), dtype=torch.bool),
        brain=brain,
        grid=grid,
        reference=reference,
        reference_grid=reference_grid,
        orientation=orientation,
        offset=lattice_offset(orientation.canonical, grid),
    )


@pytest.fixture
def network_logits():
    return logits_of_subsets


def logits_of_subsets(bundle, prepared, subsets):
    """Logits of the bundle's first network for each subset."""
    windows = SlidingWindow(bundle.task, bundle.inference, bundle.stride, torch.device("cpu"))
    return list(windows.logits(bundle.network, prepared, [tuple(subset) for subset in subsets]))


@pytest.fixture(scope="session")
def cached_heads(tmp_path_factory):
    """Three small cases as training finds them in its cache."""
    root = tmp_path_factory.mktemp("cached-heads")
    for n in range(3):
        volumes, folder = head(shape=(24, 28, 20), seed=n), root / f"Case_{n}"
        folder.mkdir()
        brain = volumes["t1"].array > 0
        for name, volume in volumes.items():
            z = (volume.array - volume.array[brain].mean()) / volume.array[brain].std()
            np.save(folder / f"{name}.npy", np.where(brain, z, 0).astype(np.float16))
        label = np.zeros(brain.shape, np.uint8)
        label[14:19, 10:16, 9:13] = 2
        label[15:17, 11:14, 10:12] = 3
        np.save(folder / "label.npy", label * brain)
        np.save(folder / "brain.npy", brain.astype(np.uint8))
        write_case_record(folder, list(volumes), list(volumes))
    return sorted(root.iterdir())


@pytest.fixture(scope="session", autouse=True)
def cache_of_tests(tmp_path_factory):
    """Prepared cases of tests lie among the tests' own files, not in the user's cache."""
    before = os.environ.get("MEDMAP_CACHE")
    folder = tmp_path_factory.mktemp("cache")
    os.environ["MEDMAP_CACHE"] = str(folder)
    yield folder
    if before is None:
        del os.environ["MEDMAP_CACHE"]
    else:
        os.environ["MEDMAP_CACHE"] = before


@pytest.fixture
def float64():
    """Networks and tensors made in the test are float64.

    Two orders of computation differ by rounding, and in float32 it depends on the processor by how
    much.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
