"""The error of a user's mistake, and the wording that helps to mend it."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any

INTERRUPTED = 130
"""Exit status of a command that Ctrl-C ended, as shells have it."""


class MercError(Exception):
    """Something the user can mend: the message says what was wrong, where, and what to do.

    The commands print it without a traceback and exit with status 1.
    """


def first_words(error: BaseException, most: int = 40) -> str:
    """The beginning of what an error of a library says, on one line."""
    return " ".join(str(error).split()[:most])


def nearest(name: str, valid: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` when a valid name is close to ``name``, else an empty string."""
    matches = get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def check_names(key: str, given: Iterable[str], valid: Collection[str]) -> None:
    """Refuse a list with a name that is none of those that a key may list.

    Args:
        key: as the user writes it.
        given: the names it lists.
        valid: the names it may list.

    Raises:
        MercError: it lists another.
    """
    for name in given:
        if name not in valid:
            raise MercError(f"{key} names '{name}', which is none of {', '.join(valid)}.{nearest(name, valid)}")


def check_choice(key: str, given: Any, valid: Collection[str]) -> None:
    """Refuse a value that is none of those that a key may have.

    Args:
        key: as the user writes it.
        given: its value.
        valid: the values it may have.

    Raises:
        MercError: it has another.
    """
    if given not in list(valid):  # a list of names is no key
        raise MercError(f"{key}={given} is none of {', '.join(valid)}.{nearest(str(given), valid)}")
