"""Puts the bundles into wheels and source distributions; pyproject.toml has all else."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

BUNDLES = Path(__file__).resolve().parent.parent / "Resources" / "bundles"
"""Beside this folder in a checkout. A source distribution has them in the package already."""


def copy_bundles(package: Path) -> None:
    """Copy every bundle into ``bundles`` of the package folder."""
    if not BUNDLES.is_dir():
        return
    target = package / "bundles"
    # An earlier build may have left files that the bundles no longer have.
    shutil.rmtree(target, ignore_errors=True)
    for metadata in sorted(BUNDLES.glob("*/metadata.json")):
        shutil.copytree(metadata.parent, target / metadata.parent.name)


class BuildWithBundles(build_py):
    """Copies the bundles beside the modules, except in an editable installation."""

    def run(self) -> None:
        """Build, then copy."""
        super().run()
        if not self.editable_mode:
            copy_bundles(Path(self.build_lib) / "medmap")


class SourceWithBundles(sdist):
    """Copies the bundles into the package of the source distribution."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Collect the files, then copy."""
        super().make_release_tree(base_dir, files)
        copy_bundles(Path(base_dir) / "medmap")


setup(cmdclass={"build_py": BuildWithBundles, "sdist": SourceWithBundles})
