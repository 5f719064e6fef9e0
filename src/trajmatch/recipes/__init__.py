"""Published and measured settings as data: one TOML file each."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from trajmatch.config import RunConfig, read_toml
from trajmatch.errors import SettingError, suggest


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    found = (Path(str(entry)) for entry in files(__name__).iterdir())
    return sorted(path.stem for path in found if path.suffix == ".toml")


def load_recipe(name: str) -> RunConfig:
    """A recipe by name, or a TOML file of your own by path."""
    if name.endswith(".toml"):
        return read_toml(Path(name), RunConfig)
    if name not in recipe_names():
        raise SettingError(f"unknown recipe '{name}'; {suggest(name, recipe_names())}")
    return read_toml(Path(str(files(__name__) / f"{name}.toml")), RunConfig)
