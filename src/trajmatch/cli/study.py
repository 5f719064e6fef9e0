"""`trajmatch study`: what each choice of the method gains, measured on any data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from trajmatch.errors import MissingExtraError, SettingError, suggest

if TYPE_CHECKING:
    from trajmatch.methods import Method
    from trajmatch.pipeline.recipe import Recipe
    from trajmatch.report.figures.points import Point
    from trajmatch.studies import Study

DEMO = "digits-ipc1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variations(Common):
    """Flags of commands that vary one base of settings."""

    config: Path | None = None
    """A recipe, by name or as a TOML file, whose settings the variants change."""
    experts: Path | None = None
    """Library to match, from `trajmatch experts`; its network and whitening are used. None: one is
    trained in OUT."""
    seeds: int = 1
    """Distillations of each variant, from --seed on."""
    quick: bool = False
    """A quarter of the iterations, fewer experts and shorter tests, for a first look."""
    data: Flat[DataConfig] = DataConfig()
    network: Flat[NetworkConfig] = NetworkConfig()
    train: ExpertConfig = ExpertConfig()
    """How experts are trained where --experts gives none."""
    distill: Flat[DistillConfig] = DistillConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    workers: int | None = None
    """Processes that train experts, one thread each. None: one per core on the CPU, one on a GPU.
    """
    threads: int | None = None
    """Threads of a distillation on a CPU. None: one for small work, else one per core; a cell that
    is continued keeps its number, as the last bits depend on it."""

    on_line: tyro.conf.Suppress[tuple[str, ...]] = ()
    """Settings of the loop and of the method that the line itself gives; filled by `base`."""

    @classmethod
    def base(cls, arguments: Sequence[str]) -> dict[str, Any]:
        """The settings of the recipe or of the demo, cut down by --quick."""
        from trajmatch.pipeline.recipe import load_recipe

        named = value_of("--config", arguments)
        run = load_recipe(named or DEMO)
        if named is None and value_of("--experts", arguments) is not None:
            # The library has these two; the demo's other settings hold for any data.
            data = dataclasses.replace(run.data, whitening=None)
            run = dataclasses.replace(run, data=data, network=NetworkConfig())
        if "--quick" in arguments:
            from trajmatch.studies.table import quick

            run = quick(run)
        return {**settings_of(cls, run, arguments), "on_line": _on_line(arguments)}


def _on_line(arguments: Sequence[str]) -> tuple[str, ...]:
    """`("lr_img", "iterations")` of `--settings.lr-img 3 --distill.iterations=9`, or without the
    prefixes."""
    words = [word.partition("=")[0] for word in arguments if word.startswith("--")]
    parts = [word[2:].replace("-", "_").rpartition(".") for word in words]
    return tuple(
        name.removeprefix("no_") for where, _, name in parts if where in ("", "distill", "settings")
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(Variations):
    """Run one of the method's own studies and draw its figure: range (a grid over N, the student's
    steps, and M, the expert's epochs, at one budget), drift (how near a student trained on a set
    comes to an expert over ever longer stretches), init (images begun from real ones or noise),
    zca (with and without), step-size (learned or fixed), experts (how many).

    Settings are the digits demo's unless --config names a recipe or a file; all variants and seeds
    share one library of experts where they can. Run the same command again to continue a killed
    study; a cell that failed is shown, and tried again then.
    """

    name: Annotated[Positional[str], tyro.conf.arg(metavar="NAME")]
    """range, drift, init, zca, step-size or experts."""
    out: Path = Path("runs/study-NAME")
    """Folder of the study: the experts, a folder for each variant, and the page."""
    method: str = "mtt"
    """Whose settings are varied; as for `trajmatch distill`."""
    settings: Flat[MethodSettings] = MethodSettings()
    sets: str | None = None
    """drift: folders of sets to compare, separated by commas, each FOLDER or NAME=FOLDER. None: one
    distilled here, one of dsa, random and herding images."""

    @classmethod
    def base(cls, arguments: Sequence[str]) -> dict[str, Any]:
        """As for all variations; the folder is named by the study."""
        word = first_word(cls, arguments)
        named = {"out": Path("runs") / f"study-{word}"} if word else {}
        return {**super().base(arguments), **named}


def run(flags: Flags) -> None:
    from trajmatch import studies

    if flags.name not in studies.STUDIES:
        raise SettingError(f"unknown study '{flags.name}'; {suggest(flags.name, studies.STUDIES)}")
    study = studies.STUDIES[flags.name]
    if flags.sets is not None:
        if flags.name != "drift":
            raise SettingError(f"--sets is for drift; {flags.name} distills its own sets")
        study = dataclasses.replace(study, variants=studies.of_sets(flags.sets))
    run_variations(study, flags)


def run_variations(study: Study, flags: Variations) -> None:
    """Run it, with progress; print its table and draw its page."""
    import time

    from trajmatch import studies
    from trajmatch.cli import shown
    from trajmatch.pipeline.checks import require_augmentations
    from trajmatch.report.pages.comparison import markdown_table
    from trajmatch.report.pages.study import pooled, require_study, write_study_report
    from trajmatch.runtime.resources import Resources
    from trajmatch.storage.results import result_from_json

    began = time.perf_counter()
    resources = Resources(pick_device(flags.device), flags.workers, flags.threads)
    base = base_of(flags)
    require_augmentations(base.experts.augment, base.evaluate.augment)
    shown.warn_without_page()
    data = shown.load(base.data)
    shown.say(f"{study.purpose} {study.rule(base)}")
    with shown.progress_of(flags.out, log=True, events=("cell",)) as progress:
        result = studies.run_study(
            study,
            base,
            flags.out,
            data=data,
            experts=flags.experts,
            seeds=flags.seeds,
            resources=resources,
            progress=progress,
        )
    found = require_study(result_from_json(result))
    if study.page == "comparison":
        print(markdown_table(found))
    else:
        _print_table(pooled(found), study)
    try:
        page = f"the page: {write_study_report(flags.out)}"
    except MissingExtraError as error:  # hours of work are done and lie in the folder
        page = f"no page: {error}; then give the same command again"
    print(f"done in {time.perf_counter() - began:.0f} s; {page}")


def base_of(flags: Variations) -> Recipe:
    """The recipe that the variants change."""
    from trajmatch.pipeline.recipe import load_recipe

    recipe = load_recipe(DEMO if flags.config is None else str(flags.config))
    if flags.quick:
        from trajmatch.studies.table import quick

        recipe = quick(recipe)
    method = getattr(flags, "settings", recipe.method)
    return dataclasses.replace(
        recipe,
        methods=_without(recipe, type(method), flags.on_line),
        name=flags.config.stem if flags.config is not None else DEMO,
        about="",
        published=PublishedConfig(),
        seed=flags.seed,
        data=flags.data,
        network=flags.network,
        experts=flags.train,
        distill=flags.distill,
        method=method,
        evaluate=flags.evaluate,
    )


def _without(
    recipe: Recipe, kind: type[Method], on_line: Sequence[str]
) -> dict[str, Mapping[str, Any]]:
    """The recipe's tables of methods without what the line gives: settings of the outer loop for
    all methods, those of a method for tables of the same method."""
    from trajmatch.config import DistillConfig
    from trajmatch.methods.registry import setting_names

    loop, own = ({*setting_names(one)} & {*on_line} for one in (DistillConfig, kind))

    def cut(table: Mapping[str, Any], given: set[str]) -> dict[str, Any]:
        return {
            key: cut(value, given) if isinstance(value, Mapping) else value
            for key, value in table.items()
            if key not in given or isinstance(value, Mapping)
        }

    return {
        name: cut(table, loop | own if type(recipe.by(name).method) is kind else loop)
        for name, table in recipe.methods.items()
    }


def _print_table(points: Sequence[Point], study: Study) -> None:
    """A line for each variant and place: never a mean without n."""
    print(f"{study.measured} (mean +- sd, n {study.counted} of one seed, or n seeds):")
    for point in points:
        place = ", ".join(f"{name} {value}" for name, value in point.at.items())
        value = point.absent
        if point.done:
            value = f"{point.mean:.3g}"
            value += "" if point.sample.sd is None else f" +- {point.sample.sd:.2g}"
            value += f" (n={point.sample.n})"
        print(f"  {point.variant:<14}  {place:<36}  {value}")
