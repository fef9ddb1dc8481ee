"""Hearts: a folder in the layout of the challenge, one case of it, a bundle."""

from __future__ import annotations

import pytest
import torch
from Testing.medmap.hearts.heart_cases import SPEC, quiet

from medmap.bundle.format import InferenceSpec, NetworkSpec
from medmap.bundle.loading import load_bundle, save_bundle
from medmap.commands.phantoms import write_hearts
from medmap.io.cohorts import find_cases
from medmap.networks import build_network
from medmap.task import MYOPS
from medmap.volume import Volume


@pytest.fixture(scope="package")
def challenge(tmp_path_factory):
    root = tmp_path_factory.mktemp("challenge")
    write_hearts(root, 2, 7, 4.0, "cpu", False, quiet)
    return root


@pytest.fixture
def hearts(challenge) -> dict[str, Volume]:
    return find_cases(challenge, MYOPS)[0].read()


@pytest.fixture(scope="package")
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
