"""Backbones by name. A new one is a file here and a line in ``NETWORKS``."""

from __future__ import annotations

from medmap.errors import BundleError
from medmap.networks.base import Backbone, Output
from medmap.networks.subset_unet import SubsetUNet

NETWORKS: dict[str, type[Backbone]] = {
    "SubsetUNet": SubsetUNet,
}

__all__ = ["NETWORKS", "Backbone", "Output", "build_network"]


def build_network(name: str, options: dict) -> Backbone:
    """Build a backbone from plain data, as a bundle or a recipe states it.

    Raises:
        BundleError: the name or an option is unknown.
    """
    if name not in NETWORKS:
        raise BundleError(f"The network '{name}' is unknown.", f"This version knows {', '.join(sorted(NETWORKS))}.")
    try:
        return NETWORKS[name](**options)
    except TypeError as error:
        raise BundleError(f"The options of the network {name} do not fit ({error}).", "Correct the options.") from error
