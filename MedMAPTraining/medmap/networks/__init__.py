"""Backbones by name. A new one is a file here and a line in ``NETWORKS``."""

from __future__ import annotations

from medmap.errors import BundleError
from medmap.networks.base import Backbone, Output
from medmap.networks.ensemble import NAME as ENSEMBLE
from medmap.networks.ensemble import Ensemble
from medmap.networks.m2ftrans import M2FTrans
from medmap.networks.mckd import MCKD
from medmap.networks.mmformer import MMFormer
from medmap.networks.rfnet import RFNet
from medmap.networks.robust_mseg import RobustMSeg
from medmap.networks.segresnet import SegResNet
from medmap.networks.shaspec import ShaSpec
from medmap.networks.stem import with_stem
from medmap.networks.subset_unet import SubsetUNet
from medmap.networks.u_hemis import UHeMIS
from medmap.networks.u_hved import UHVED
from medmap.networks.unet import GatedUNet, UNet
from medmap.networks.vnet import VNet
from medmap.option_names import misfit

NETWORKS: dict[str, type[Backbone]] = {
    "GatedUNet": GatedUNet,
    "M2FTrans": M2FTrans,
    "MCKD": MCKD,
    "mmFormer": MMFormer,
    "RFNet": RFNet,
    "RobustMSeg": RobustMSeg,
    "SegResNet": SegResNet,
    "ShaSpec": ShaSpec,
    "SubsetUNet": SubsetUNet,
    "UHeMIS": UHeMIS,
    "UHVED": UHVED,
    "UNet": UNet,
    "VNet": VNet,
}

__all__ = ["ENSEMBLE", "NETWORKS", "Backbone", "Ensemble", "Output", "build_network"]


SET_BY_TASK = ("modalities", "classes", "spatial_dims")
"""Parameters of networks that follow from the task."""


def build_network(name: str, options: dict) -> Backbone:
    """Build a backbone from plain data, as a bundle or a recipe states it.

    Args:
        name: one of ``NETWORKS``, or ``Ensemble``, whose option ``members`` lists name and options
            of each member.
        options: of its class; ``stem`` puts T* into it (``medmap.networks.stem.with_stem``).

    Raises:
        BundleError: the name or an option is unknown.
    """
    if name == ENSEMBLE:
        return _build_ensemble(options)
    if name not in NETWORKS:
        raise BundleError(
            f"The network '{name}' is unknown.",
            f"This version knows {', '.join(sorted(NETWORKS))}.",
        )
    base_options = {key: value for key, value in options.items() if key != "stem"}
    try:
        stem = options.get("stem")
        if stem is None:
            network = NETWORKS[name](**base_options)
        else:
            network = with_stem(NETWORKS[name], base_options, stem)
        network.built_from = (name, dict(options))
        return network
    except TypeError as error:
        raise misfit(
            f"The network {name}", NETWORKS[name], base_options, error, SET_BY_TASK
        ) from error


def _build_ensemble(options: dict) -> Ensemble:
    try:
        members = [build_network(m["name"], m["options"]) for m in options["members"]]
    except (KeyError, TypeError) as error:
        raise BundleError(
            f"The members of an ensemble are not understood ({error}).", "Export the bundle again."
        ) from error
    network = Ensemble(members)
    network.built_from = (ENSEMBLE, dict(options))
    return network
