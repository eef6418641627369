"""A value from a file or the environment as the type that a field is annotated with."""

import contextlib
import dataclasses
import types
import typing
from typing import Any, Literal

from pgolf.config.checks import SettingsError, nearest


def checked(value, hint, where: str):
    """The value as the hinted type, or an error that names what was wanted. Whole numbers pass as floats."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return dataclass_of(hint, value, where)
    if origin is Literal:
        if value not in arguments:
            options = ", ".join(map(str, arguments))
            raise SettingsError(f"{where} is {value!r}{nearest(str(value), arguments)}; it can be {options}")
        return value
    if origin is dict:
        if not isinstance(value, dict):
            raise SettingsError(f"{where} is {value!r}, but a table is wanted")
        return {key: checked(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    if origin is list:
        if not isinstance(value, list):
            raise SettingsError(f"{where} is {value!r}, but a list is wanted")
        return [checked(item, arguments[0], where) for item in value]
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise SettingsError(f"{where} is {value!r}, but a list is wanted")
        if arguments[-1] is Ellipsis:
            return tuple(checked(item, arguments[0], where) for item in value)
        if len(value) != len(arguments):
            raise SettingsError(f"{where} has {len(value)} entries, but {len(arguments)} are wanted")
        return tuple(checked(item, kind, where) for item, kind in zip(value, arguments, strict=True))
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        *others, last = (kind for kind in arguments if kind is not type(None))
        for kind in others:
            with contextlib.suppress(SettingsError):
                return checked(value, kind, where)
        return checked(value, last, where)
    if hint is float and type(value) is int and abs(value) < 2**1000:
        return float(value)
    if type(value) is not hint:
        raise SettingsError(f"{where} is {value!r}, but {a_kind(hint)} is wanted")
    return value


def dataclass_of(kind, table, where: str):
    """A dataclass from a table that has all its fields but those with a default, and no others."""
    if not isinstance(table, dict):
        raise SettingsError(f"{where} is {table!r}, but a table is wanted")
    hints = typing.get_type_hints(kind)
    for key in table:
        if key not in hints:
            raise SettingsError(f"{where}: no entry {key!r}{nearest(key, hints)}")
    for item in dataclasses.fields(kind):
        optional = item.default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING
        if item.name not in table and not optional:
            raise SettingsError(f"{where} has no {item.name}")
    return kind(**{key: checked(value, hints[key], f"{where}: {key}") for key, value in table.items()})


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
