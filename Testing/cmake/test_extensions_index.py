"""What the Extensions Index checks before it takes an extension, by its own expressions.

From its ``check_description_files.py``, ``extension_ai_analysis.py`` and the template of its pull
requests. Its packaging job is skipped for extensions that depend on PyTorch; ``test_extension.py``
installs with a stub instead.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
CMAKE = (REPOSITORY / "CMakeLists.txt").read_text(encoding="utf-8")
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
ENTRY = REPOSITORY / "Resources/ExtensionsIndex/MedMAP.json"
KEYS = {
    *(
        "$schema",
        "category",
        "scm_url",
        "scm_revision",
        "scm_type",
        "build_dependencies",
        "dicom_support_rule",
    ),
    *("build_subdirectory", "enabled", "tier"),
}
ICON = r'set\s*\(EXTENSION_ICONURL\s*"([^"]+)"[ ]*\)'
SCREENSHOTS = r'set\s*\(EXTENSION_SCREENSHOTURLS\s*"([^"]+)"\)'
LICENCES = (
    "LICENSE",
    "LICENCE",
    "License.txt",
    "license.txt",
    "LICENSE.txt",
    "COPYING",
    "COPYING.txt",
)
LARGEST_CLONE_MB = 100


def addresses(pattern: str) -> list[str]:
    """Addresses of the one setting that matches."""
    found = re.findall(pattern, CMAKE, re.IGNORECASE | re.MULTILINE)
    assert len(found) == 1
    return found[0].split()


def size_of_png(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n", path.name
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


class TestDescriptionFile:
    entry = json.loads(ENTRY.read_text(encoding="utf-8"))

    def test_it_is_valid_and_plain(self):
        assert set(self.entry) <= KEYS
        assert {"$schema", "category", "scm_url"} <= set(self.entry)
        assert re.search(r"schema-v1\.0\.[12]\.json#$", self.entry["$schema"])
        assert b"\r" not in ENTRY.read_bytes()
        assert self.entry["category"] == "Segmentation"
        assert self.entry["tier"] in (1, 3, 5)

    def test_names_follow_the_rules(self):
        assert not ENTRY.stem.startswith("Slicer")
        repository = self.entry["scm_url"].removesuffix(".git").rsplit("/", 1)[1]
        assert repository.startswith("Slicer")
        assert self.entry["scm_url"].startswith("https://")
        assert re.findall(r"project\s*\(\s*([^\s\)\n\r]+)", CMAKE, re.IGNORECASE)[0] == ENTRY.stem

    def test_it_agrees_with_cmake(self):
        depends = re.search(r'set\(EXTENSION_DEPENDS "([^"]+)"\)', CMAKE)[1].split()
        assert self.entry["build_dependencies"] == depends == ["PyTorch"]
        homepage = re.search(r'set\(EXTENSION_HOMEPAGE "([^"]+)"\)', CMAKE)[1]
        assert self.entry["scm_url"].removesuffix(".git") == homepage


class TestMetadata:
    @pytest.mark.parametrize("pattern", [ICON, SCREENSHOTS])
    def test_pictures_are_raw_addresses_of_bitmaps_of_this_repository(self, pattern):
        for address in addresses(pattern):
            assert re.fullmatch(r"https://raw\.githubusercontent\.com/[\w./-]+\.png", address)
            assert size_of_png(REPOSITORY / address.split("/main/")[1]) > (64, 64)

    def test_the_metadata_that_slicer_reads_is_there(self):
        for name in ("HOMEPAGE", "CONTRIBUTORS", "DESCRIPTION", "DEPENDS", "CATEGORY"):
            assert re.search(rf'set\(EXTENSION_{name} "[^"]+"\)', CMAKE), name

    def test_all_addresses_are_of_one_repository(self):
        owners = set(
            re.findall(r"https://(?:raw\.githubusercontent|github)\.com/([\w-]+/[\w-]+)", CMAKE)
        )
        assert len(owners) == 1

    def test_a_licence_has_one_of_the_known_names(self):
        found = [name for name in LICENCES if (REPOSITORY / name).is_file()]
        assert found
        assert "Apache License" in (REPOSITORY / found[0]).read_text(encoding="utf-8")

    def test_a_clone_is_small(self):
        if not (REPOSITORY / ".git").exists():
            pytest.skip("not a git checkout")
        # What a clone receives: the history's own objects, without what else lies in this folder.
        history = subprocess.run(
            ["git", "rev-list", "--objects", "--disk-usage", "HEAD"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
        packed = int(history.stdout) / 2**20
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        files = [REPOSITORY / name for name in listed.stdout.split("\0") if name]
        checked_out = sum(f.stat().st_size for f in files if f.exists()) / 2**20
        assert packed + checked_out < LARGEST_CLONE_MB


class TestReadme:
    """What the index asks of a homepage."""

    def test_it_begins_with_name_and_summary(self):
        assert README.startswith("# MedMAP\n\nMedMAP ")

    def test_it_names_the_module_and_shows_it(self):
        section = README[README.index("## In 3D Slicer") :]
        assert "*MedMAP Segment*" in section[:200]
        assert re.search(r"!\[[^\]]+\]\(Resources/Screenshots/panel\.png\)", section)

    def test_it_has_a_tutorial_that_says_where_its_data_comes_from(self):
        tutorial = README[README.index("### Tutorial") :][:2500]
        assert re.findall(r"^\d\. ", tutorial, re.MULTILINE)
        assert "none is downloaded" in tutorial
        assert "Load sample patient" in tutorial

    def test_every_picture_exists(self):
        pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
        assert len(pictures) >= 4
        for picture in pictures:
            size_of_png(REPOSITORY / picture)

    @pytest.mark.parametrize(
        "words", ["How to cite", "Research use only", "Apache-2.0", "nothing is downloaded"]
    )
    def test_it_says(self, words):
        assert words in README

    def test_it_names_the_buttons_as_the_panel_has_them(self):
        ui = (
            (REPOSITORY / "MedMAPSegment/Resources/UI/MedMAPSegment.ui")
            .read_text(encoding="utf-8")
            .replace("&amp;", "")
        )
        for button in (
            "Detect",
            "Load sample patient",
            "Apply",
            "Show 3D",
            "Undo",
            "Compare",
            "Worst slice",
        ):
            assert f"**{button}**" in README
            assert f"<string>{button}</string>" in ui
