"""The methods that MCKD's Table 2a compares with: auto-encoder, GAN, Full2miss, SMIL and ShaSpec.

Each is small, on the encoders and the head of ``AudioVision``, and trained as MCKD trains all of
them (Section 4.2). None of the papers prints its settings for this task except SMIL, whose released
code is for it; every docstring names what was chosen here.
"""

from __future__ import annotations

from av_generation import Autoencoder, FeatureGAN, Full2Miss, GANFeatures, GeneratedFeatures
from av_shaspec import SharedAndSpecific, SharedSpecific
from av_smil import SMIL, SMILNetwork

from medmap.networks import NETWORKS
from medmap.training.objectives import OBJECTIVES

NETWORKS |= {
    "AudioVisionAutoencoder": GeneratedFeatures,
    "AudioVisionGAN": GANFeatures,
    "AudioVisionSMIL": SMILNetwork,
    "AudioVisionShaSpec": SharedAndSpecific,
}
OBJECTIVES |= {
    "autoencoder": Autoencoder,
    "gan": FeatureGAN,
    "full2miss": Full2Miss,
    "smil": SMIL,
    "shaspec-classes": SharedSpecific,
}
COMPETITORS: dict[str, tuple[str, str]] = {
    "autoencoder": ("AudioVisionAutoencoder", "autoencoder"),
    "gan": ("AudioVisionGAN", "gan"),
    "full2miss": ("AudioVision", "full2miss"),
    "smil": ("AudioVisionSMIL", "smil"),
    "shaspec": ("AudioVisionShaSpec", "shaspec-classes"),
}
"""Network and objective of each method of the table, by the name of its column."""
