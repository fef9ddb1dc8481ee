"""Errors that a user can meet: one sentence of cause, one of remedy, and an exit code.

Exit codes follow ``sysexits.h`` where it has one (65 bad data, 66 no such input, 69 unavailable,
70 internal, 73 cannot create output, 74 input/output failure, 78 bad configuration or bundle);
2 stands for wrong usage and 130 for Ctrl-C.

Causes and remedies name no command-line option and no button, because the command line and the
3D Slicer panel show the same errors. An error that an option can solve names it in ``option``.
"""

from __future__ import annotations

from collections.abc import Sequence

LISTED_ERRORS = 20
"""``combined_error`` spells out this many causes and counts the others."""

_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "Cannot allocate memory",
    "failed to map segment",
)
"""Texts of PyTorch's plain RuntimeError, and of the ImportError of a library that the system could
not load, when the CPU's memory is exhausted."""


class MedMAPError(Exception):
    """Base class of every error that a user can meet.

    Args:
        cause: one sentence: what was found, where, and what was expected.
        remedy: one sentence: what the user can do about it, neutral to the interface.
        option: the command-line option that carries out the remedy, without dashes (``device``, or
            ``device cpu`` where one value is meant). The command line shows it behind the remedy,
            other interfaces ignore it.
    """

    exit_code = 70

    def __init__(self, cause: str, remedy: str, option: str | None = None):
        super().__init__(f"{cause} {remedy}")
        self.cause = cause
        self.remedy = remedy
        self.option = option

    def __reduce__(self) -> tuple:
        """Keep all fields in a pickle; the default would keep the joined text only."""
        return type(self), (self.cause, self.remedy, self.option)

    @property
    def command_line_remedy(self) -> str:
        """The remedy with the option: ``Choose the CPU (--device cpu).``"""
        if self.option is None:
            return self.remedy
        return f"{self.remedy.removesuffix('.')} (--{self.option})."


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
    """A condition that should never occur; worth a bug report."""

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

    def __init__(
        self,
        cause: str = "Cancelled.",
        remedy: str = "Nothing was written.",
        option: str | None = None,
    ):
        super().__init__(cause, remedy, option)


def combined_error(errors: Sequence[MedMAPError], case_count: int) -> MedMAPError:
    """Combine the errors of a cohort into one, so that a user can fix all cases at once.

    Args:
        errors: at least one; a single error is returned unchanged.
        case_count: number of cases that were looked at.

    Returns:
        An error of the first one's class that lists the first ``LISTED_ERRORS`` causes, with the
        remedy of all of them where they share one.
    """
    if len(errors) == 1:
        return errors[0]
    causes = " ".join(error.cause for error in errors[:LISTED_ERRORS])
    hidden_count = len(errors) - LISTED_ERRORS
    if hidden_count > 0:
        causes += f" And {hidden_count} more."
    cause = f"{len(errors)} of {case_count} cases cannot be used. {causes}"
    remedies = {(error.remedy, error.option) for error in errors}
    if len(remedies) == 1:
        return type(errors[0])(cause, errors[0].remedy, errors[0].option)
    return type(errors[0])(cause, "Fix or remove them.")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that the memory of a device or of the system is exhausted."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if not isinstance(error, RuntimeError | ImportError):
        return False
    message = str(error)
    return any(text in message for text in _OUT_OF_MEMORY)
