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
    Positional,
    _value_of,
    first_word,
    pick_device,
    settings_of,
)
from trajmatch.config import (
    DataConfig,
    DistillConfig,
    EvaluateConfig,
    ExpertConfig,
    NetworkConfig,
    PublishedConfig,
    RunConfig,
)
from trajmatch.config.recipes import load_recipe
from trajmatch.errors import DataError, MissingExtraError, SettingError

if TYPE_CHECKING:
    from trajmatch.data import ImageDataset
    from trajmatch.pipeline.cost.estimate import Cost, Shape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Common):
    """Train experts, distill, test the result beside random and herding images, and draw the page,
    with the settings of a recipe (`trajmatch recipes` lists them) or of a TOML file of your own.
    Options given here win over it; with --data it runs on any data set. --method NAME takes what
    the recipe's table [methods.NAME] changes, where it has one. A method that matches no experts
    has as many trained as networks judge (--evaluate.n of the recipe), unless --experts.experts
    says how many: herding and the accuracy of the full data come from them.

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
    distill: Flat[DistillConfig] = DistillConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    workers: int | None = None
    """Processes that train experts, one thread each. None: one per core on the CPU, one on a GPU.
    """
    threads: int | None = None
    """Threads of the student's walk on a CPU. None: one for small work, else one per core."""
    track: Literal["none", "tensorboard", "wandb"] = "none"
    """Where numbers go beside OUT/log.jsonl."""
    dry_run: bool = False
    """Say what it will cost in time, disk and memory, and whether the disk has room, and stop.
    Nothing is written to OUT."""

    @classmethod
    def base(cls, arguments: Sequence[str]) -> dict[str, Any]:
        """The recipe's settings, for the method asked for."""
        word = first_word(cls, arguments)
        if word is None:
            return {}
        recipe, folder = load_recipe(word), Path(word).stem
        asked = _value_of("--method", arguments)
        if asked not in (None, recipe.distill.method):
            from trajmatch.methods import method_class

            folder = f"{folder}-{asked}"
            if not method_class(recipe.by(asked).method).needs_experts:
                few = min(recipe.experts.experts, recipe.evaluate.n)
                experts = dataclasses.replace(recipe.experts, experts=few)
                recipe = dataclasses.replace(recipe, experts=experts)
        values = settings_of(cls, recipe, arguments)
        return {**values, "out": Path("runs") / folder}


def run(flags: Flags) -> None:
    if flags.config is not None:
        raise SettingError(
            f"run takes its settings from RECIPE, and --config is {flags.config} as well; give one "
            f"of them: trajmatch run {flags.config}"
        )
    config = settings(flags)
    device = pick_device(flags.device)
    _tell_method(config, load_recipe(flags.recipe), flags.distill.method)
    if flags.dry_run:
        tell_cost(
            config,
            _shape(config),
            flags.out,
            device=device,
            workers=flags.workers,
            threads=flags.threads,
        )
    else:
        carry_out(
            config,
            flags.out,
            device=device,
            workers=flags.workers,
            threads=flags.threads,
            tracker=flags.track,
        )


def settings(flags: Flags) -> RunConfig:
    """The recipe with what was given on the line. What is published holds for the recipe alone."""
    recipe = load_recipe(flags.recipe)
    parts = ("data", "network", "experts", "distill", "evaluate")
    config = dataclasses.replace(recipe, **{name: getattr(flags, name) for name in parts})
    asked = flags.distill.method
    if asked in recipe.methods:  # a table may give another of a method's settings a name
        distill = dataclasses.replace(config.distill, method=recipe.by(asked).method)
        config = dataclasses.replace(config, distill=distill)
    here = dataclasses.replace(config.data, data_root=recipe.data.data_root)
    if dataclasses.replace(config, data=here) != recipe:
        config = dataclasses.replace(config, about="", published=PublishedConfig())
    return dataclasses.replace(config, seed=flags.seed)


def _tell_method(config: RunConfig, recipe: RunConfig, asked: str) -> None:
    """Say what a person who asks for a method may not expect."""
    from trajmatch.cli import shown
    from trajmatch.methods import method_class

    own, method = recipe.distill.method, config.distill.method
    if asked != own and asked not in recipe.methods:
        shown.say(
            f"the recipe has no [methods.{asked}]: what is not given here is as for {own} (lr_img "
            f"{config.distill.lr_img:g}, {config.distill.iterations:,} iterations); see "
            "docs/methods.md"
        )
    if not method_class(method).needs_experts:
        shown.say(
            f"{method} matches no experts; {config.experts.experts} are trained for herding and "
            "the full data's accuracy"
        )


def carry_out(
    config: RunConfig,
    out: Path,
    *,
    device: str,
    workers: int | None,
    threads: int | None = None,
    tracker: str | None = None,
) -> None:
    """Run `config` into `out` and tell of it, from its cost to its page."""
    import time

    from trajmatch import pipeline
    from trajmatch.cli import shown
    from trajmatch.pipeline.cost.estimate import Shape
    from trajmatch.report import write_report

    began = time.perf_counter()
    data = shown.load(config.data)
    _require_sound(data, config)
    shape = Shape.of(data)
    cost = tell_cost(config, shape, out, device=device, workers=workers, threads=threads)
    cost.require_room()
    with (
        shown.run_progress(out, config) as (experts, iterations),
        shown.evaluation_progress() as judging,
    ):
        result = pipeline.run(
            config,
            out,
            data=data,
            device=device,
            workers=workers,
            threads=threads,
            tracker=tracker,
            say=shown.say,
            on_progress=experts,
            on_iteration=iterations,
            on_judging=judging,
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


def tell_cost(
    config: RunConfig,
    shape: Shape,
    out: Path,
    *,
    device: str,
    workers: int | None,
    threads: int | None,
) -> Cost:
    """Print what the run, or what is left of it in `out`, will cost."""
    from trajmatch.cli import shown
    from trajmatch.pipeline.cost.estimate import Room, done_in, estimate, evaluated_in

    trained, iterated = done_in(out)
    cost = estimate(
        config,
        shape,
        device=device,
        workers=workers,
        threads=threads,
        trained=trained,
        iterated=iterated,
        judged=evaluated_in(out, config),
        room=Room.of(out),
    )
    for line in cost.lines():
        shown.say(line)
    return cost


def _shape(config: RunConfig) -> Shape:
    """Of the data, or of what is known of them where they are not there; refuses as a run would."""
    from trajmatch.cli import shown
    from trajmatch.pipeline.checks import require_settings
    from trajmatch.pipeline.cost.estimate import Shape
    from trajmatch.pipeline.distill import require_method, require_texture_whitening

    try:
        data = shown.load(config.data)
    except DataError as error:
        known = Shape.known(config.data)
        if known is None:
            raise
        shown.say(f"data not found: {error}")
        epochs = config.experts.epochs
        require_settings(known.classes, config.distill, config.evaluate, epochs)
        require_texture_whitening(config.distill, config.data.whitening)
        require_method(config.distill, experts=True)
        return known
    _require_sound(data, config)
    return Shape.of(data)


def _require_sound(data: ImageDataset, config: RunConfig) -> None:
    """Refuse at once what the run would refuse later."""
    from trajmatch.pipeline.checks import require_sound
    from trajmatch.pipeline.distill import require_method, require_texture

    require_method(config.distill, experts=True)
    require_sound(data, config.distill, config.evaluate, config.experts.epochs)
    require_texture(data, config.distill, config.data.whitening)
