"""`trajmatch recipes`: the settings that ship with the package, as a list or as TOML."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import tyro

from trajmatch.cli.flags import Common, Positional
from trajmatch.config.recipes import recipe_names, recipe_text

if TYPE_CHECKING:
    from trajmatch.pipeline.recipe import Recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """List the recipes, each everything that `trajmatch run` needs; or print the one named, as the
    TOML file it is: save it, edit it, and give the file to `trajmatch run`.

    The published accuracy is what the authors report for these settings, in percent.
    """

    name: Annotated[Positional[str | None], tyro.conf.arg(metavar="RECIPE")] = None
    """Recipe to print. None: list all."""


def run(flags: Flags) -> None:
    if flags.name is not None:
        print(recipe_text(flags.name), end="")
        return
    from trajmatch.pipeline.recipe import load_recipe

    rows = [_row(name, load_recipe(name)) for name in recipe_names()]
    rows.insert(0, ("recipe", "data", "network", "ipc", "published", "about"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    print("\n`trajmatch run RECIPE` carries one out; with --dry-run it only says what that costs")


def _row(name: str, recipe: Recipe) -> tuple[str, ...]:
    data, network = recipe.data, recipe.network
    options = (f"{option}={value}" for option, value in network.options().items())
    accuracy = recipe.published.accuracy
    return (
        name,
        f"{data.data} {data.size} px" if data.size else data.data,
        " ".join([network.network or "convnet", *options]),
        str(recipe.distill.ipc),
        "" if accuracy is None else f"{accuracy:.1f}",
        recipe.about,
    )
