"""Published and measured settings as data: one TOML file each."""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path

from trajmatch.errors import SettingError


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    found = (Path(str(entry)) for entry in files(__name__).iterdir())
    return sorted(path.stem for path in found if path.suffix == ".toml")


def recipe_path(name: str) -> Path:
    """The file of a recipe by name, or a TOML file of your own by path (it ends in .toml)."""
    if name.endswith(".toml"):
        return Path(name)
    if name not in recipe_names():
        close = difflib.get_close_matches(name.lower(), recipe_names(), n=1, cutoff=0.6)
        hint = f"did you mean '{close[0]}'? " if close else ""
        raise SettingError(
            f"unknown recipe '{name}'; {hint}`trajmatch recipes` lists them; or give a file of "
            "your own, FILE.toml"
        )
    return Path(str(files(__name__) / f"{name}.toml"))


def recipe_text(name: str) -> str:
    """The file's text, to be saved and edited."""
    path = recipe_path(name)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"cannot read settings from {path}: {error}") from error
