"""Every message of the panel is on its page, and can be translated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_page_of_messages_and_the_sentences_for_translators_are_todays():
    command = [sys.executable, str(REPOSITORY / "docs/_tools/messages.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture
def shouting(application, monkeypatch):
    """The module ``sentences`` with a translator that turns everything into capital letters."""
    application.open(REPOSITORY / "MedMAPSegment/MedMAPSegment.py")
    from MedMAPSegmentLib.sections import sentences

    def capitals(text):
        parts = text.split("{")
        return "{".join([parts[0].upper(), *(p[:2] + p[2:].upper() for p in parts[1:])])

    monkeypatch.setattr(sentences, "tr", capitals)
    sentences._translations.cache_clear()
    yield sentences
    sentences._translations.cache_clear()


def test_what_the_core_says_is_translated_with_its_names_and_figures(shouting):
    from medmap.errors import InputDataError

    error = InputDataError("The volume 'Ax T1' has no voxels.", "Choose another volume.")
    assert shouting.errorText(error) == "THE VOLUME 'Ax T1' HAS NO VOXELS. CHOOSE ANOTHER VOLUME."


def test_what_is_no_sentence_of_the_core_stays_as_it_is(shouting):
    assert shouting.sentence("Something else 4 mm") == "Something else 4 mm"


def test_an_error_that_a_user_provokes_is_shown_translated(
    shouting, application, monkeypatch, tmp_path
):
    panel = application._panels[-1]
    (tmp_path / "x.zip").write_text("no archive")
    application.desk.answers["getOpenFileName"] = str(tmp_path / "x.zip")
    panel.ui.importFileButton.click()
    assert "x.zip IS NEITHER A FOLDER NOR A .ZIP FILE." in application.desk.texts()[0]


def test_no_message_names_an_option_of_the_command_line():
    page = (REPOSITORY / "docs/reference/panel_messages.md").read_text(encoding="utf-8")
    assert " --" not in page
