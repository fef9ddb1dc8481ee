"""Synthetic cases with exact labels: ``generate`` for brains, ``generate_heart`` for hearts."""

from medmap.phantom.generator import Phantom, generate
from medmap.phantom.heart import Heart, generate_heart
from medmap.phantom.style import Style

__all__ = ["Heart", "Phantom", "Style", "generate", "generate_heart"]
