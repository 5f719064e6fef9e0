"""Running a study: every variant for every seed, each in a folder of its own.

OUT/experts                     the experts of all variants that take the base's
OUT/experts-<variant>           the experts of a variant that needs others
OUT/<variant>/seed<k>           the distillation of a cell, a run like any other
OUT/<variant>/seed<k>/cell.json what was measured, and of what
OUT/result.json                 all of it
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from trajmatch import pipeline
from trajmatch.config import RunConfig, to_dict
from trajmatch.data import ImageDataset
from trajmatch.errors import SettingError, TrajmatchError
from trajmatch.evaluation import Score
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import METHODS
from trajmatch.methods.coresets import CORESETS
from trajmatch.pipeline.checks import require_sound
from trajmatch.storage import write_result
from trajmatch.studies.cell import Cell
from trajmatch.studies.libraries import as_in, libraries_of
from trajmatch.studies.study import Row, Study, Variant, is_own, reach
from trajmatch.synthetic import load_distilled


def run_study(
    name: str,
    study: Study,
    base: RunConfig,
    out: str | Path,
    *,
    data: ImageDataset | None = None,
    experts: ExpertLibrary | str | Path | None = None,
    seeds: int = 1,
    device: str = "cpu",
    workers: int | None = None,
    threads: int | None = None,
    on_cell: Callable[[Row], None] = lambda cell: None,
    on_progress: pipeline.Progress | None = None,
    on_iteration: Callable[[int, int, Mapping[str, float]], None] = lambda *told: None,
) -> dict[str, Any]:
    """Carry out `study` with variants of `base` for `seeds` seeds from `base.seed` on.

    experts: the library to match; None trains one in `out`. Its network, whitening and settings
        stand in for the base's.
    on_cell: called with each cell as soon as it is known.
    on_iteration: called after each iteration with the student steps of all cells so far and in all,
        and what the iteration's log line holds.

    A study that was stopped continues in the cell it was in. A cell that fails is part of the
    result, with its error, and is tried again next time. Returns what `out`/result.json holds:
    beside the usual, `study` (what is drawn) and `cells` {variant, at, settings, seed, mean, sd, n,
    values, ...} or {variant, at, settings, seed, error}; `settings` are those that are not the
    base's.

    Raises SettingError when the base itself cannot be run or no cell succeeded, and what training
    the experts or loading a set raises.
    """
    began = time.perf_counter()
    out = Path(out)
    if seeds < 1:
        raise SettingError(f"seeds is {seeds}; it must be at least 1")
    data = data or pipeline.load(base.data)
    given = None
    if experts is not None:
        given = experts if isinstance(experts, ExpertLibrary) else ExpertLibrary.open(experts)
        base = as_in(given, base, data)
    require_sound(data, base.distill, base.evaluate, given.epochs if given else reach(base))
    variants = study.variants(base)
    for variant in variants:
        if not is_own(variant.source):
            load_distilled(variant.source)  # refused now, before experts are trained
    libraries = libraries_of(variants, base, given, out, data, workers, device, on_progress)

    cells: list[Row] = []
    walked, total = 0, seeds * sum(map(_steps, variants))
    for variant in variants:
        for seed in range(base.seed, base.seed + seeds):
            known = {
                "variant": variant.name,
                "settings": _differences(base, variant.config),
                "seed": seed,
            }
            cell = Cell(
                study, variant, seed, out / variant.name / f"seed{seed}", data,
                libraries[variant.name], device, threads,
            )  # fmt: skip
            hear = functools.partial(
                _in_steps, on_iteration, walked, total, variant.config.distill.syn_steps
            )
            rows: list[Row]
            try:
                rows = cell.measured(hear)
            except (TrajmatchError, torch.OutOfMemoryError) as error:
                rows = [{"error": " ".join(str(error).split())}]
            for row in rows:
                cells.append({**known, **row, "at": {**variant.at, **row.get("at", {})}})
                on_cell(cells[-1])
            walked += _steps(variant)
    failed = [cell for cell in cells if "error" in cell]
    if len(failed) == len(cells):
        raise SettingError(
            f"none of {len(failed)} cells could be measured; {failed[0]['variant']}, seed "
            f"{failed[0]['seed']}: {failed[0]['error']}"
        )
    if study.relate is not None:
        study.relate(cells, libraries[variants[0].name])
    return write_result(
        out,
        command="study",
        settings={"study": name, "seeds": seeds, **to_dict(base)},
        seed=base.seed,
        scores=[_score(cell) for cell in cells if "protocol" in cell],
        data=data.summary(),
        seconds=time.perf_counter() - began,
        device=device,
        extra={
            "study": {
                "name": name,
                "question": study.question,
                "rule": study.rule(base),
                "page": study.page,
                "figure": study.figure,
                "axes": dict(study.axes),
                "measured": study.measured,
                "counted": study.counted,
                "base": [
                    variant.name
                    for variant in variants
                    if variant.config == base and variant.source not in CORESETS
                ],
            },
            "network": libraries[variants[0].name].spec.describe(),
            "library": libraries[variants[0].name].summary(),
            "full": _full(libraries[variants[0].name]),
            "cells": cells,
        },
    )


def _full(library: ExpertLibrary) -> Row | None:
    """What networks trained on all images come to; None where nobody tested the experts."""
    tested = any(score is not None for score in library.accuracy("test").values())
    return pipeline.full_data_score(library).to_json() if tested else None


def _steps(variant: Variant) -> int:
    """Student steps that distilling a variant takes."""
    distill = variant.config.distill
    return distill.iterations * distill.syn_steps if variant.source in METHODS else 0


def _in_steps(
    hear: Callable[[int, int, Mapping[str, float]], None],
    before: int,
    total: int,
    each: int,
    iteration: int,
    values: Mapping[str, float],
) -> None:
    hear(before + iteration * each, total, values)


def _differences(base: RunConfig, config: RunConfig) -> dict[str, Any]:
    """The settings of `config` that are not the base's, as `distill.syn_steps`."""
    ours, theirs = to_dict(base), to_dict(config)
    return {
        f"{table}.{name}": value
        for table, values in theirs.items()
        if isinstance(values, dict)
        for name, value in values.items()
        if value != ours[table][name]
    }


def _score(cell: Row) -> Row:
    """A cell as a score like any other's, with what tells it from its like."""
    known = {name: cell[name] for name in ("variant", "seed")}
    return {**Score.from_json(cell).to_json(), **known}
