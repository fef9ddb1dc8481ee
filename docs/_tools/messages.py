"""Writes the panel's messages: the page of failures, and the core's sentences for translators.

usage: python docs/_tools/messages.py [--check]

Both come from the code, so that neither can disagree with it. ``--check`` writes nothing and exits
with 1 if a file is out of date.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "MedMAPSegment"), str(ROOT / "MedMAPTraining")]

from medmap import NOTICE  # noqa: E402
from MedMAPSegmentLib.i18n.in_slicer import IN_SLICER  # noqa: E402

PAGE = ROOT / "docs/reference/panel_messages.md"
SENTENCES = ROOT / "MedMAPSegment/MedMAPSegmentLib/i18n/core_sentences.py"
LIBRARY = "MedMAPSegment/MedMAPSegmentLib"
CORE = "MedMAPTraining/medmap"

PLACES = {
    f"{LIBRARY}/inputs.py": "Inputs; tool tip of Apply",
    f"{LIBRARY}/logic.py": "Apply",
    f"{LIBRARY}/dependencies.py": (
        "Apply, Load sample patient, Modality comparison: before installing"
    ),
    f"{LIBRARY}/devices.py": "Apply; Settings",
    f"{LIBRARY}/runner.py": "every computation",
    f"{LIBRARY}/models": "Settings: models",
    f"{LIBRARY}/mrml/geometry.py": "Inputs; Apply",
    f"{LIBRARY}/mrml/geometry_checks.py": "Inputs: checks",
    f"{LIBRARY}/mrml/sampling.py": "Inputs",
    f"{LIBRARY}/mrml/brain_mask.py": "Apply: brain mask",
    f"{LIBRARY}/preparation.py": "Above Apply; tool tip of Apply",
    f"{LIBRARY}/mrml/patient.py": "Inputs; Result; report; exports",
    f"{LIBRARY}/mrml/scene.py": "Apply: reading volumes and adding the result",
    f"{LIBRARY}/mrml/storage.py": "Apply: reading volumes",
    f"{LIBRARY}/mrml/sample.py": "Inputs: Load sample patient",
    f"{LIBRARY}/mrml/nodes.py": "Result; Review",
    f"{LIBRARY}/mrml/reference.py": "Review",
    f"{LIBRARY}/mrml/reference_parts.py": "Review",
    f"{LIBRARY}/mrml/review.py": "Review: Compare",
    f"{LIBRARY}/mrml/review_nodes.py": "Review: Compare",
    f"{LIBRARY}/mrml/uncertainty.py": "Modality comparison",
    f"{LIBRARY}/mrml/follow_up.py": "Follow-up",
    f"{LIBRARY}/mrml/export.py": "Result: Export",
    f"{LIBRARY}/mrml/output_files.py": "Save, Export, Report",
    f"{CORE}/checks": "Inputs: checks; Apply",
    f"{CORE}/preparation": "Apply: brain extraction and alignment",
    f"{CORE}/preprocess.py": "Apply",
    f"{CORE}/postprocess.py": "Result",
    f"{CORE}/inference.py": "Apply",
    f"{CORE}/sliding_window.py": "Apply",
    f"{CORE}/devices.py": "Apply",
    f"{CORE}/foreground.py": "Apply",
    f"{CORE}/resampling.py": "Apply",
    f"{CORE}/volume.py": "Apply",
    f"{CORE}/bundle/format.py": "Settings: models; Apply",
    f"{CORE}/bundle/loading.py": "Apply: loading the model",
    f"{CORE}/agreement.py": "Review",
    f"{CORE}/diameters.py": "Review",
    f"{CORE}/metrics.py": "Review",
    f"{CORE}/task/conventions.py": "Review: label values",
    f"{CORE}/subset_comparison.py": "Modality comparison",
    f"{CORE}/io/atomic.py": "Save, Export, Report",
}
"""Files whose messages the panel shows, and where a user sees them."""

ERRORS = {
    "BundleError",
    "IOFailure",
    "InputDataError",
    "InternalError",
    "MissingInputError",
    "OutputError",
    "UnavailableError",
    "UsageError",
}
PROGRESS = {"report": 1, "_report": 1, "progress": 1, "network_progress": 1, "_begin": 0}
"""Functions that report progress, and the position of the text among their arguments."""

PHRASES = (
    f"{CORE}/detection/modality_detection.py",
    f"{CORE}/preparation/registration.py",
    f"{LIBRARY}/dependencies.py",
    f"{CORE}/task/conventions.py",
    f"{LIBRARY}/mrml/uncertainty.py",
)
"""Files whose texts are shown as parts of sentences, too."""

WORDS = ("chosen",)
"""Parts of sentences of one word: how a label convention was found."""

TASKS = f"{CORE}/task/builtin.py"
"""The tasks of the models that ship, whose labels and regions have titles."""
TASK_LIBRARY = f"{CORE}/task/library"
"""Tasks whose models can be imported."""
CARD = "Resources/bundles/default/metadata.json"
"""The default model, which says whom it was made for."""

NO_TEXT = re.compile(r"[\\\n\[\]|^$*+]|\bMedMAP\.")
"""Regular expressions and names, which nobody reads."""

LONGEST_LINE = 96


@dataclass(frozen=True)
class Message:
    """One message of the code.

    Attributes:
        cause: template; ``{0}`` stands for what the program fills in.
        remedy: template; empty where there is none.
        place: where a user sees it.
        kind: ``error``, or the level of a finding.
    """

    cause: str
    remedy: str
    place: str
    kind: str


def sources() -> Iterator[tuple[Path, str]]:
    """Every file whose messages are shown, with the place where they are seen."""
    for name, place in PLACES.items():
        path = ROOT / name
        if not path.exists():  # a module that became a package
            path = path.with_suffix("")
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        for file in files:
            yield file, place


def template(node: ast.expr | None) -> str:
    """A string expression with ``{0}``, ``{1}`` for its variables; empty for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if not isinstance(node, ast.JoinedStr):
        return ""
    parts = []
    count = 0
    for value in node.values:
        if isinstance(value, ast.Constant):
            parts.append(str(value.value))
        else:
            parts.append(f"{{{count}}}")
            count += 1
    return "".join(parts)


def messages() -> list[Message]:
    """Every error and finding of the panel, by place, then in the order of the code."""
    found = []
    for path, place in sources():
        for function in functions(path):
            texts = assigned_texts(function)
            for node in ast.walk(function):
                if isinstance(node, ast.Call):
                    found += from_call(node, texts, place)
    return list(dict.fromkeys(found))


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    """Functions of a file that lie in no other function."""
    todo: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while todo:
        for child in ast.iter_child_nodes(todo.pop(0)):
            if isinstance(child, ast.FunctionDef):
                yield child
            else:
                todo.append(child)


def assigned_texts(function: ast.FunctionDef) -> dict[str, list[str]]:
    """Texts that a function gives to its variables: messages are often put together first."""
    texts: dict[str, list[str]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            text = template(node.value)
            if text:
                texts.setdefault(node.targets[0].id, []).append(text)
    return texts


def from_call(call: ast.Call, texts: dict[str, list[str]], place: str) -> list[Message]:
    """The messages of a call that makes an error or a finding; none for any other."""
    name = getattr(call.func, "id", getattr(call.func, "attr", ""))
    arguments = call.args
    if name in ERRORS and arguments:
        remedy = arguments[1] if len(arguments) > 1 else None
        return combined(arguments[0], remedy, texts, place, "error")
    # Modules with several warnings of a kind have a helper, which leaves out level and kind.
    if name == "_warning":
        return combined(arguments[0], arguments[1], texts, place, "warning")
    if name == "Finding" and len(arguments) > 2:
        remedy = arguments[3] if len(arguments) > 3 else None
        return combined(arguments[2], remedy, texts, place, template(arguments[0]))
    return []


def combined(
    cause: ast.expr, remedy: ast.expr | None, texts: dict[str, list[str]], place: str, kind: str
) -> list[Message]:
    """One message per text that the cause can be."""
    remedies = alternatives(remedy, texts) or [""]
    return [
        Message(text, remedies[min(number, len(remedies) - 1)], place, kind)
        for number, text in enumerate(alternatives(cause, texts))
    ]


def alternatives(node: ast.expr | None, texts: dict[str, list[str]]) -> list[str]:
    """Texts that an expression can be."""
    if isinstance(node, ast.Name):
        return texts.get(node.id, [])
    text = template(node)
    return [text] if text else []


def sentences() -> list[str]:
    """Every sentence of these files, and what else the core says, sorted."""
    found = {*progress_texts(), *phrases(), *titles(), *model_texts(), *IN_SLICER.values()}
    found.update([NOTICE, *WORDS])
    for path, _place in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        hidden = docstrings_and_parts(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in hidden:
                text = template(node)
                if is_sentence(text):
                    found.add(text)
    return sorted(found)


def progress_texts() -> set[str]:
    """What a long computation says while it runs."""
    found = set()
    for path, _place in sources():
        for function in functions(path):
            texts = assigned_texts(function)
            for node in ast.walk(function):
                if not isinstance(node, ast.Call):
                    continue
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                position = PROGRESS.get(name, len(node.args))
                if position < len(node.args):
                    found.update(alternatives(node.args[position], texts))
    return {text for text in found if has_words(text)}


def phrases() -> set[str]:
    """Parts of sentences."""
    found = set()
    for name in PHRASES:
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        hidden = docstrings_and_parts(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in hidden:
                text = template(node).strip()
                # Roles and names of nodes begin with a small letter or a name.
                is_name = "/mrml/" in name and not text[:1].isupper()
                if " " in text and has_words(text) and not is_name and not NO_TEXT.search(text):
                    found.add(text)
    return found


def titles() -> set[str]:
    """Titles of labels and regions."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / TASKS).read_text(encoding="utf-8"))):
        name = getattr(getattr(node, "func", None), "id", "")
        if isinstance(node, ast.Call) and name in ("Label", "Region") and len(node.args) > 1:
            found.add(template(node.args[1]))
    for path in sorted((ROOT / TASK_LIBRARY).glob("*.toml")):
        task = tomllib.loads(path.read_text(encoding="utf-8"))
        for part in (*task.get("labels", []), *task.get("regions", [])):
            found.add(part.get("title", ""))
    return {text for text in found if has_words(text)}


def model_texts() -> set[str]:
    """What the default model says about whom it is made for, and tasks about absent modalities."""
    card = json.loads((ROOT / CARD).read_text(encoding="utf-8"))["medmap"]["card"]
    found = {card.get("population", "")}
    for node in ast.walk(ast.parse((ROOT / TASKS).read_text(encoding="utf-8"))):
        name = getattr(getattr(node, "func", None), "id", "")
        if isinstance(node, ast.Call) and name == "Modality" and len(node.args) > 3:
            found.add(template(node.args[3]))
    return {text for text in found if text}


def has_words(text: str) -> bool:
    """Whether anything is left of a template without its placeholders."""
    return re.search(r"[A-Za-z]{2}", re.sub(r"\{\d+\}", "", text)) is not None


def docstrings_and_parts(tree: ast.AST) -> set[int]:
    """Nodes that are documentation, part of a longer text, or translated where they stand."""
    hidden = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_":
            hidden |= {id(part) for part in ast.walk(node)}
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            hidden.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            hidden |= {id(part) for value in node.values for part in ast.walk(value)}
    return hidden


def is_sentence(text: str) -> bool:
    """Whether a text is shown to people: it has words and ends as a sentence does."""
    return " " in text.strip() and text.rstrip().endswith((".", "?")) and "\n" not in text


def page() -> str:
    """The page of failures."""
    lines = [
        "# Messages of the panel",
        "",
        "Every failure and every finding that the panel can show, with its cause, the remedy that",
        "it names, and where it is seen. Braces stand for what the program fills in, such as",
        "names and figures. The page is written from the code by `docs/_tools/messages.py`.",
        "",
        "An unexpected error shows its Python traceback as *details*; please report it with them.",
    ]
    everything = messages()
    for place in dict.fromkeys(message.place for message in everything):
        lines += ["", f"## {place}", "", "| Kind | Cause | Remedy |", "|---|---|---|"]
        for message in everything:
            if message.place == place:
                cause = IN_SLICER.get(message.cause, message.cause)
                remedy = IN_SLICER.get(message.remedy, message.remedy)
                lines.append(f"| {message.kind} | {cell(cause)} | {cell(remedy)} |")
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """A text in a cell of a table: what is filled in by name of its braces, nothing as markup."""
    for character in "\\|*_<`[":
        text = text.replace(character, f"\\{character}")
    return text.replace("\n", " ")


def module() -> str:
    """The sentences as a Python file that translation tools can read."""
    lines = [
        '"""Sentences of the core and of the library, for translators.',
        "",
        "Written by ``docs/_tools/messages.py``; not to be edited.",
        '"""',
        "",
        "from __future__ import annotations",
        "",
        "from . import translator",
        "",
        "translated = translator(__file__)",
        "",
        "",
        "def _(text: str) -> str:",
        '    """Mark a text for translation tools, which look for calls of this name."""',
        "    return text",
        "",
        "",
        "SENTENCES = (",
    ]
    for sentence in sentences():
        lines += call(sentence)
    return "\n".join([*lines, ")"]) + "\n"


def call(sentence: str) -> list[str]:
    """Lines that translate one sentence, wrapped as the formatter would."""
    single = f"    _({literal(sentence)}),"
    if len(single) <= 100:
        return [single]
    lines = ["    _("]
    words = sentence.split(" ")
    line = ""
    for number, word in enumerate(words):
        part = word if number == len(words) - 1 else f"{word} "
        if len(literal(line + part)) + 8 > LONGEST_LINE and line:
            lines.append(f"        {literal(line)}")
            line = ""
        line += part
    lines.append(f"        {literal(line)}")
    return [*lines, "    ),"]


def literal(text: str) -> str:
    """A text as Python writes it, in double quotes unless it holds one."""
    escaped = text.replace("\\", "\\\\")
    return f"'{escaped}'" if '"' in text else f'"{escaped}"'


def main() -> int:
    """Write both files, or check them."""
    contents = {PAGE: page(), SENTENCES: module()}
    outdated = [
        path
        for path, text in contents.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if "--check" in sys.argv[1:]:
        for path in outdated:
            print(f"{path.relative_to(ROOT)} is out of date: run docs/_tools/messages.py")
        return 1 if outdated else 0
    for path in outdated:
        path.write_text(contents[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
