"""Options by name, as recipes and bundles state them: what is wrong with those that do not fit."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Sequence

from medmap.errors import BundleError


def check_names(title: str, kind: str, names: Iterable[str], valid: Sequence[str]) -> None:
    """Refuse a name that does not exist, and suggest the one that was meant.

    Args:
        title: whose names these are, as a sentence begins: ``The recipe x.json``.
        kind: what the names are, such as ``field``.
        names: as they are stated.
        valid: those that exist.

    Raises:
        BundleError: one of the names does not exist.
    """
    for name in names:
        if name not in valid:
            remedy = f"It has {', '.join(valid)}."
            similar = difflib.get_close_matches(name, valid, n=1)
            if similar:
                remedy = f"Perhaps '{similar[0]}' is meant; it has {', '.join(valid)}."
            raise BundleError(f"{title} has no {kind} '{name}'.", remedy)


def misfit(
    title: str,
    part: Callable[..., object],
    options: Iterable[str],
    error: Exception,
    set_elsewhere: Collection[str] = (),
) -> BundleError:
    """The error for options with which a part could not be built.

    Args:
        title: of the part, as a sentence begins: ``The network UNet``.
        part: the class or function.
        options: names that were given.
        error: what Python said.
        set_elsewhere: parameters of the part that are no options.

    Returns:
        An error that names the option, if it is the name that does not fit.
    """
    valid = _keywords(part, set_elsewhere)
    if valid:
        try:
            stated = [name for name in options if name not in set_elsewhere]
            check_names(title, "option", stated, valid)
        except BundleError as unknown:
            return unknown
    remedy = "Correct their values."
    if valid:
        remedy = f"Correct their values; its options are {', '.join(valid)}."
    return BundleError(f"The options do not fit. {title}: {error}.", remedy)


def _keywords(part: Callable[..., object], set_elsewhere: Collection[str]) -> list[str]:
    """Names of the options of a part; none where it passes on whatever it is given."""
    parameters = inspect.signature(part).parameters.values()
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return []
    return [entry.name for entry in parameters if entry.name not in set_elsewhere]
