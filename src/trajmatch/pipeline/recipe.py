"""A recipe: all settings of a run, from real images to a page."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from trajmatch.config import (
    DataConfig,
    DistillConfig,
    EvaluateConfig,
    ExpertConfig,
    NetworkConfig,
    PublishedConfig,
    check_ranges,
    from_dict,
    read_toml,
    table_of,
    to_dict,
    to_toml,
)
from trajmatch.config.recipes import recipe_path
from trajmatch.errors import SettingError, suggest
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import MTT, Method, from_settings, to_settings
from trajmatch.methods.registry import method_class, require_settings, setting_names


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything from real images to a page.

    In TOML the settings of the outer loop and of the method are one table, [distill], whose
    `method` names the method. [methods.NAME] holds what changes where another method is given,
    [methods.NAME.ipc10] the same for ten images per class alone; a table of another name gives its
    own `method`.
    """

    name: str = "digits"
    about: str = ""
    """One line for the list of recipes."""
    seed: int = 0
    published: PublishedConfig = PublishedConfig()
    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    experts: ExpertConfig = ExpertConfig()
    distill: DistillConfig = DistillConfig()
    method: Method = MTT()
    evaluate: EvaluateConfig = EvaluateConfig()
    methods: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_ranges(self)
        for name, table in self.methods.items():
            self._changed(name, None)
            for key in table:
                if ipc := re.fullmatch(r"ipc(\d+)", key):
                    self._changed(name, int(ipc[1]))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """From plain values, as TOML has them. Raises SettingError for what does not fit."""
        known = [field.name for field in dataclasses.fields(cls) if field.name != "method"]
        for key in values:
            if key not in known:
                raise SettingError(f"unknown setting '{key}'; {suggest(key, known)}")
        distill, method = from_settings(table_of(values.get("distill", {}), "distill"), "distill.")
        rest = {name: value for name, value in values.items() if name != "distill"}
        plain = from_dict(_Tables, rest)
        parts = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
        return cls(**parts, distill=distill, method=method)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, in the form that `from_dict` reads."""
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("distill", "method")
        }
        plain = to_dict(_Tables(**values))
        return {**plain, "distill": to_settings(self.distill, self.method)}

    def to_toml(self) -> str:
        """The text of a file that `load_recipe` reads as an equal recipe, but for settings without
        a value whose default has one (no augmentation): these read "none", which is as much.

        A method from outside of the package is named by `package.module:Name`.
        """
        kinds = {field.name: type(getattr(self, field.name)) for field in dataclasses.fields(self)}
        written: dict[str, Any] = {}
        for name, value in self.to_dict().items():
            if isinstance(value, dict) and name != "methods":
                parts = (DistillConfig, kinds["method"]) if name == "distill" else (kinds[name],)
                valued = {
                    field.name
                    for part in parts
                    for field in dataclasses.fields(part)
                    if field.default is not None
                }
                value = {
                    key: "none" if one is None else one
                    for key, one in value.items()
                    if one is not None or key in valued
                }
            if value != {}:
                written[name] = value
        written["distill"]["method"] = _method_word(kinds["method"])
        return to_toml(written)

    def by(self, name: str, *, ipc: int | None = None) -> Recipe:
        """This recipe with the method of table or name `name`, for so many images per class.

        Settings of the outer loop carry over. Those of the method do where it is the recipe's own;
        another method begins with its own defaults. Raises SettingError for unknown settings.
        """
        distill, method = self._changed(name, ipc)
        return dataclasses.replace(self, distill=distill, method=method)

    def _changed(self, name: str, ipc: int | None) -> tuple[DistillConfig, Method]:
        table = self.methods.get(name, {})
        kind = self._method_class(name)
        ipc = ipc or table.get("ipc") or self.distill.ipc
        few = dict(table_of(table.get(f"ipc{ipc}", {}), f"methods.{name}.ipc{ipc}"))
        own = {key: value for key, value in table.items() if not re.fullmatch(r"ipc\d+", key)}
        require_settings(kind, few, f"methods.{name}.ipc{ipc}.")
        base = to_dict(self.distill)
        if kind is type(self.method):
            base |= to_dict(self.method)
        changed = {**base, **own, **few, "ipc": ipc, "method": kind.name}
        return from_settings(changed, f"methods.{name}.")

    def _method_class(self, name: str) -> type[Method]:
        """The method of a table or name. SettingError names the table where it has no method."""
        table = self.methods.get(name)
        if table is None:
            return method_class(name)
        try:
            return method_class(str(table.get("method", name)))
        except SettingError as error:
            given = "" if "method" in table else f'; give it one, such as method = "{MTT.name}"'
            raise SettingError(f"methods.{name}: {error}{given}") from error

    def with_library(self, library: ExpertLibrary) -> Recipe:
        """With the network, the whitening and all experts of a library in the place of its own."""
        known = {field.name for field in dataclasses.fields(NetworkConfig)} - {"network"}
        options = {key: value for key, value in library.spec.options.items() if key in known}
        whitening: Any = library.whitening.name
        return dataclasses.replace(
            self,
            data=dataclasses.replace(self.data, whitening=whitening),
            network=NetworkConfig(network=library.spec.name, **options),
            experts=dataclasses.replace(library.settings, experts=len(library.experts)),
        )

    def with_method(self, **changes: Any) -> Recipe:
        """With other settings of the method or of the outer loop.

        Raises SettingError for one that neither has.
        """
        shared, own = setting_names(DistillConfig), setting_names(type(self.method))
        require_settings(type(self.method), changes)
        loop = {key: value for key, value in changes.items() if key in shared}
        mine = {key: value for key, value in changes.items() if key in own}
        return dataclasses.replace(
            self,
            distill=dataclasses.replace(self.distill, **loop),
            method=dataclasses.replace(self.method, **mine),
        )


def _method_word(kind: type[Method]) -> str:
    """A name by which another process finds the method."""
    if kind.__module__.partition(".")[0] == "trajmatch":
        return kind.name
    return f"{kind.__module__}:{kind.__qualname__}"


@dataclasses.dataclass(frozen=True)
class _Tables:
    """The parts of a recipe that are one settings class each."""

    name: str = "digits"
    about: str = ""
    seed: int = 0
    published: PublishedConfig = PublishedConfig()
    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    experts: ExpertConfig = ExpertConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    methods: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


def load_recipe(name: str) -> Recipe:
    """A recipe that ships with the package by name, or a TOML file of your own by path.

    Raises SettingError for an unknown name and for anything wrong in the file.
    """
    return read_toml(recipe_path(name), Recipe.from_dict)
