"""What a command will cost, told before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trajmatch.config import DataConfig
from trajmatch.errors import DataError

if TYPE_CHECKING:
    from trajmatch.data import ImageDataset
    from trajmatch.experts import ExpertLibrary
    from trajmatch.pipeline.cost.done import Done
    from trajmatch.pipeline.cost.estimate import Cost
    from trajmatch.pipeline.cost.shape import Shape
    from trajmatch.pipeline.recipe import Recipe
    from trajmatch.runtime.resources import Resources


def say_cost(
    config: Recipe,
    shape: Shape,
    done: Done,
    resources: Resources,
    *,
    stages: Sequence[str] | None = None,
    compared: int | None = None,
) -> Cost:
    """Print what a run, or what is left of it, will cost; stages, compared: as `estimate` takes
    them (None: all of a run)."""
    from trajmatch.cli import shown
    from trajmatch.pipeline.cost import estimate as costs

    cost = costs.estimate(
        config,
        shape,
        done=done,
        resources=resources,
        stages=stages or costs.STAGES,
        compared=compared or costs.COMPARED,
    )
    for line in cost.lines():
        shown.say(line)
    return cost


def shape_of(config: Recipe, library: ExpertLibrary | None, resources: Resources) -> Shape:
    """Of the data, or of what is known of them where they are not there; refuses what a run with
    these experts (None: its own) would."""
    from trajmatch.pipeline.checks import require_library, require_recipe, require_sound
    from trajmatch.pipeline.cost.shape import Shape
    from trajmatch.pipeline.memory_needs import require_recipe_memory

    data = data_or_shape(config.data)
    if isinstance(data, Shape):
        require_recipe_memory(config, data, resources)
        require_sound(
            config.method,
            data.conditions(config),
            init=config.distill.init,
            evaluation=config.evaluate,
        )
        return data
    if library is not None:
        require_library(config, data, library)
    epochs = library.epochs if library else None
    require_recipe(config, data, epochs=epochs, resources=resources)
    return Shape.of(data)


def data_or_shape(config: DataConfig) -> ImageDataset | Shape:
    """The data, or where they are not there what is known of their shape; says so."""
    from trajmatch.cli import shown
    from trajmatch.pipeline.cost.shape import Shape

    try:
        return shown.load(config, cache="read")
    except DataError as error:
        known = Shape.known(config)
        if known is None:
            raise
        shown.say(f"data not found: {error}")
        return known
