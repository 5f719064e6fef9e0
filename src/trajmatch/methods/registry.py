"""The methods by name, and their settings from plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from trajmatch.config import DistillConfig, from_dict, to_dict
from trajmatch.errors import SettingError, suggest
from trajmatch.methods.base import Method
from trajmatch.methods.cafe import CAFE
from trajmatch.methods.dc import DC, DSA
from trajmatch.methods.dd import DD
from trajmatch.methods.dm import DM
from trajmatch.methods.kip import KIP
from trajmatch.methods.ld import LD
from trajmatch.methods.mtt import MTT
from trajmatch.plugins import Registry


def _is_method(entry: Any) -> bool:
    return isinstance(entry, type) and issubclass(entry, Method)


METHODS: Registry[type[Method]] = Registry("method", "trajmatch.methods", _is_method)
_RENAMED = {"window": "bptt_steps"}
for _method in (MTT, DM, DC, DSA, CAFE, DD, LD, KIP):
    METHODS.register(_method.name, _method)


def method_class(name: str) -> type[Method]:
    """The class of a method by name or `package.module:Name`; the latter is registered under its
    own name as well.

    Raises SettingError for an unknown name, and for a class that is no complete method or has the
    name of another one.
    """
    kind = METHODS.find(name)
    _require_complete(name, kind)
    if kind.name not in METHODS:
        METHODS.register(kind.name, kind)
    METHODS.require_own_name(kind.name, kind, name)
    return kind


def _require_complete(name: str, kind: type[Method]) -> None:
    """Refuse a class from outside that cannot be used as a method."""
    if "__dataclass_fields__" not in vars(kind):
        raise SettingError(f"{name} is not a dataclass; add @dataclass(frozen=True, kw_only=True)")
    if missing := sorted(getattr(kind, "__abstractmethods__", ())):
        raise SettingError(f"{name} does not define {', '.join(missing)}; see docs/extending.md")
    for attribute in ("name", "title", "objective"):
        if not isinstance(getattr(kind, attribute, None), str):
            raise SettingError(f"{name} has no {attribute}; give the class one, a text")


def setting_names(kind: type[Method] | type[DistillConfig]) -> list[str]:
    """The settings of a method's class, or of the outer loop."""
    return [field.name for field in dataclasses.fields(kind)]


def from_settings(values: Mapping[str, Any], where: str = "") -> tuple[DistillConfig, Method]:
    """The outer loop's settings and the method of one flat table, such as [distill] of a recipe:
    `method` names the method (default mtt), every other key is a setting of either.

    Raises SettingError for a key that is neither's, with the methods whose it is.
    """
    values = dict(values)
    kind = method_class(str(values.pop("method", MTT.name)))
    require_settings(kind, values, where)
    shared, own = setting_names(DistillConfig), setting_names(kind)
    loop = from_dict(DistillConfig, {k: v for k, v in values.items() if k in shared}, where)
    return loop, from_dict(kind, {k: v for k, v in values.items() if k in own}, where)


def require_settings(kind: type[Method], keys: Iterable[str], where: str = "") -> None:
    """Raises SettingError, with the methods whose it is, for a key that is neither a setting of
    `kind` nor of the outer loop."""
    known = {*setting_names(DistillConfig), *setting_names(kind)}
    for key in keys:
        if key not in known:
            raise SettingError(f"{where}{key} is no setting of {kind.name}; {_mend(key, kind)}")


def to_settings(config: DistillConfig, method: Method) -> dict[str, Any]:
    """The flat table that `from_settings` reads, as plain values."""
    return {"method": method.name, **to_dict(config), **to_dict(method)}


def renamed(key: str) -> str:
    """What a setting of an earlier version is called now; empty for any other word."""
    return _RENAMED.get(key, "")


def owners(key: str) -> list[str]:
    """The names of the methods that have a setting of this name."""
    return [
        name
        for name, kind in METHODS.items()
        if ":" not in name and key in setting_names(kind)  # not by its path once more
    ]


def _mend(key: str, kind: type[Method]) -> str:
    """What to do about a setting that `kind` does not have."""
    if now := renamed(key):
        whose = ", ".join(owners(now))
        return f"it is called {now} now, a setting of {whose}"
    others = owners(key)
    if others:
        which = f"of {', '.join(others)}"
        return f"it is a setting {which}: leave it out, or use method {others[0]}"
    return suggest(key, [*setting_names(DistillConfig), *setting_names(kind)])
