"""Dataclasses to and from the nested tables of TOML and JSON, every name and type checked. No torch here."""

import dataclasses
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from odn.errors import UsageError, did_you_mean

Config = TypeVar("Config")


def from_table(kind: type[Config], table: dict[str, Any], *, where: str = "") -> Config:
    """Build a dataclass from a TOML or JSON table, checking every name and type.

    Args:
        kind: the dataclass to build, possibly holding others.
        table: the table as parsed.
        where: dotted name of the table, for messages.

    Returns:
        An instance of ``kind``.

    Raises:
        UsageError: on an unknown or missing key, or a value of the wrong type.
    """
    if not isinstance(table, dict):
        raise UsageError(f"'{where or 'the whole'}' is {table!r}; allowed: a table of settings")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    prefix = f"{where}." if where else ""
    for name in table:
        if name not in fields:
            hint = did_you_mean(name, fields)
            raise UsageError(f"unknown key '{prefix}{name}'; allowed: {', '.join(fields)}.{hint}")
    for name, entry in fields.items():
        no_default = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if no_default and name not in table:
            raise UsageError(f"'{prefix}{name}' is missing; add it")
    return kind(**{name: _value(hints[name], value, prefix + name) for name, value in table.items()})


def _value(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return from_table(kind, value, where=where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in arguments:
            raise UsageError(f"'{where}' is {value!r}; allowed: {', '.join(map(str, arguments))}")
        return value
    if origin is types.UnionType:
        if value is None and type(None) in arguments:
            return None
        inner = [argument for argument in arguments if argument is not type(None)]
        return _value(next((kind for kind in inner if _fits(kind, value)), inner[0]), value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UsageError(f"'{where}' is {value!r}; allowed: a list")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            raise UsageError(f"'{where}' has {len(value)} entries; allowed: {len(kinds)}")
        return tuple(_value(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict:
        if not isinstance(value, dict):
            raise UsageError(f"'{where}' is {value!r}; allowed: a table")
        return {name: _value(arguments[1], inner, f"{where}.{name}") for name, inner in value.items()}
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise UsageError(f"'{where}' has {len(str(value))} digits; allowed: a value of type float") from error
    plain = typing.get_origin(kind) or kind
    if not isinstance(value, plain) or (plain is int and isinstance(value, bool)):
        raise UsageError(f"'{where}' is {value!r}; allowed: a value of type {plain.__name__}")
    return value


def _fits(kind: Any, value: Any) -> bool:
    """Tell whether a table has the names of a dataclass, for those that may be one of several."""
    return (
        dataclasses.is_dataclass(kind)
        and isinstance(value, dict)
        and value.keys() <= {entry.name for entry in dataclasses.fields(kind)}
    )


def to_table(config: Any) -> dict[str, Any]:
    """Return a dataclass as nested plain tables, ready for TOML or JSON.

    Args:
        config: any of the dataclasses above.

    Returns:
        Nested dictionaries; tuples become lists.
    """
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_table(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: the file.

    Returns:
        Its tables.

    Raises:
        UsageError: when the file is missing, unreadable or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the recipe {path}: {error}") from error
