"""How the words of a command line become values, and what is said when they cannot."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import tyro
from tyro.constructors import PrimitiveConstructorSpec, PrimitiveTypeInfo

from trajmatch.config import NamedValue, NetworkConfig
from trajmatch.errors import SettingError, suggest

REGISTRY = tyro.constructors.ConstructorRegistry()

Reader = Callable[[str], Any]
"""From a word to a value; raises ValueError with what to say after the option's name."""


@REGISTRY.primitive_rule
def one_word(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """int, float, str, Path and choices, each with or without None. Other types are left to tyro.

    `none` is None for an optional number or choice. For a text it stays: see `flags.parse`.
    """
    options = get_args(info.type) if info.type_origin in (Union, UnionType) else (info.type,)
    kinds = [option for option in options if option is not NoneType]
    if len(kinds) != 1:
        return None
    (kind,) = kinds
    optional = NoneType in options
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if choices and all(isinstance(choice, str) for choice in choices):
        words = (*choices, "none") if optional and "none" not in choices else choices
        placeholder, read = f"{{{','.join(words)}}}", _choice(words, choices)
    elif kind in (int, float):
        word, wanted, convert = _NUMBERS[kind]
        placeholder = f"{word}|none" if optional else word
        read = _number(f"{wanted} or none" if optional else wanted, convert, optional)
    elif isinstance(kind, type) and issubclass(kind, NamedValue):
        placeholder, read = "NAME", _named(kind, optional)
    elif kind is Path:
        placeholder, read = "PATH", _path
    elif kind is str:
        placeholder, read = "TEXT", str
    else:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=placeholder,
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )


def _path(word: str) -> Path:
    if not word.strip():  # an unset variable of a shell, not the current folder
        raise ValueError(f"is '{word}'; give a path (. is the current folder)")
    return Path(word)


def _finite(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        raise ValueError
    return value


_NUMBERS: dict[Any, tuple[str, str, Reader]] = {
    int: ("INT", "a whole number", int),
    float: ("NUMBER", "a number", _finite),
}


def _number(wanted: str, convert: Reader, optional: bool) -> Reader:
    def read(word: str) -> Any:
        if optional and word.lower() == "none":
            return None
        try:
            return convert(word)
        except ValueError:
            raise ValueError(f"needs {wanted}, not '{word:.60}'") from None

    return read


def _named(kind: type[NamedValue], optional: bool) -> Reader:
    def read(word: str) -> NamedValue | None:
        if optional and word.lower() == "none":
            return None
        try:
            return kind.parse(word)
        except SettingError as error:
            raise ValueError(f"is refused: {error}") from None

    return read


def _choice(words: tuple[str, ...], choices: tuple[str, ...]) -> Reader:
    def read(word: str) -> str | None:
        word = word if word in words else word.lower()
        if word not in words:
            raise ValueError(f"is '{word}'; {suggest(word, words)}")
        return word if word in choices else None

    return read


def networks_of(words: str) -> list[NetworkConfig]:
    """Networks separated by commas, each a name, `resnet18` or `package.module:NAME`, or a name and
    a norm, `resnet18:batch`."""
    return [_network(word) for word in words.split(",") if word.strip()]


def _network(word: str) -> NetworkConfig:
    name, colon, norm = (part.strip() for part in word.partition(":"))
    if not name or (colon and not norm):
        raise SettingError(f"--networks has '{word.strip()}'; write NAME or NAME:NORM")
    from trajmatch.networks import NETWORKS
    from trajmatch.networks.norm import NORMS

    if colon and name not in NETWORKS and norm not in NORMS:
        attribute, _, norm = (part.strip() for part in norm.partition(":"))
        name = f"{name}:{attribute}"
    NETWORKS.find(name)
    return NetworkConfig(network=name, norm=norm or None)
