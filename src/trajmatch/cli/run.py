"""`trajmatch run`: everything from real images to a page, as a recipe says."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from trajmatch.cli.flags import (
    Common,
    Flat,
    MethodSettings,
    Positional,
    first_word,
    pick_device,
    settings_of,
    value_of,
)
from trajmatch.config import (
    DataConfig,
    DistillConfig,
    EvaluateConfig,
    ExpertConfig,
    NetworkConfig,
    PublishedConfig,
)
from trajmatch.errors import DataError, MissingExtraError, SettingError

if TYPE_CHECKING:
    from trajmatch.pipeline.cost.estimate import Cost
    from trajmatch.pipeline.cost.shape import Shape
    from trajmatch.pipeline.recipe import Recipe
    from trajmatch.runtime.resources import Resources


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """Train experts, distill, test the result beside random and herding images, and draw the page,
    with the settings of a recipe (`trajmatch recipes` lists them) or of a TOML file of your own.
    Options given here win over it; with --data it runs on any data set. --method NAME takes what
    the recipe's table [methods.NAME] changes, where it has one. A method that matches no experts
    has --evaluate.n of the recipe trained, unless --experts.experts says how many: herding and the
    accuracy of the full data come from them.

    It begins with what it will cost on this machine; --dry-run stops there. Run the same command
    again to continue a killed run.
    """

    recipe: Annotated[Positional[str], tyro.conf.arg(metavar="RECIPE")]
    """Name of a recipe, or a file that ends in .toml."""
    out: Path = Path("runs/RECIPE")
    """Folder of the run; runs/RECIPE-METHOD for another method than the recipe's."""
    data: Flat[DataConfig] = DataConfig()
    network: Flat[NetworkConfig] = NetworkConfig()
    experts: ExpertConfig = ExpertConfig()
    method: str = "mtt"
    """As for `trajmatch distill`, or a name that the recipe's tables [methods.NAME] give."""
    settings: Flat[MethodSettings] = MethodSettings()
    distill: Flat[DistillConfig] = DistillConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    workers: int | None = None
    """Processes that train experts, one thread each. None: one per core on the CPU, one on a GPU.
    """
    threads: int | None = None
    """Threads of the distillation on a CPU. None: one for small work, else one per core; a run that
    is continued keeps its number, as the last bits depend on it."""
    track: Literal["none", "tensorboard", "wandb"] = "none"
    """Where numbers go beside OUT/log.jsonl."""
    dry_run: bool = False
    """Say what it will cost in time, disk and memory, and whether the disk has room, and stop.
    Nothing is written to OUT."""

    @classmethod
    def base(cls, arguments: Sequence[str]) -> dict[str, Any]:
        """The recipe's settings, for the method that the line names."""
        word = first_word(cls, arguments)
        if word is None:
            return {}
        from trajmatch.pipeline.recipe import load_recipe

        recipe, folder = load_recipe(word), Path(word).stem
        named = value_of("--method", arguments)
        if named not in (None, recipe.method.name):
            assert named is not None
            folder = f"{folder}-{named.rpartition(':')[2]}"
            if not recipe.by(named).method.needs_experts:
                few = min(recipe.experts.experts, recipe.evaluate.n)
                experts = dataclasses.replace(recipe.experts, experts=few)
                recipe = dataclasses.replace(recipe, experts=experts)
        values = settings_of(cls, recipe, arguments)
        return {**values, "out": Path("runs") / folder}


def run(flags: Flags) -> None:
    from trajmatch.pipeline.recipe import load_recipe
    from trajmatch.runtime.resources import Resources

    if flags.config is not None:
        raise SettingError(
            f"run takes its settings from RECIPE, and --config is {flags.config} as well; give one "
            f"of them: trajmatch run {flags.config}"
        )
    recipe = load_recipe(flags.recipe)
    config = with_flags(recipe, flags)
    resources = Resources(pick_device(flags.device), flags.workers, flags.threads)
    _say_method(config, recipe, flags.method)
    if flags.dry_run:
        say_cost(config, _shape(config), flags.out, resources)
    else:
        carry_out(config, flags.out, resources, track=flags.track)


def with_flags(recipe: Recipe, flags: Flags) -> Recipe:
    """The recipe with what was given on the line. What is published holds for the recipe alone."""
    parts = ("data", "network", "experts", "distill", "evaluate")
    changes = {name: getattr(flags, name) for name in parts}
    method: Any = flags.settings  # of the method's class: see flags.MethodSettings
    config = dataclasses.replace(recipe, **changes, method=method)
    here = dataclasses.replace(config.data, data_root=recipe.data.data_root)
    if dataclasses.replace(config, data=here) != recipe:
        config = dataclasses.replace(config, about="", published=PublishedConfig())
    return dataclasses.replace(config, seed=flags.seed)


def _say_method(config: Recipe, recipe: Recipe, name: str) -> None:
    """Print what a person may not expect of another method than the recipe's."""
    from trajmatch.cli import shown

    method = config.method
    if name != recipe.method.name and name not in recipe.methods:
        shown.say(
            f"the recipe has no [methods.{name}]: what is not given here has {method.name}'s own "
            f"defaults, and {config.distill.iterations:,} iterations; see docs/methods.md"
        )
    if not method.needs_experts:
        shown.say(
            f"{method.name} matches no experts; {config.experts.experts} are trained for herding "
            "and the full data's accuracy"
        )


def carry_out(config: Recipe, out: Path, resources: Resources, *, track: str = "none") -> None:
    """Run `config` into `out`, with its cost, its progress, its table and its page."""
    import time

    from trajmatch import pipeline
    from trajmatch.cli import shown
    from trajmatch.pipeline.checks import require_recipe
    from trajmatch.pipeline.cost.shape import Shape
    from trajmatch.report import write_report

    began = time.perf_counter()
    data = shown.load(config.data)
    require_recipe(config, data)
    say_cost(config, Shape.of(data), out, resources).require_room()
    with shown.progress_of(out, track=track) as progress:
        result = pipeline.run(
            config,
            out,
            data=data,
            resources=resources,
            progress=progress,
        )
    shown.records(result["scores"])
    if config.published.accuracy is not None:
        print(f"published for these settings: {config.published.accuracy} % "
              f"({config.published.source})")  # fmt: skip
    try:
        page = f"the page: {write_report(out)}"
    except MissingExtraError as error:  # hours of work are done and lie in the folder
        page = f"no page: {error}; then `trajmatch report {out}`"
    print(f"done in {time.perf_counter() - began:.0f} s; {page}")


def say_cost(config: Recipe, shape: Shape, out: Path, resources: Resources) -> Cost:
    """Print what the run, or what is left of it in `out`, will cost."""
    from trajmatch.cli import shown
    from trajmatch.pipeline.cost.done import Done
    from trajmatch.pipeline.cost.estimate import estimate

    cost = estimate(config, shape, done=Done.of(out, config), resources=resources)
    for line in cost.lines():
        shown.say(line)
    return cost


def _shape(config: Recipe) -> Shape:
    """Of the data, or of what is known of them where they are not there; refuses as a run would."""
    from trajmatch.cli import shown
    from trajmatch.pipeline.checks import require_recipe, require_sound
    from trajmatch.pipeline.cost.shape import Shape

    try:
        data = shown.load(config.data)
    except DataError as error:
        known = Shape.known(config.data)
        if known is None:
            raise
        shown.say(f"data not found: {error}")
        require_sound(
            config.method,
            known.conditions(config),
            init=config.distill.init,
            evaluation=config.evaluate,
        )
        return known
    require_recipe(config, data)
    return Shape.of(data)
