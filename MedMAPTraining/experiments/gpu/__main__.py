"""Everything about one GPU, in at most six minutes: speed, memory, training, drills, tests.

    make gpu [PYTHON=python3]
    export PYTHONPATH=MedMAPTraining:MedMAPTraining/experiments
    python -m gpu --output gpu.md
    python -m gpu pack CACHE cases.pt

Needs PyTorch 2.10 or newer and NumPy, nothing else: no network, no file outside the checkout, no
NIfTI reader. Weights are random, since time does not depend on them. ``pack`` writes cases that a
training prepared (``RUN/cache``) into one file of at most 30 MiB; without ``--cases``, the training
uses cases that the generator makes on the device. ``--rehearse`` runs every line with tiny sizes on
the CPU.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gpu.cases import pack
from gpu.parts import run, table
from gpu.setup import REHEARSAL, Setup, Sizes
from medmap.devices import resolve_device
from medmap.errors import UnavailableError


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command")
    packing = commands.add_parser("pack")
    packing.add_argument("cache", type=Path)
    packing.add_argument("out", type=Path)
    parser.add_argument("--output", type=Path, help="Markdown file for the table")
    parser.add_argument("--cases", type=Path, help="what pack wrote")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    if options.command == "pack":
        pack(options.cache, options.out)
        return
    device = "cpu" if options.rehearse else options.device
    try:
        setup = Setup(resolve_device(device), REHEARSAL if options.rehearse else Sizes())
    except UnavailableError as error:
        sys.exit(f"{error.cause} {error.remedy}")
    rows = run(setup, options.cases)
    text = table(rows, setup)
    print(text)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text, encoding="utf-8")
    if any(row.figure == "FAILED" for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
