"""`trajmatch run`: everything from real images to a page, as a recipe says or within a budget."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from trajmatch.cli.cost import say_cost, shape_of
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
from trajmatch.errors import MissingExtraError, SettingError

if TYPE_CHECKING:
    from trajmatch.experts import ExpertLibrary
    from trajmatch.pipeline.cost.estimate import Cost
    from trajmatch.pipeline.cost.shape import Shape
    from trajmatch.pipeline.recipe import Recipe
    from trajmatch.runtime.resources import Resources


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipeFlags(Common):
    """Flags of commands that take all settings from a recipe."""

    recipe: Annotated[Positional[str | None], tyro.conf.arg(metavar="RECIPE")]
    """Name of a recipe, or a file that ends in .toml."""
    data: Flat[DataConfig] = DataConfig()
    network: Flat[NetworkConfig] = NetworkConfig()
    library: Annotated[Path | None, tyro.conf.arg(name="experts")] = None
    """Library to match, from `trajmatch experts`, which is not written to: its network and
    whitening are used, and all its experts or the first --experts.experts. None: experts are
    trained in OUT."""
    experts: ExpertConfig = ExpertConfig()
    method: str = "mtt"
    """As for `trajmatch distill`, or a name that the recipe's tables [methods.NAME] give."""
    settings: Flat[MethodSettings] = MethodSettings()
    distill: Flat[DistillConfig] = DistillConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @classmethod
    def base(cls, arguments: Sequence[str]) -> dict[str, Any]:
        """The recipe's settings, for the method that the line names, and a folder in runs/."""
        word = first_word(cls, arguments)
        if word is None:
            return {}
        from trajmatch.pipeline.recipe import load_recipe

        recipe, folder = load_recipe(word), Path(word).stem
        library = _library(value_of("--experts", arguments))
        if library is not None:
            recipe = recipe.with_library(library)
        named = value_of("--method", arguments)
        if named not in (None, recipe.method.name):
            assert named is not None
            folder = f"{folder}-{named.rpartition(':')[2]}"
            if library is None and not recipe.by(named).method.needs_experts:
                few = min(recipe.experts.experts, recipe.evaluate.n)
                experts = dataclasses.replace(recipe.experts, experts=few)
                recipe = dataclasses.replace(recipe, experts=experts)
        values = settings_of(cls, recipe, arguments)
        return {**values, "out": Path("runs") / folder}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(RecipeFlags):
    """Train experts, distill, test the result beside random and herding images, and draw the page.

    With --data of your own and no RECIPE, settings follow from the images, the experts and this
    machine, and the job takes about --budget; it says what it decided and why (in OUT/plan.json).

    With a RECIPE (`trajmatch recipes` lists them) or a TOML file of your own, settings are those.
    --method NAME takes what the recipe's table [methods.NAME] changes, where it has one. A method
    that matches no experts has --evaluate.n of the recipe trained, unless --experts.experts says
    how many: herding needs them, and their accuracy stands beside. It begins with what it will cost
    on this machine.

    Options given here win in both cases. --dry-run stops before the experts. Run the same command
    again to continue a killed run.
    """

    recipe: Annotated[Positional[str | None], tyro.conf.arg(metavar="[RECIPE]")] = None
    """Name of a recipe, or a file that ends in .toml. None: planned for --data and --budget."""
    budget: str | None = None
    """Time for the whole job where no RECIPE is given, such as 90s, 20m or 1h30m; it is measured
    and watched, and kept to about a tenth. None: 20m."""
    out: Path = Path("runs/RECIPE")
    """Folder of the run; runs/RECIPE-METHOD for another method than the recipe's, runs/DATA without
    a recipe."""
    test: bool = True
    """Test the best set once, beside random and herding images. --no-test looks at no test image:
    for choosing settings, the set is evaluated on validation images alone; the same command without
    it tests the set then chosen. (Experts record their own test accuracy when they are trained.)"""
    workers: int | None = None
    """Processes that train experts, one thread each. None: one per core on the CPU, one on a GPU.
    """
    threads: int | None = None
    """Threads of the distillation on a CPU. None: one for small work, else one per core; a run that
    is continued keeps its number, as the last bits depend on it."""
    track: Literal["none", "tensorboard", "wandb"] = "none"
    """Where numbers go beside OUT/log.jsonl."""
    dry_run: bool = False
    """Say what it will cost in time, disk and memory, and whether the disk has room (without a
    RECIPE: what is planned), and stop. Nothing is written to OUT."""
    given: tyro.conf.Suppress[tuple[str, ...]] = ()
    """The settings on the line, such as `experts.batch`, where no recipe is; filled by `base`."""

    @classmethod
    def base(cls, arguments: Sequence[str]) -> dict[str, Any]:
        """The recipe's settings, or without one which the line gives."""
        if first_word(cls, arguments) is not None:
            return super().base(arguments)
        from trajmatch.cli import within

        return within.base(arguments)


def run(flags: Flags) -> None:
    from trajmatch.runtime.resources import Resources
    from trajmatch.storage import require_tracker

    if flags.recipe is None and flags.config is None:
        from trajmatch.cli import within

        within.run(flags)
        return
    if flags.budget is not None:
        raise SettingError(
            f"--budget is {flags.budget} and the recipe {flags.recipe} says how long to run; leave "
            "one of them out"
        )
    config, recipe, library = recipe_of(flags, "run")
    resources = Resources(pick_device(flags.device), flags.workers, flags.threads)
    require_tracker(flags.track)
    _say_method(config, recipe, flags.method, library)
    if flags.dry_run:
        shape = shape_of(config, library, resources)
        _say_cost(config, shape, flags.out, library, resources, test=flags.test)
    else:
        carry_out(config, flags.out, resources, library, track=flags.track, test=flags.test)


def recipe_of(flags: RecipeFlags, command: str) -> tuple[Recipe, Recipe, ExpertLibrary | None]:
    """The recipe with what was given on the line, as its file has it, and the library of --experts.

    Raises SettingError for settings that contradict each other, before data are loaded.
    """
    from trajmatch.pipeline.checks import require_augmentations
    from trajmatch.pipeline.recipe import load_recipe

    if flags.config is not None:
        raise SettingError(
            f"{command} takes its settings from RECIPE, and --config is {flags.config} as well; "
            f"give one of them: trajmatch {command} {shlex.quote(str(flags.config))}"
        )
    assert flags.recipe is not None
    recipe = load_recipe(flags.recipe)
    config = with_flags(recipe, flags)
    library = _library(flags.library)
    if library is not None:
        _require_as_trained(config, recipe.with_library(library), library)
    require_augmentations(config.experts.augment, config.evaluate.augment)
    return config, recipe, library


def _library(place: Path | str | None) -> ExpertLibrary | None:
    """The library of --experts; None where it is not given. Refuses one without experts."""
    if place is None:
        return None
    from trajmatch.experts import ExpertLibrary
    from trajmatch.pipeline.checks import require_experts

    library = ExpertLibrary.open(place)
    require_experts(library)
    return library


def _require_as_trained(config: Recipe, trained: Recipe, library: ExpertLibrary) -> None:
    """Refuse options of the line that say how experts are trained, where there are experts."""
    for field in dataclasses.fields(ExpertConfig):
        value, theirs = (getattr(one.experts, field.name) for one in (config, trained))
        if field.name != "experts" and value != theirs:
            flag = f"--experts.{field.name.replace('_', '-')}"
            raise SettingError(
                f"{flag} is {value} and the experts in {library.path} are trained already, with "
                f"{theirs}; leave {flag} out, or leave --experts out to train others"
            )


def with_flags(recipe: Recipe, flags: RecipeFlags) -> Recipe:
    """The recipe with what was given on the line. What is published holds for the recipe alone."""
    parts = ("data", "network", "experts", "distill", "evaluate")
    changes = {name: getattr(flags, name) for name in parts}
    method: Any = flags.settings  # of the method's class: see flags.MethodSettings
    config = dataclasses.replace(recipe, **changes, method=method)
    here = dataclasses.replace(config.data, data_root=recipe.data.data_root)
    if dataclasses.replace(config, data=here) != recipe:
        config = dataclasses.replace(config, about="", published=PublishedConfig())
    return dataclasses.replace(config, seed=flags.seed)


def _say_method(config: Recipe, recipe: Recipe, name: str, library: ExpertLibrary | None) -> None:
    """Print what a person may not expect of another method than the recipe's."""
    from trajmatch.cli import shown

    method = config.method
    if name != recipe.method.name and name not in recipe.methods:
        shown.say(
            f"the recipe has no [methods.{name}]: what is not given here has {method.name}'s own "
            f"defaults, and {config.distill.iterations:,} iterations; see docs/methods.md"
        )
    if not method.needs_experts and library is None:
        shown.say(
            f"{method.name} matches no experts; {config.experts.experts} are trained for herding "
            "and to compare with"
        )


def carry_out(
    config: Recipe,
    out: Path,
    resources: Resources,
    library: ExpertLibrary | None = None,
    *,
    track: str = "none",
    test: bool = True,
) -> None:
    """Run `config` into `out`, with its cost, its progress, its table and its page.

    library: experts that are there; None: they are trained in `out`.
    """
    import time

    from trajmatch import pipeline
    from trajmatch.cli import shown
    from trajmatch.pipeline.checks import require_library, require_recipe
    from trajmatch.pipeline.cost.shape import Shape

    began = time.perf_counter()
    shown.warn_without_page()
    data = shown.load(config.data)
    if library is not None:
        require_library(config, data, library)
    epochs = library.epochs if library else None
    require_recipe(config, data, epochs=epochs, out=out, resources=resources)
    _say_cost(config, Shape.of(data), out, library, resources, test=test).require_room()
    with shown.progress_of(out, track=track) as progress:
        result = pipeline.run(
            config,
            out,
            experts=library,
            data=data,
            test=test,
            resources=resources,
            progress=progress,
        )
    say_result(result, out, began, config.published)


def say_result(
    result: dict[str, Any],
    out: Path,
    began: float,
    published: PublishedConfig = PublishedConfig(),
) -> None:
    """Print the scores of a run and what keeps it from better, and draw its page.

    began: when the command began, by `time.perf_counter`.
    """
    import time

    from trajmatch.cli import shown
    from trajmatch.pipeline.checks import left_out_words
    from trajmatch.report import write_report
    from trajmatch.storage.results import Score

    scores = [Score.from_json(score) for score in result["scores"]]
    shown.table(scores)
    for line in left_out_words(result.get("left_out", {})):
        print(line)
    if all(score.split != "test" for score in scores):
        shown.say(shown.untested(out))
    elif published.accuracy is not None:
        print(f"published for these settings: {published.accuracy} % ({published.source})")
    shown.findings(out)
    try:
        page = f"the page: {write_report(out)}"
    except MissingExtraError as error:  # hours of work are done and lie in the folder
        page = f"no page: {error}; then `trajmatch report {shlex.quote(str(out))}`"
    print(f"done in {time.perf_counter() - began:.0f} s; {page}")


def _say_cost(
    config: Recipe,
    shape: Shape,
    out: Path,
    library: ExpertLibrary | None,
    resources: Resources,
    *,
    test: bool,
) -> Cost:
    """Print what the run, or what is left of it in `out`, will cost."""
    from trajmatch.pipeline.cost.done import Done

    done = Done.of(out, config)
    if library is not None:
        done = dataclasses.replace(done, experts=config.experts.experts, room=None)
    return say_cost(config, shape, done, resources, compared=None if test else 1)
