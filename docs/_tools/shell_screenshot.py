"""Draw the way from a DICOM study to a result in the shell: ``Resources/Screenshots/shell.svg``.

python docs/_tools/shell_screenshot.py

The study is generated, with a skull. Needs the extras ``clinic`` and ``train``.
"""

from __future__ import annotations

import importlib.util
import io
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
from rich.console import Console
from rich.text import Text

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.append(str(REPOSITORY / "MedMAPTraining"))


def module_at(path: str) -> ModuleType:
    """A module of the tests, by its path in the repository."""
    name = Path(path).stem
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    # Its data classes look themselves up by the name of their module.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


heads = module_at("Testing/medmap/preparation/conftest.py")
generated_study = module_at("Testing/medmap/dicom/generated_study.py")

COLUMNS = 100
TARGET = REPOSITORY / "Resources/Screenshots/shell.svg"
COMMANDS = (
    ["segment", "study", "--list"],
    ["segment", "study", "-o", "result", "--device", "cpu"],
)


def write_generated_study(folder: Path) -> None:
    """A generated patient with skull and scalp as a study of six series."""
    patient = heads.patient()
    images = {}
    for name in patient.images:
        images[name] = np.asarray(heads.head_array(name))
    head = SimpleNamespace(images=images, affine=patient.affine)
    scans = generated_study.study_scans(head, heads.SPACING_MM)
    for scan in scans:
        generated_study.write_series(folder / f"S{scan.number:03d}", scan)


def output_of(command: list[str], folder: Path) -> str:
    """What a command prints on a terminal; without one, where its progress would be redrawn."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "PYTHONPATH": str(REPOSITORY / "MedMAPTraining"),
        "COLUMNS": str(COLUMNS),
        "TERM": "xterm-256color",
        "OMP_NUM_THREADS": "1",
    }
    words = [sys.executable, "-m", "medmap", *command]
    if "--list" in command:
        words = ["script", "--quiet", "--return", "--command", shlex.join(words), "/dev/null"]
    result = subprocess.run(
        words,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    return result.stdout.strip("\r\n")


def main() -> None:
    """Generate, run, draw."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_generated_study(folder / "study")
        for command in COMMANDS:
            console.print(f"$ medmap {' '.join(command)}", style="bold", highlight=False)
            console.print(Text.from_ansi(output_of(command, folder)))
            console.print()
    TARGET.write_text(console.export_svg(title="medmap segment"), encoding="utf-8")


if __name__ == "__main__":
    main()
