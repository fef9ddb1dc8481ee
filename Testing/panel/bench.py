"""What the panel costs, as ratios from one run: liveness, thread overhead, cancel, and what-if over
all subsets.

    python Testing/panel/bench.py [--runs 3]

Runs the default bundle on the synthetic sample patient under the stand-ins of ``Testing/standin``.
Each turn of the event loop holds the interpreter lock for a while, as Slicer's does, which Qt under
PySide6 would not.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [
    str(REPOSITORY / folder) for folder in ("MedMAPTraining", "MedMAPSegment", "Testing")
]

import standin  # noqa: E402

HOLD_MICROSECONDS = 2000


def hold_the_interpreter() -> None:
    """Do what Slicer's event loop does between two turns: nothing, without giving the interpreter
    lock away.
    """
    ctypes.PyDLL(None).usleep(HOLD_MICROSECONDS)


class Bench:
    """The panel with the sample patient in its slots."""

    def __init__(self):
        self.application = standin.install()
        self.panel = self.application.open(REPOSITORY / "MedMAPSegment/MedMAPSegment.py")
        self.panel.ui.sampleButton.click()
        # A chosen reference is compared after each Apply, which is not what is measured.
        self.panel.ui.reviewSelector.setCurrentNode(None)
        # The last device of the list is the processor.
        self.panel.ui.deviceComboBox.setCurrentIndex(self.panel.ui.deviceComboBox.count - 1)

    def inline(self) -> float:
        """Seconds of one segmentation on this thread."""
        request = self.panel.logic.prepare(**self.panel.state.segmentationArguments(), device="cpu")
        started = time.perf_counter()
        self.panel.logic.compute(request)
        return time.perf_counter() - started

    def turn(self) -> None:
        """One turn of the event loop."""
        self.application.app.processEvents()
        hold_the_interpreter()

    def follow(self) -> tuple[float, float, float]:
        """Seconds, turns a second and longest turn in seconds until the panel is idle."""
        started = last = time.perf_counter()
        turns, longest = 0, 0.0
        while self.panel.isBusy():
            self.turn()
            now = time.perf_counter()
            turns, longest, last = turns + 1, max(longest, now - last), now
        seconds = time.perf_counter() - started
        return seconds, turns / seconds, longest

    def cancel(self) -> float:
        """Seconds from pressing Cancel in the middle of a run until the panel is ready again."""
        self.panel.ui.applyButton.click()
        while self.panel.ui.progressBar.value < 30:
            self.turn()
        started = time.perf_counter()
        self.panel.ui.applyButton.click()
        while self.panel.isBusy():
            self.turn()
        return time.perf_counter() - started


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    bench = Bench()
    panel = bench.panel
    bench.inline()  # loads the model
    cpu = time.process_time()
    bench.inline()
    cpu = time.process_time() - cpu
    inline, threaded, turns, gaps = [], [], [], []
    for _ in range(options.runs):
        inline.append(bench.inline())
        panel.ui.applyButton.click()
        seconds, rate, longest = bench.follow()
        threaded.append(seconds)
        turns.append(rate)
        gaps.append(longest)
    one, worker = statistics.median(inline), statistics.median(threaded)
    print(
        f"one segmentation inline (four scans, processor)   {one:7.2f} s, median of {options.runs}"
    )
    print(
        f"the same by Apply, with Slicer's event loop        {worker:7.2f} s = {worker / one:.2f} "
        "x   (bar 1.2)"
    )
    print(
        f"turns of the event loop a second                   {min(turns):7.1f}, least of "
        f"{options.runs}  (bar 20)"
    )
    print(f"longest turn (putting the result into the scene)   {max(gaps):7.2f} s")
    print(
        f"Cancel until ready                                 {bench.cancel():7.2f} s (one window: "
        f"{one:.2f} s)"
    )
    panel.ui.applyButton.click()
    bench.follow()
    panel.ui.subsetsButton.click()
    busy = time.process_time()
    seconds, rate, _ = bench.follow()
    busy = time.process_time() - busy
    count = panel.ui.subsetsTable.rowCount
    print(
        f"what if, {count} combinations of four scans           {seconds:7.2f} s = "
        f"{seconds / one:.2f} x   (goal 2.7)"
    )
    print(f"the same in processor time, on a busy machine      {busy:7.2f} s = {busy / cpu:.2f} x")
    failures = [*bench.application.errors, *bench.application.desk.texts()]
    bench.application.uninstall()
    print("\n".join(failures), end="")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
