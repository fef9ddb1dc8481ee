"""Assembles the sources of the website in build/docs and builds it into build/site.

usage: python docs/_tools/site.py

Pages are copied from docs/, pictures from Resources/; the Python blocks of tutorials are run
(notebook.py). The command line, the recipe fields, and
the API are written from the code, so that they cannot disagree with it. Links that leave docs/
are checked here and point to the repository; all others are checked by the builder, which runs
in strict mode.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import notebook
import typer.main
from typer.core import TyperArgument, TyperGroup

from medmap.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
TARGET = ROOT / "build/docs"
PACKAGE = ROOT / "MedMAPTraining/medmap"
REPOSITORY = "https://github.com/medmap/SlicerMedMAP/blob/main/"

TREE = re.compile(r"<!-- tree: .*?-->\n```text\n(.*?)```\n", re.DOTALL)
LINK = re.compile(r"(?<!`)(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")

# Packages of the API reference, in the order of the data: modules that a user of the library needs.
API = {
    "Volumes and tasks": [
        "medmap",
        "volume",
        "task.definition",
        "task.files",
        "task.conventions",
        "checks",
        "errors",
    ],
    "Segmentation": ["inference", "preprocess", "postprocess", "subset_comparison", "provenance"],
    "Models": ["bundle"],
    "Networks": ["networks"],
    "Training": ["training"],
    "Evaluation": ["metrics", "agreement", "evaluation"],
    "Files": ["io"],
}


def main() -> int:
    """Assemble, build, and return the exit code of the builder."""
    shutil.rmtree(TARGET, ignore_errors=True)
    TARGET.mkdir(parents=True)
    problems = copy_pages()
    write(TARGET / "reference/cli.md", cli_page())
    write(TARGET / "reference/recipe.md", recipe_page())
    write_api()
    if problems:
        print("\n".join(problems), file=sys.stderr)
        return 1
    builder = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    return subprocess.run(builder, cwd=ROOT, check=False).returncode


def write(path: Path, text: str) -> None:
    """Write a page and the folders that lead to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def copy_pages() -> list[str]:
    """Copy all pages with adapted links; returns links that lead nowhere."""
    problems: list[str] = []
    for style in DOCS.rglob("*.css"):
        write(TARGET / style.relative_to(DOCS), style.read_text(encoding="utf-8"))
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if notebook.is_executed(text):
            try:
                text = notebook.with_outputs(text, str(page.relative_to(ROOT)))
            except notebook.BlockError as error:
                problems.append(str(error))

        def adapted(match: re.Match, page: Path = page) -> str:
            start, link, end = match.groups()
            return start + adapted_link(link, page, problems) + end

        text = TREE.sub(lambda match: tree_tables(match[1]), text)
        write(TARGET / page.relative_to(DOCS), LINK.sub(adapted, text))
    return problems


def tree_tables(tree: str) -> str:
    """The tree of files as a table per folder: a block of code would cut off long sentences."""
    folders: list[str] = []
    lines: list[str] = []
    for line in tree.splitlines():
        name, _, meaning = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        if name.endswith("/"):
            folders[depth:] = [name]
            lines += ["", f"**`{''.join(folders)}`** {prose(meaning)}", ""]
            lines += ["| File | Content |", "|---|---|"]
        else:
            lines.append(f"| `{name}` | {cell(meaning)} |")
    return "\n".join(lines) + "\n"


def adapted_link(link: str, page: Path, problems: list[str]) -> str:
    """A link as it must be in the website."""
    if "://" in link or link.startswith("mailto:"):
        return link
    linked = (page.parent / link).resolve()
    if not linked.is_relative_to(ROOT):
        problems.append(f"{page.relative_to(ROOT)}: {link} leaves the repository")
        return link
    inside = linked.is_relative_to(DOCS)
    if inside and linked.suffix == ".md":
        return link  # may be generated; the builder checks it
    if not linked.exists():
        problems.append(f"{page.relative_to(ROOT)}: {link} does not exist")
        return link
    if linked.suffix in (".png", ".svg"):
        name = linked.relative_to(ROOT / "Resources")
        copy = TARGET / "pictures" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(linked, copy)
        depth = len(page.relative_to(DOCS).parts) - 1
        return "../" * depth + f"pictures/{name.as_posix()}"
    return REPOSITORY + linked.relative_to(ROOT).as_posix()


def cli_page() -> str:
    """Reference of the command line, from the commands themselves."""
    lines = [
        "# Command line",
        "",
        "Generated from `medmap --help`. Every error prints its cause and a suggested remedy, and",
        "ends with a documented [exit code](exit_codes.md).",
        "",
    ]
    add_commands(lines, typer.main.get_group(app), "medmap")
    return "\n".join(lines) + "\n"


def add_commands(lines: list[str], group: TyperGroup, path: str) -> None:
    """Append a section per command of a group."""
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if isinstance(command, TyperGroup):
            add_commands(lines, command, f"{path} {name}")
            continue
        context = typer.Context(command, info_name=f"{path} {name}")
        lines += [f"## {path} {name}", "", prose(command.help or ""), "", "```text"]
        lines += [command.get_usage(context), "```", ""]
        options = []
        for parameter in command.params:
            record = parameter.get_help_record(context)
            if record is None and isinstance(parameter, TyperArgument):
                record = (str(parameter.name).upper(), getattr(parameter, "help", "") or "")
            if record is not None:
                options.append(record)
        lines += ["| Argument or option | Meaning |", "|---|---|"]
        lines += [f"| `{code(left)}` | {cell(right)} |" for left, right in options]
        lines.append("")


def prose(text: str) -> str:
    """Help text as Markdown paragraphs."""
    paragraphs = [" ".join(p.split()) for p in text.replace("\b", "").split("\n\n")]
    return "\n\n".join(p.replace("<", "&lt;").replace("*", "\\*") for p in paragraphs if p)


def code(text: str) -> str:
    """Text that may stand in a code span in a cell of a table."""
    return " ".join(text.split()).replace(" | ", " or ").replace("|", "/")


def cell(text: str) -> str:
    """Text that may stand in a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def recipe_page() -> str:
    """Fields of a recipe with their defaults, from the docstrings of the dataclasses."""
    lines = [
        "# Recipe fields",
        "",
        "A recipe is a JSON file; fields that it does not name take their defaults. Nested fields",
        "(`augmentation`, `preprocess`, ...) are JSON objects. Generated from the code.",
        "",
        "```json",
        '{"network": "RFNet", "objective": "passion", "steps": 60000, "patch": [80, 80, 80]}',
        "```",
        "",
    ]
    sources = {
        "Recipe": "training/recipe.py",
        "PreprocessSpec": "preprocess.py",
        "PostprocessSpec": "postprocess/spec.py",
        "Augmentation": "training/dataset.py",
        "StandardAugmentation": "training/augmentation.py",
        "Generation": "training/generated.py",
    }
    titles = {
        "Recipe": "Recipe",
        "PreprocessSpec": "preprocess",
        "PostprocessSpec": "postprocess",
        "Augmentation": "augmentation",
        "StandardAugmentation": "augmentation.standard",
        "Generation": "generation",
    }
    for name, module in sources.items():
        node = class_named(PACKAGE / module, name)
        if node is None:
            continue
        lines += [f"## {titles[name]}", "", *fields(node), ""]
    return "\n".join(lines) + "\n"


def class_named(path: Path, name: str) -> ast.ClassDef | None:
    """The definition of a class, or None where a module has no such class."""
    if not path.exists():
        return None
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
    return None


def fields(node: ast.ClassDef) -> list[str]:
    """A table of a dataclass: field, type, default, meaning."""
    defaults = {}
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            value = ast.unparse(statement.value) if statement.value else ""
            factory = re.fullmatch(r"field\(default_factory=(\w+)\)", value)
            if factory:
                value = {"dict": "{}", "list": "[]"}.get(factory[1], "see below")
            defaults[statement.target.id] = (ast.unparse(statement.annotation), value)
    lines = ["| Field | Type and default | Meaning |", "|---|---|---|"]
    for names, meaning in attributes(ast.get_docstring(node) or ""):
        typed = []
        for name in names.split(","):
            annotation, value = defaults.get(name.strip(), ("", ""))
            typed.append(f"`{code(annotation)}`" + (f" = `{code(value)}`" if value else ""))
        joined = "<br>".join(t for t in typed if t != "``")
        shown = "<br>".join(f"`{name.strip()}`" for name in names.split(","))
        lines.append(f"| {shown} | {joined} | {cell(meaning)} |")
    return lines


def attributes(docstring: str) -> list[tuple[str, str]]:
    """Entries of the section ``Attributes`` of a docstring."""
    _, _, section = docstring.partition("Attributes:\n")
    entries: list[tuple[str, str]] = []
    for line in section.splitlines():
        start = re.match(r"^    ([a-z_][a-z_0-9, ]*): (.*)", line)
        if start:
            entries.append((start[1], start[2]))
        elif line.startswith("     ") and entries:
            names, meaning = entries[-1]
            entries[-1] = (names, f"{meaning} {line.strip()}")
        elif line.strip() and not line.startswith("    "):
            break
    return entries


def write_api() -> None:
    """One page per group of modules, filled by mkdocstrings."""
    for heading, modules in API.items():
        lines = [f"# {heading}", ""]
        for module in modules:
            for name in module_names(module):
                lines += [f"## {name}", "", f"::: {name}", ""]
        name = heading.lower().replace(" ", "_")
        write(TARGET / f"reference/api/{name}.md", "\n".join(lines) + "\n")


def module_names(module: str) -> list[str]:
    """Dotted names of a module, or of all modules of a package."""
    if module == "medmap":
        return ["medmap"]
    path = PACKAGE / module
    if path.with_suffix(".py").exists():
        return [f"medmap.{module}"]
    names = []
    for file in sorted(path.rglob("*.py")):
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        names.append(".".join(p for p in parts if p != "__init__"))
    return names


if __name__ == "__main__":
    sys.exit(main())
