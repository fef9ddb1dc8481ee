"""Every message of the panel is on its page, and can be translated."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_page_of_messages_and_the_sentences_for_translators_are_todays():
    command = [sys.executable, str(REPOSITORY / "docs/_tools/messages.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_warnings_that_a_helper_makes_are_on_the_page():
    page = (REPOSITORY / "docs/reference/panel_messages.md").read_text(encoding="utf-8")
    for words in ("taken after surgery", "edited by hand", "belong to different patients"):
        assert words in page, words


@pytest.fixture
def shouting(application, monkeypatch):
    """The module ``sentences`` in an application whose translator turns everything into capital
    letters, where it is asked in the context in which Slicer's tools collect the texts.
    """
    application.open(REPOSITORY / "MedMAPSegment/MedMAPSegment.py")
    from MedMAPSegmentLib.i18n import sentences

    def capitals(context, text):
        if context != "i18n.core_sentences":
            return text
        parts = text.split("{")
        return "{".join([parts[0].upper(), *(p[:2] + p[2:].upper() for p in parts[1:])])

    monkeypatch.setattr(sys.modules["slicer.i18n"], "translate", capitals)
    sentences.forgetTranslations()
    yield sentences
    sentences.forgetTranslations()


def test_what_the_core_says_is_translated_with_its_names_and_figures(shouting):
    from medmap.errors import InputDataError

    error = InputDataError("The volume 'Ax T1' has no voxels.", "Choose another volume.")
    assert shouting.errorText(error) == "THE VOLUME 'Ax T1' HAS NO VOXELS. CHOOSE ANOTHER VOLUME."


def test_progress_findings_of_detection_and_titles_are_translated_part_by_part(shouting):
    assert shouting.sentence("encoding T1ce") == "ENCODING T1ce"
    text = "window 2 of 8: segmenting from T1 + T1ce"
    assert shouting.sentence(text) == "WINDOW 2 OF 8: SEGMENTING FROM T1 + T1ce"
    assert shouting.sentence("extracting the brain from T2") == "EXTRACTING THE BRAIN FROM T2"
    assert shouting.sentence("Whole tumor") == "WHOLE TUMOR"
    detected = "T1: 'Ax t1 done' (95% sure: the name says 't1')."
    assert shouting.sentence(detected) == "T1: 'Ax t1 done' (95% SURE: THE NAME SAYS 't1')."
    summary = "T2 was not aligned to T1: no motion makes the scans agree better."
    shouted = "T2 WAS NOT ALIGNED TO T1: NO MOTION MAKES THE SCANS AGREE BETTER."
    assert shouting.sentence(summary) == shouted


class TestIdentifiers:
    """``t1ce`` and ``brats2023`` are for the command line; the panel has titles."""

    def test_label_conventions_have_their_titles(self):
        from medmap.errors import InputDataError
        from medmap.task import BRATS
        from medmap.task.conventions import recognize
        from MedMAPSegmentLib.i18n.sentences import errorText

        with pytest.raises(InputDataError) as refused:
            recognize({"patient7": (3, 4)}, BRATS)
        text = errorText(refused.value)
        assert text.endswith(
            "Choose one of BraTS 2012 to 2016; BraTS 2024 and later, post-treatment; BraTS-PED."
        )
        assert "brats2012" not in text

    def test_modalities_have_their_titles_in_what_the_checks_find(self):
        import numpy as np

        from medmap.checks import check_inputs
        from medmap.errors import InputDataError
        from medmap.task import BRATS
        from medmap.volume import Volume
        from MedMAPSegmentLib.i18n.sentences import errorText, findingText

        values = np.random.default_rng(7).integers(1, 900, (20, 20, 20)).astype(np.float32)
        thick = np.diag([1.0, 1.0, 9.0, 1.0])
        volumes = {"t1ce": Volume(values, thick), "flair": Volume(values + 1, np.eye(4))}
        texts = [findingText(entry.message) for entry in check_inputs(volumes, BRATS)]
        with pytest.raises(InputDataError) as refused:
            check_inputs({"t2": Volume(values, thick), "flair": Volume(values, thick)}, BRATS)
        texts.append(errorText(refused.value))
        assert len(texts) > 3
        for text in texts:
            assert not re.search(r"\b(t1ce|t2|flair)\b", text), text
        assert "T2 and FLAIR are the same image." in texts[-1]

    def test_names_of_the_users_stay(self):
        from MedMAPSegmentLib.i18n.sentences import sentence

        for text in ("The volume 't1' has no voxels.", "t1 of Tuesday", "Saved: t1.csv"):
            assert sentence(text) == text


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


COMMAND_LINE_WORDS = (
    " --",
    "pip install",
    "medmap[",
    "extra medmap",
    "environment variable",
    "bundle",
)


def test_no_message_names_anything_that_only_the_command_line_or_python_has():
    page = (REPOSITORY / "docs/reference/panel_messages.md").read_text(encoding="utf-8")
    rows = [line.replace("\\", "") for line in page.splitlines() if line.startswith("|")]
    unfit = [row for row in rows for word in COMMAND_LINE_WORDS if word in row]
    assert not unfit, "\n".join(unfit)


def test_what_the_core_advises_is_said_as_slicer_has_it():
    """Whoever uses Slicer installs no extras of a Python package."""
    from medmap.preparation.registration import unavailable
    from MedMAPSegmentLib.i18n.in_slicer import IN_SLICER
    from MedMAPSegmentLib.i18n.sentences import errorText

    text = errorText(unavailable("T2", "FLAIR", 12.0))
    assert text.startswith("T2 lies 12 mm away from FLAIR")
    assert "General Registration (BRAINS)" in text
    assert "clinic" not in text
    shown = " ".join(IN_SLICER.values())
    assert not [word for word in COMMAND_LINE_WORDS if word in shown]


def test_every_row_of_the_table_for_slicer_is_a_sentence_of_the_core():
    """A sentence that the core says no longer as it stands there would be shown as it is."""
    from MedMAPSegmentLib.i18n.core_sentences import SENTENCES
    from MedMAPSegmentLib.i18n.in_slicer import IN_SLICER

    assert set(IN_SLICER) <= set(SENTENCES)


NAMES = {
    "Axial diameter",
    "Earlier diameter",
    "Earlier volume",
    "MedMAP Segment",
    "MedMAP contributors",
    "Reference volume",
    "by the self test",
}
"""Columns of tables of the scene, which files and scripts go by, and proper names."""


def untranslated(path: Path) -> list[str]:
    """Texts of several words in a file that do not go through a translator."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unseen = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            unseen.add(id(node.value))
        name = ""
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        # Translated, names of signals, logged for developers, or no text at all.
        if name in ("_", "translate", "connect", "disconnect", "warning") or isinstance(
            node, ast.Assert
        ):
            unseen |= {id(part) for part in ast.walk(node)}
    texts = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or id(node) in unseen:
            continue
        if not isinstance(node.value, str):
            continue
        text = re.sub(r"<[^>]*>", "", node.value)
        if re.search(r"[A-Za-z]{2,} [A-Za-z]", text):
            texts.append(text)
    return texts


def test_the_panel_says_nothing_that_cannot_be_translated():
    module = REPOSITORY / "MedMAPSegment"
    files = [*sorted((module / "MedMAPSegmentLib/sections").glob("*.py"))]
    files.append(module / "MedMAPSegment.py")
    texts = set()
    for path in files:
        if path.name != "core_sentences.py":
            texts.update(untranslated(path))
    assert texts <= NAMES, sorted(texts - NAMES)


def test_every_text_of_the_ui_file_is_offered_to_translators():
    """Qt's tools skip what is marked as not translatable."""
    ui = REPOSITORY / "MedMAPSegment/Resources/UI/MedMAPSegment.ui"
    assert 'notr="true"' not in ui.read_text(encoding="utf-8")
