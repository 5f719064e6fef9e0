"""Running a study: every variant for every seed, each in a folder of its own.

OUT/experts                     the experts of all variants that take the base's
OUT/experts-<variant>           the experts of a variant that needs others
OUT/<variant>/seed<k>           the distillation of a cell, a run like any other
OUT/<variant>/seed<k>/cell.json what was measured, and of what; validation.json: on validation
                                images alone, where one of several settings is to be chosen
OUT/result.json                 all of it
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trajmatch import pipeline
from trajmatch.config import require_range
from trajmatch.data import ImageDataset
from trajmatch.errors import SettingError, TrajmatchError, is_out_of_memory
from trajmatch.evaluation import Score
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import METHODS
from trajmatch.methods.base import augmentation_of
from trajmatch.methods.coresets import CORESETS, require_enough
from trajmatch.pipeline.checks import data_folder, require_recipe, require_validation
from trajmatch.pipeline.recipe import Recipe
from trajmatch.runtime.display import shown_or
from trajmatch.runtime.progress import Progress, Silent
from trajmatch.runtime.resources import Resources
from trajmatch.storage import write_result
from trajmatch.storage.folder import claim, study_command
from trajmatch.studies.cell import Cell
from trajmatch.studies.libraries import as_in, libraries_of
from trajmatch.studies.study import Row, Study, Variant, is_own, reach
from trajmatch.synthetic import load_distilled


def run_study(
    study: Study,
    base: Recipe,
    out: str | Path,
    *,
    data: ImageDataset | None = None,
    experts: ExpertLibrary | str | Path | None = None,
    seeds: int = 1,
    resources: Resources = Resources(),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run `study` with variants of `base` for `seeds` seeds from `base.seed` on.

    experts: the library to match; its network, whitening and settings take the place of the base's.
        None trains one in `out`.
    progress: `update("experts", ...)` after each epoch of an expert, `update("iterations", done,
        total, loss=...)` after each iteration, counted over all cells, and `event("cell", **cell)`
        for each cell as soon as it is measured.

    A study that was stopped continues in the cell it was in; a cell that failed is tried again.
    Returns the contents of `out`/result.json: beside the usual, `study` (what is drawn) and `cells`
    {variant, at, settings (other than the base's), seed, mean, sd, n, values, ...} or, where it
    failed, {variant, at, settings, seed, error}; of settings beside which others of the same method
    were chosen, `validated` (a score on validation images) in the place of the test's numbers.

    Raises SettingError when the base itself cannot be run, no cell succeeded, or `out` is another
    command's or in use, and what training the experts or loading a set raises.

    Examples:
        >>> run_study(STUDIES["init"], base, "runs/study-init", seeds=3)  # doctest: +SKIP
    """
    require_range("seeds", seeds)
    out = Path(out)
    with claim(out, study_command(study.name), data=data_folder(base.data)):
        data = data or pipeline.load(base.data)
        given = None
        if experts is not None:
            given = experts if isinstance(experts, ExpertLibrary) else ExpertLibrary.open(experts)
            base = as_in(given, base, data)
        with shown_or(progress) as observer:
            return _run(study, base, out, data, given, seeds, resources, observer)


def _run(
    study: Study,
    base: Recipe,
    out: Path,
    data: ImageDataset,
    given: ExpertLibrary | None,
    seeds: int,
    resources: Resources,
    progress: Progress,
) -> dict[str, Any]:
    began = time.perf_counter()
    variants = _checked(study, base, data, given, resources, progress)
    libraries = libraries_of(
        variants, base, given, out, data, resources=resources, progress=progress
    )
    cells = [
        Cell(study, variant, seed, out, data, libraries[variant.name], resources)
        for variant in variants
        for seed in range(base.seed, base.seed + seeds)
    ]
    rows = _measured(cells, base, progress)
    library = libraries[variants[0].name]
    if study.relate is not None:
        study.relate(rows, library)
    return write_result(
        out,
        command="study",
        settings={"study": study.name, "seeds": seeds, **base.to_dict()},
        seed=base.seed,
        scores=[_score(row) for row in rows if "protocol" in row],
        data=data.summary(counts=True),
        seconds=time.perf_counter() - began,
        device=str(resources.device),
        extra={**_about(study, base, variants, library, data), "cells": rows},
    )


def _checked(
    study: Study,
    base: Recipe,
    data: ImageDataset,
    given: ExpertLibrary | None,
    resources: Resources,
    progress: Progress,
) -> list[Variant]:
    """The variants; raises, before experts are trained, for what no cell could be run with."""
    variants = study.variants(base)
    if all(is_own(one.source) and one.source != base.method.name for one in variants):
        require_validation(data)  # the base's own method is not used
        augmentation_of(base.evaluate.augment)
    else:
        epochs = given.epochs if given else reach(base)
        require_recipe(base, data, epochs=epochs, resources=resources)
    _say_what_cannot_be(variants, data, progress)
    for variant in variants:
        if not is_own(variant.source):
            load_distilled(variant.source)
    return variants


def _say_what_cannot_be(
    variants: Sequence[Variant], data: ImageDataset, progress: Progress
) -> None:
    """A message for each variant that needs more images of a class than there are.

    Raises SettingError where no variant is left.
    """
    impossible: list[str] = []
    for variant in variants:
        distill = variant.config.distill
        if variant.source in CORESETS or (variant.source in METHODS and distill.init == "real"):
            try:
                require_enough(data, distill.ipc)
            except SettingError as error:
                impossible.append(f"{variant.name}: {error}")
    if impossible and len(impossible) == len(variants):
        raise SettingError(impossible[0])
    for line in impossible:
        progress.message(f"will be left out: {line}")


class _Counted(Silent):
    """Counts the iterations of one cell on from those of the cells before it."""

    def __init__(self, progress: Progress, before: int, total: int) -> None:
        self.progress, self.before, self.total = progress, before, total

    def update(self, task: str, done: int, total: int, **values: Any) -> None:
        loss = {"loss": values["loss"]} if "loss" in values else {}
        self.progress.update("iterations", self.before + done, self.total, **loss)


def _measured(cells: Sequence[Cell], base: Recipe, progress: Progress) -> list[Row]:
    """The rows of all cells; of a cell that fails, one with its error. Where several variants are
    of one choice, those that validation images do not choose have their validation score alone.

    Raises SettingError where every cell fails.
    """
    found: dict[tuple[str, int], list[Row]] = {}
    swept = _swept(cells)
    before, total = 0, sum(_iterations(cell.variant) for cell in cells)

    def measure(cell: Cell) -> None:
        rows = _measured_cell(cell, base, _Counted(progress, before, total))
        found[cell.variant.name, cell.seed] = rows
        for row in rows:
            progress.event("cell", **row)

    for cell in cells:
        measure(cell.before_choice() if cell.variant.name in swept else cell)
        before += _iterations(cell.variant)
    chosen = _chosen([cell.variant for cell in cells], swept, found)
    for cell in cells:
        if cell.variant.name in chosen:
            measure(cell)
    rows = [row for part in found.values() for row in part]
    failed = [row for row in rows if "error" in row]
    if len(failed) == len(rows):
        raise SettingError(
            f"none of {len(failed)} cells could be measured; {failed[0]['variant']}, seed "
            f"{failed[0]['seed']}: {failed[0]['error']}"
        )
    return rows


def _measured_cell(cell: Cell, base: Recipe, progress: Progress) -> list[Row]:
    """The rows of one cell, with its variant; where it fails, one with the error."""
    variant = cell.variant
    known = {
        "variant": variant.name,
        "settings": _differences(base, variant.config),
        "seed": cell.seed,
    }
    found: list[Row]
    try:
        found = cell.measured(progress)
    except (TrajmatchError, MemoryError, RuntimeError) as error:
        if not (isinstance(error, TrajmatchError) or is_out_of_memory(error)):
            raise
        found = [{"error": " ".join(str(error).split())}]
    return [{**known, **row, "at": {**variant.at, **row.get("at", {})}} for row in found]


def _swept(cells: Sequence[Cell]) -> set[str]:
    """The variants that have others of the same choice beside them."""
    choices = {cell.variant.name: cell.variant.choice for cell in cells}
    counts = Counter(choices.values())
    return {name for name, choice in choices.items() if choice and counts[choice] > 1}


def _chosen(
    variants: Sequence[Variant], swept: set[str], found: Mapping[tuple[str, int], Sequence[Row]]
) -> set[str]:
    """Of each choice the variant of the highest validation accuracy, the mean over the seeds; of
    equal ones the first. None where all failed."""
    best: dict[str, tuple[float, str]] = {}
    for variant in {one.name: one for one in variants if one.name in swept}.values():
        means = [
            row["validated"]["mean"]
            for (name, _), rows in found.items()
            for row in rows
            if name == variant.name and "validated" in row
        ]
        if means and statistics.fmean(means) > best.get(variant.choice, (-1.0, ""))[0]:
            best[variant.choice] = statistics.fmean(means), variant.name
    return {name for _, name in best.values()}


def _about(
    study: Study,
    base: Recipe,
    variants: Sequence[Variant],
    library: ExpertLibrary,
    data: ImageDataset,
) -> dict[str, Any]:
    """What a page needs beside the cells: the study, and the experts that it shares."""
    unchanged = [
        variant.name
        for variant in variants
        if variant.config == base and variant.source not in CORESETS
    ]
    described = {
        "name": study.name,
        "question": study.purpose,
        "rule": study.rule(base),
        "page": study.page,
        "figure": study.figure,
        "axes": dict(study.axes),
        "measured": study.measured,
        "counted": study.counted,
        "base": unchanged,
    }
    return {
        "study": described,
        "network": library.spec.describe(),
        "library": library.summary(),
        "full": _full(library, data),
    }


def _full(library: ExpertLibrary, data: ImageDataset) -> Row | None:
    """Test accuracy of the experts; None where nobody tested them."""
    tested = any(score is not None for score in library.accuracy("test").values())
    return pipeline.experts_score(library, data).to_json() if tested else None


def _iterations(variant: Variant) -> int:
    """Iterations of distilling a variant."""
    return variant.config.distill.iterations if variant.source in METHODS else 0


def _differences(base: Recipe, config: Recipe) -> dict[str, Any]:
    """The settings of `config` that are not the base's, as `distill.syn_steps`."""
    ours, theirs = base.to_dict(), config.to_dict()
    return {
        f"{table}.{name}": value
        for table, values in theirs.items()
        if isinstance(values, dict)
        for name, value in values.items()
        if table != "methods" and value != ours[table].get(name)
    }


def _score(cell: Row) -> Row:
    """A cell as a score, with its variant and seed."""
    known = {name: cell[name] for name in ("variant", "seed")}
    return {**Score.from_json(cell).to_json(), **known}
