"""Errors: fields, the remedy that the command line shows, and combining the errors of a cohort."""

from __future__ import annotations

import pickle

from medmap.errors import BundleError, Cancelled, InputDataError, UnavailableError, combined_error


def test_an_error_survives_pickling_with_all_fields():
    error = UnavailableError("There is no GPU.", "Choose the CPU.", option="device cpu")
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), copied.cause, copied.remedy, copied.option) == (
        UnavailableError,
        "There is no GPU.",
        "Choose the CPU.",
        "device cpu",
    )
    assert str(pickle.loads(pickle.dumps(Cancelled()))) == "Cancelled. Nothing was written."


def test_only_the_command_line_remedy_names_an_option():
    error = UnavailableError("There is no GPU.", "Choose the CPU.", option="device cpu")
    assert error.command_line_remedy == "Choose the CPU (--device cpu)."
    assert str(error) == "There is no GPU. Choose the CPU."
    assert BundleError("It is damaged.", "Copy it again.").command_line_remedy == "Copy it again."


def test_the_errors_of_a_cohort_become_one():
    errors = [InputDataError(f"Case {n} is empty.", "Remove it.") for n in range(25)]
    assert combined_error(errors[:1], 30) is errors[0]
    combined = combined_error(errors, 30)
    assert isinstance(combined, InputDataError)
    assert combined.cause.startswith("25 of 30 cases cannot be used. Case 0 is empty.")
    assert combined.cause.endswith("Case 19 is empty. And 5 more.")
