"""`trajmatch study`: what is gained by each choice of the method, measured on any data."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    RunConfig,
)
from trajmatch.config.recipes import load_recipe
from trajmatch.errors import MissingExtraError, SettingError, suggest

if TYPE_CHECKING:
    from trajmatch.studies import Study

DEMO = "digits-ipc1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variations(Common):
    """Flags of whatever varies one base of settings."""

    config: Path | None = None
    """A recipe, by name or as a TOML file, whose settings the variants change."""
    experts: Path | None = None
    """Library to match, from `trajmatch experts`; its network and whitening are taken. None: one is
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
    """Threads of the student's walk on a CPU. None: one for small work, else one per core."""

    @classmethod
    def base(cls, arguments: Sequence[str]) -> dict[str, Any]:
        """The settings of the recipe or of the demo, cut down by --quick."""
        named = _value_of("--config", arguments)
        run = load_recipe(named or DEMO)
        if named is None and _value_of("--experts", arguments) is not None:
            # What is left of the demo then holds for any data; these are the library's.
            data = dataclasses.replace(run.data, whitening=None)
            run = dataclasses.replace(run, data=data, network=NetworkConfig())
        if "--quick" in arguments:
            from trajmatch.studies.table import quick

            run = quick(run)
        return settings_of(cls, run, arguments)


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
            raise SettingError(f"--sets is for drift; {flags.name} makes its own sets")
        study = dataclasses.replace(study, variants=studies.of_sets(flags.sets))
    carry_out(flags.name, study, flags)


def carry_out(name: str, study: Study, flags: Variations) -> None:
    """Run it, with progress; print its table and draw its page."""
    import time

    from trajmatch import studies
    from trajmatch.cli import shown
    from trajmatch.cli.progress import Bar, task
    from trajmatch.report.pages.comparison import markdown_table
    from trajmatch.report.pages.study import pooled, write_study_report

    began = time.perf_counter()
    device, base = pick_device(flags.device), settings(flags)
    data = shown.load(base.data)
    shown.say(f"{study.question} {study.rule(base)}")
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(shown.event_log(flags.out))
        bars: dict[str, Bar] = {}

        def on_epoch(event: Mapping[str, Any]) -> None:
            bar = bars.get("experts")
            if bar is None or bar.done >= bar.total:  # a study may need more than one library
                total = base.experts.experts * event["epochs"]
                bar = bars["experts"] = stack.enter_context(task("experts", total))
            bar.advance(expert=event["expert"], epoch=event["epoch"])

        def on_cell(cell: Mapping[str, Any]) -> None:
            log("cell", cell)
            if "error" in cell:
                shown.say(f"{cell['variant']}, seed {cell['seed']} failed: {cell['error']}")

        def on_iteration(done: int, total: int, values: Mapping[str, float]) -> None:
            if "steps" not in bars:
                bars["steps"] = stack.enter_context(task("student steps", total, done=done))
            bars["steps"].advance(done - bars["steps"].done, loss=values["loss"])

        result = studies.run_study(
            name,
            study,
            base,
            flags.out,
            data=data,
            experts=flags.experts,
            seeds=flags.seeds,
            device=device,
            workers=flags.workers,
            threads=flags.threads,
            on_cell=on_cell,
            on_progress=on_epoch,
            on_iteration=on_iteration,
        )
    if study.page == "comparison":
        print(markdown_table(result))
    else:
        _table(pooled(result), study)
    try:
        page = f"the page: {write_study_report(flags.out)}"
    except MissingExtraError as error:  # hours of work are done and lie in the folder
        page = f"no page: {error}; then give the same command again"
    print(f"done in {time.perf_counter() - began:.0f} s; {page}")


def settings(flags: Variations) -> RunConfig:
    """What the variants are variants of."""
    recipe = load_recipe(DEMO if flags.config is None else str(flags.config))
    if flags.quick:
        from trajmatch.studies.table import quick

        recipe = quick(recipe)
    return RunConfig(
        name=flags.config.stem if flags.config is not None else DEMO,
        seed=flags.seed,
        data=flags.data,
        network=flags.network,
        experts=flags.train,
        distill=flags.distill,
        evaluate=flags.evaluate,
        methods=recipe.methods,
    )


def _table(rows: Sequence[Mapping[str, Any]], study: Study) -> None:
    """A line for each variant and place: never a mean without n."""
    print(f"{study.measured} (mean +- sd, n {study.counted} of one seed, or n seeds):")
    for row in rows:
        place = ", ".join(f"{name} {value}" for name, value in row["at"].items())
        value = "failed"
        if row["mean"] is not None:
            value = f"{row['mean']:.3g}"
            value += "" if row["sd"] is None else f" +- {row['sd']:.2g}"
            value += f" (n={row['n']})"
        print(f"  {row['variant']:<14}  {place:<36}  {value}")
