"""The contrast that the timing of an MR sequence gives, where it is unambiguous."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from medmap.detection.vocabulary import FLAIR, T1, T2

NULLS_CSF_MS = (1500.0, 3000.0)
"""Inversion times at which the CSF gives no signal, from 1.5 T with a short TR to 3 T and more."""
NULLS_FAT_MS = 300.0
"""Inversion times below this suppress fat (STIR)."""
LONG_TE_MS = 60.0
SHORT_TE_MS = 35.0
LONG_TR_MS = 2000.0
SHORT_TR_MS = 1000.0
GRADIENT_ECHO_TE_MS = 12.0
"""Gradient echoes later than this are T2*-weighted."""


@dataclass(frozen=True)
class SequenceParameters:
    """Timing of a sequence; NaN where it is not recorded.

    Attributes:
        repetition_time, echo_time, inversion_time: in ms.
        scanning_sequence: DICOM ScanningSequence (0018,0020): ``SE``, ``IR``, ``GR``, ``EP``.
    """

    repetition_time: float = float("nan")
    echo_time: float = float("nan")
    inversion_time: float = float("nan")
    scanning_sequence: Collection[str] = field(default=())

    def contrast(self) -> str:
        """``t1``, ``t2`` or ``flair``; empty where the timing does not decide."""
        if self.scanning_sequence and "SE" not in self.scanning_sequence:
            return self._gradient_echo_contrast()
        if NULLS_CSF_MS[0] <= self.inversion_time <= NULLS_CSF_MS[1]:
            if self.echo_time >= LONG_TE_MS and self.repetition_time >= LONG_TR_MS:
                return FLAIR
            return ""
        if self.inversion_time <= NULLS_FAT_MS and self.inversion_time > 0:
            return ""
        if self.echo_time >= LONG_TE_MS and self.repetition_time >= LONG_TR_MS:
            return T2
        if self.echo_time <= SHORT_TE_MS and self.repetition_time <= SHORT_TR_MS:
            return T1
        return ""

    def _gradient_echo_contrast(self) -> str:
        if "GR" in self.scanning_sequence and self.echo_time <= GRADIENT_ECHO_TE_MS:
            return T1
        return ""

    def text(self) -> str:
        """What is recorded, for display: ``TR 9000 ms, TE 81 ms, TI 2500 ms``."""
        parts = []
        for name, value in (
            ("TR", self.repetition_time),
            ("TE", self.echo_time),
            ("TI", self.inversion_time),
        ):
            if value > 0:
                parts.append(f"{name} {value:g} ms")
        return ", ".join(parts)
