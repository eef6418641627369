"""A value from a file or the environment as the type that a field is annotated with."""

import types
import typing
from typing import Literal

from pgolf.config.checks import SettingsError, nearest


def checked(value, hint, where: str):
    """The value as the hinted type, or an error that names what was wanted. Whole numbers pass as floats."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            options = ", ".join(map(str, arguments))
            raise SettingsError(f"{where} is {value!r}{nearest(str(value), arguments)}; it can be {options}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise SettingsError(f"{where} is {value!r}, but a list is wanted")
        if arguments[-1] is Ellipsis:
            return tuple(checked(item, arguments[0], where) for item in value)
        if len(value) != len(arguments):
            raise SettingsError(f"{where} has {len(value)} entries, but {len(arguments)} are wanted")
        return tuple(checked(item, kind, where) for item, kind in zip(value, arguments, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        hint = next(kind for kind in arguments if kind is not type(None))
    if type(value) is not hint:
        raise SettingsError(f"{where} is {value!r}, but {a_kind(hint)} is wanted")
    return value


def a_kind(kind) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}.get(kind, str(kind))


def parsed(text: str, kind, where: str):
    if kind is bool:
        if text.lower() not in ("0", "1", "true", "false"):
            raise SettingsError(f"{where} is {text!r}, but 0 or 1 is wanted")
        return text.lower() in ("1", "true")
    try:
        return kind(text)
    except ValueError:
        raise SettingsError(f"{where} is {text!r}, but {a_kind(kind)} is wanted") from None
