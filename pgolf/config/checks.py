"""What every section's `validate` is written with: one line for a value that cannot be used."""

import difflib
from collections.abc import Iterable

from pgolf.errors import UsageError


class SettingsError(UsageError):
    """A setting that cannot be used: one line that says which, and what would be right."""


def nearest(name: str, known: Iterable) -> str:
    """The end of an error line: the known name that comes closest, if one does."""
    close = difflib.get_close_matches(name, [str(k) for k in known], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


# The conditions are written so that NaN fails them.


def at_least(bound: float, section: str, settings, *names: str) -> None:
    for name in names:
        if not getattr(settings, name) >= bound:
            raise SettingsError(f"{section}.{name} is {getattr(settings, name)}; it must be at least {bound}")


def above(bound: float, section: str, settings, *names: str) -> None:
    for name in names:
        if not getattr(settings, name) > bound:
            raise SettingsError(f"{section}.{name} is {getattr(settings, name)}; it must be above {bound}")


def between(least: float, most: float, section: str, settings, *names: str) -> None:
    for name in names:
        if not least <= getattr(settings, name) <= most:
            raise SettingsError(f"{section}.{name} is {getattr(settings, name)}; it must be from {least} to {most:,}")


def share(section: str, settings, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(settings, name) <= 1:
            raise SettingsError(f"{section}.{name} {getattr(settings, name)} is no share from 0 to 1")
