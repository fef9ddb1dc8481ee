"""Synthetic four-modality brain-tumor cases: ``generate(seed)`` gives images, labels and the brain mask of one."""

from medmap.phantom.generator import Phantom, generate
from medmap.phantom.heart import Heart, generate_heart
from medmap.phantom.style import Style

__all__ = ["Heart", "Phantom", "Style", "generate", "generate_heart"]
