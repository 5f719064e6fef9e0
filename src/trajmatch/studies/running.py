"""Running a study: every variant for every seed, each in a folder of its own.

OUT/experts                     the experts of all variants that take the base's
OUT/experts-<variant>           the experts of a variant that needs others
OUT/<variant>/seed<k>           the distillation of a cell, a run like any other
OUT/<variant>/seed<k>/cell.json what was measured, and of what
OUT/result.json                 all of it
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trajmatch import pipeline
from trajmatch.config import require_range
from trajmatch.data import ImageDataset
from trajmatch.errors import SettingError, TrajmatchError, is_out_of_memory
from trajmatch.evaluation import Score
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import METHODS
from trajmatch.methods.coresets import CORESETS, require_enough
from trajmatch.pipeline.checks import require_recipe
from trajmatch.pipeline.recipe import Recipe
from trajmatch.runtime.display import shown_or
from trajmatch.runtime.progress import Progress, Silent
from trajmatch.runtime.resources import Resources
from trajmatch.storage import write_result
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
    failed, {variant, at, settings, seed, error}.

    Raises SettingError when the base itself cannot be run or no cell succeeded, and what training
    the experts or loading a set raises.

    Examples:
        >>> run_study(STUDIES["init"], base, "runs/study-init", seeds=3)  # doctest: +SKIP
    """
    require_range("seeds", seeds)
    data = data or pipeline.load(base.data)
    given = None
    if experts is not None:
        given = experts if isinstance(experts, ExpertLibrary) else ExpertLibrary.open(experts)
        base = as_in(given, base, data)
    with shown_or(progress) as observer:
        return _run(study, base, Path(out), data, given, seeds, resources, observer)


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
        data=data.summary(),
        seconds=time.perf_counter() - began,
        device=str(resources.device),
        extra={**_about(study, base, variants, library), "cells": rows},
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
    epochs = given.epochs if given else reach(base)
    require_recipe(base, data, epochs=epochs, resources=resources)
    variants = study.variants(base)
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
    """The rows of all cells; of a cell that fails, one with its error.

    Raises SettingError where every cell fails.
    """
    rows: list[Row] = []
    before, total = 0, sum(_iterations(cell.variant) for cell in cells)
    for cell in cells:
        variant = cell.variant
        known = {
            "variant": variant.name,
            "settings": _differences(base, variant.config),
            "seed": cell.seed,
        }
        found: list[Row]
        try:
            found = cell.measured(_Counted(progress, before, total))
        except (TrajmatchError, MemoryError, RuntimeError) as error:
            if not (isinstance(error, TrajmatchError) or is_out_of_memory(error)):
                raise
            found = [{"error": " ".join(str(error).split())}]
        for row in found:
            rows.append({**known, **row, "at": {**variant.at, **row.get("at", {})}})
            progress.event("cell", **rows[-1])
        before += _iterations(variant)
    failed = [row for row in rows if "error" in row]
    if len(failed) == len(rows):
        raise SettingError(
            f"none of {len(failed)} cells could be measured; {failed[0]['variant']}, seed "
            f"{failed[0]['seed']}: {failed[0]['error']}"
        )
    return rows


def _about(
    study: Study, base: Recipe, variants: Sequence[Variant], library: ExpertLibrary
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
        "full": _full(library),
    }


def _full(library: ExpertLibrary) -> Row | None:
    """Test accuracy of the experts; None where nobody tested them."""
    tested = any(score is not None for score in library.accuracy("test").values())
    return pipeline.full_data_score(library).to_json() if tested else None


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
