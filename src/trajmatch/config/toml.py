"""Settings as plain values: read from TOML or JSON with checks, written as JSON or TOML."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from trajmatch.config.named import NamedValue
from trajmatch.config.ranges import shown
from trajmatch.errors import SettingError, suggest

C = TypeVar("C")


def from_dict(kind: type[C], values: Mapping[str, Any], where: str = "") -> C:
    """Build a config from plain values (TOML or JSON); nested tables become nested configs.

    Raises SettingError for an unknown key (with the nearest known one) or a value of a wrong type.
    """
    hints = get_type_hints(kind)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            raise SettingError(f"unknown setting '{where}{key}'; {suggest(key, hints)}")
        hint = hints[key]
        if get_origin(hint) is Mapping:
            arguments[key] = _tables(value, f"{where}{key}")
        elif (named := _family(hint)) and not (value is None and named is not hint):
            arguments[key] = _named(value, named, f"{where}{key}")
        elif dataclasses.is_dataclass(hint) and isinstance(hint, type):
            arguments[key] = from_dict(hint, table_of(value, f"{where}{key}"), f"{where}{key}.")
        else:
            arguments[key] = _typed(value, hint, f"{where}{key}")
    return kind(**arguments)


def _family(hint: Any) -> type[NamedValue] | None:
    """The family of named values that a field's type is, or is beside None."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    found = [o for o in options if isinstance(o, type) and issubclass(o, NamedValue)]
    return found[0] if found else None


def _named(value: Any, hint: type[NamedValue], name: str) -> NamedValue:
    """A named value, from its written form or from a table {name = ..., key = ...}."""
    try:
        if isinstance(value, hint):
            return value
        if isinstance(value, str):
            return hint.parse(value)
        options = dict(table_of(value, name))
        return hint.of(str(options.pop("name", "")), options)
    except SettingError as error:
        raise SettingError(f"{name}: {error}") from error


def table_of(value: Any, name: str) -> Mapping[str, Any]:
    """`value`, which must be a table. Raises SettingError with its name for anything else."""
    if not isinstance(value, Mapping):
        raise SettingError(f"'{name}' is a table of settings, not {value!r}")
    return value


def _tables(value: Any, name: str) -> dict[str, Mapping[str, Any]]:
    """Tables by name, whose entries are checked where it is known what they set."""
    return {key: table_of(part, f"{name}.{key}") for key, part in table_of(value, name).items()}


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values for JSON, nested as the config is; named values in their written form."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if isinstance(value, NamedValue):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return value


def to_toml(values: Mapping[str, Any]) -> str:
    """Plain values as the text of a TOML file, which `tomllib.loads` reads back to equal values.

    Nested mappings become tables. TOML has no None: raises TypeError for one, and for any other
    value that is no text, number, truth value, list or mapping.

    Examples:
        >>> print(to_toml({"name": "own", "distill": {"lr_img": 0.03, "ipc": 1}}), end="")
        name = "own"
        <BLANKLINE>
        [distill]
        lr_img = 0.03
        ipc = 1
    """
    return "\n".join(_table_lines(values, ())).strip("\n") + "\n"


def _table_lines(values: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    plain = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    inner = {key: value for key, value in values.items() if isinstance(value, Mapping)}
    lines = ["", f"[{'.'.join(map(_toml_key, path))}]"] if path and (plain or not inner) else []
    lines += [f"{_toml_key(key)} = {_toml_value(value)}" for key, value in plain.items()]
    for key, value in inner.items():
        lines += _table_lines(value, (*path, key))
    return lines


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):  # JSON's escapes are TOML's, but for DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, Mapping):
        pairs = (f"{_toml_key(key)} = {_toml_value(one)}" for key, one in value.items())
        return f"{{ {', '.join(pairs)} }}"
    raise TypeError(f"{value!r} has no form in TOML")


def read_toml(path: Path, build: Callable[[Mapping[str, Any]], C]) -> C:
    """`build` of the tables of a TOML file. SettingError names the file and what is wrong in it."""
    try:
        # utf-8-sig: with or without the byte-order mark that some editors write.
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise SettingError(
            f"cannot read settings from {path}: its tables or lists are nested too deeply"
        ) from error
    except (OSError, ValueError) as error:
        # ValueError: no UTF-8, no TOML, or a number of thousands of digits.
        raise SettingError(f"cannot read settings from {path}: {error}") from error
    try:
        return build(values)
    except SettingError as error:
        raise SettingError(f"{path}: {error}") from error


def _typed(value: Any, hint: Any, name: str) -> Any:
    """Check one plain value against a field's type; whole numbers pass for floats."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:  # TOML's range, too
        raise SettingError(f"{name} is {shown(value)}; a whole number must fit in 64 bits")
    for option in options:
        if get_origin(option) is Literal:
            if value in get_args(option):
                return value
        elif option is NoneType:
            if value is None:
                return None
        elif option is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)  # of a whole number with few enough bits: checked above
        elif isinstance(option, type) and type(value) is option:
            return value
    literals = [c for o in options if get_origin(o) is Literal for c in get_args(o)]
    if literals and isinstance(value, str):
        raise SettingError(f"{name} is '{value}'; {suggest(value, literals)}")
    wanted = " or ".join(getattr(o, "__name__", str(o)) for o in options).replace(
        "NoneType", "none"
    )
    raise SettingError(f"{name} is {shown(value)}; it must be {wanted}")
