"""What can go wrong, in words: one sentence of cause, one of remedy, and the exit code of the command line.

Exit codes follow ``sysexits.h`` where it has one (65 bad data, 66 no such input, 69 device unavailable, 70 internal,
73 cannot create output, 74 input/output failure, 78 bad configuration or bundle), 2 for wrong usage and 130 for Ctrl-C.
"""

from __future__ import annotations

from collections.abc import Sequence


class MedMAPError(Exception):
    """Base of every error that a user can meet.

    Args:
        cause: one sentence: what was found, where, and what was expected.
        remedy: one sentence: what the user can do about it.
    """

    exit_code = 70

    def __init__(self, cause: str, remedy: str):
        super().__init__(f"{cause} {remedy}")
        self.cause = cause
        self.remedy = remedy

    def __reduce__(self) -> tuple:
        """Come back whole from another process: by default only the joined text would."""
        return type(self), (self.cause, self.remedy)


class UsageError(MedMAPError):
    """The call itself cannot be understood or contradicts itself."""

    exit_code = 2


class InputDataError(MedMAPError):
    """An input was read but cannot be used as it is."""

    exit_code = 65


class MissingInputError(MedMAPError):
    """An input file does not exist or cannot be opened."""

    exit_code = 66


class UnavailableError(MedMAPError):
    """A device, a library or enough memory is not available."""

    exit_code = 69


class InternalError(MedMAPError):
    """Something that should not happen did; worth a report."""

    exit_code = 70


class OutputError(MedMAPError):
    """The output cannot be created where the user wants it."""

    exit_code = 73


class IOFailure(MedMAPError):
    """Reading or writing broke off: disk full, device gone."""

    exit_code = 74


class BundleError(MedMAPError):
    """A bundle, checkpoint or configuration is damaged, unknown or does not fit."""

    exit_code = 78


class Cancelled(MedMAPError):
    """The user asked to stop."""

    exit_code = 130

    def __init__(self, cause: str = "Cancelled.", remedy: str = "Nothing was written."):
        super().__init__(cause, remedy)


def all_of(faults: Sequence[MedMAPError], cases: int) -> MedMAPError:
    """One error that names every fault of a cohort, so that a user mends them in one go; the first one as it is."""
    if len(faults) == 1:
        return faults[0]
    shown = " ".join(fault.cause for fault in faults[:20])
    more = f" And {len(faults) - 20} more." if len(faults) > 20 else ""
    return type(faults[0])(
        f"{len(faults)} of {cases} cases cannot be used. {shown}{more}", "Mend or remove them."
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice: a device's, the interpreter's, or the CPU's, of which PyTorch tells in words."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = ("can't allocate memory", "not enough memory", "Cannot allocate memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
