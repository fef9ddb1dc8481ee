"""Everything that a user reads, in the user's language. No Qt.

Texts that a file of this library writes itself go through its ``_``; sentences of the core, and
those of errors and findings, go through ``sentences``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def translator(file: str) -> Callable[[str], str]:
    """The function ``_`` of a file: translates texts inside Slicer, elsewhere gives them back.

    ``slicer.i18n.tr`` does the same, but exists in the application only, and finds the context of
    a text by the file that calls it.

    Args:
        file: the ``__file__`` of the module whose texts are translated.
    """
    path = Path(file)
    # As Slicer's tools, which collect the texts for translators, name the context.
    context = f"{path.parent.name}.{path.stem}"

    def translated(text: str) -> str:
        try:
            from slicer.i18n import translate
        except ImportError:
            return text
        return str(translate(context, text))

    return translated


def languageTag(text: str, translation: str, locale: str) -> str:
    """Tag (BCP 47) of the language of a document that is written with ``translator``.

    Slicer may run in a language that this module has not been translated into.

    Args:
        text: a text of the document, in English.
        translation: the same text as the document has it.
        locale: of the application, such as ``fr_FR``.
    """
    if translation == text:
        return "en"
    return locale.replace("_", "-")
