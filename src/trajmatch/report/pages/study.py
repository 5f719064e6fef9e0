"""The page of a study: one figure over all its variants, the numbers behind it, the settings.

Drawn from the study's result.json (and, for a comparison, the sets beside it) at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trajmatch._version import __version__
from trajmatch.errors import FileFormatError
from trajmatch.report.facts import cost, origin, say, settings
from trajmatch.report.figures.figure import Figure
from trajmatch.report.figures.heatmap import Heatmap
from trajmatch.report.figures.lines import Lines
from trajmatch.report.figures.points import Point
from trajmatch.report.figures.scores import ScorePlot
from trajmatch.report.folder import RunFolder
from trajmatch.report.pages.comparison import comparison_context
from trajmatch.report.tables.scores import caveats, chance_of
from trajmatch.report.tables.seeds import between
from trajmatch.report.tables.seeds import pooled as pooled
from trajmatch.report.template import render, write_page
from trajmatch.storage.results import RunResult, StudyPlan, StudyResult
from trajmatch.units import NBSP, Real, number


def write_study_report(study: Path | str, out: Path | str | None = None) -> Path:
    """Write the page about the folder `study` to `out` (default: report.html in it); returns that.

    As `write_report`, for the folder of `trajmatch study` or `compare`. Raises FileFormatError when
    it holds the result of another command, and MissingExtraError without jinja2 or matplotlib.
    """
    study = Path(study)
    run = RunFolder.read(study)
    result = require_study(run.result)
    context, template = _context(run, result), "study.html.j2"
    if result.study.page == "comparison":
        context |= comparison_context(run.folder, result)
        template = "comparison.html.j2"
    return write_page(render(template, context), study, out)


def require_study(result: RunResult) -> StudyResult:
    """`result`, when it is that of a study. Raises FileFormatError."""
    if not isinstance(result, StudyResult):
        raise FileFormatError(
            f"this is the result of `trajmatch {result.command}`, not of a study; give the --out "
            "of `trajmatch study`"
        )
    return result


def study_figure(result: StudyResult) -> Figure:
    """The figure that a study's result names.

    Raises FileFormatError for a figure that this version does not know, for axes that do not fit
    it, and where nothing was measured.
    """
    plan, points = result.study, pooled(result)
    wanted = {"bars": 0, "grid": 2, "lines": 1}
    if plan.figure not in wanted or len(plan.axes) < wanted[plan.figure]:
        raise FileFormatError(
            f"the study has no figure of a known kind ('{plan.figure}' with {len(plan.axes)} axes; "
            "known: bars, grid with two axes, lines with one or two); run the command again"
        )
    if not any(point.done for point in points):
        raise FileFormatError("no cell of the study holds a number; run the command again")
    if plan.figure == "bars":
        return _bars(result, points)
    return _grid(plan, points) if plan.figure == "grid" else _lines(plan, points)


def _bars(result: StudyResult, points: Sequence[Point]) -> Figure:
    plan = result.study
    done = [point for point in points if point.done]
    names = tuple(point.variant for point in done)
    main = next((index for index, name in enumerate(names) if name in plan.base), None)
    samples = tuple(point.sample for point in done)
    known: dict[str, Any] = {"main": main, "name": plan.name, "title": _title(plan)}
    if plan.is_accuracy and result.scores:
        classes = len(result.data.classes) if result.data is not None else 0
        known |= chance_of(result.scores[0], classes)
    return ScorePlot(names, samples, **known)


def _grid(plan: StudyPlan, points: Sequence[Point]) -> Figure:
    (x, x_words), (y, y_words), *_ = plan.axes.items()
    return Heatmap(
        name=plan.name,
        title=_title(plan),
        x=x,
        y=y,
        words=(x_words, y_words),
        points=tuple(points),
        base=plan.base,
    )


def _lines(plan: StudyPlan, points: Sequence[Point]) -> Figure:
    (x, words), *others = plan.axes.items()
    series: dict[str, list[Point]] = {}
    for point in points:
        if not point.done:
            continue
        if point.number_at(x) <= 0:
            raise FileFormatError(
                f"'{x}' of variant {point.variant} is {point.at.get(x)!r} where a number above 0 "
                "belongs; run the command again"
            )
        name = str(point.at.get(others[0][0])) if others else ""
        series.setdefault(name, []).append(point)
    return Lines(
        name=plan.name,
        title=_title(plan),
        x=x,
        words=words,
        series={name: tuple(found) for name, found in series.items()},
        level=None if plan.is_accuracy else (1.0, "never nearer than at the start"),
        accuracy=plan.is_accuracy,
    )


def _title(plan: StudyPlan) -> str:
    return plan.measured[:1].upper() + plan.measured[1:]


def _context(run: RunFolder, result: StudyResult) -> dict[str, Any]:
    """Everything the template says."""
    figure, points, plan = study_figure(result), pooled(result), result.study
    # A variant that is named as its place on an axis need not say so twice.
    axes = [a for a in plan.axes if any(point.at.get(a) != point.variant for point in points)]
    return {
        "version": __version__,
        "folder": run.folder,
        "study": plan,
        "figure": figure,
        "meta": _meta(result),
        "counted": _counted(result, points),
        "outlined": bool(plan.base) and isinstance(figure, Heatmap),
        "failures": [
            f"{cell.variant}, seed {cell.seed}: {cell.error}" for cell in result.cells if cell.error
        ],
        "accuracy": plan.is_accuracy,
        "cautions": caveats(result.scores),
        "columns": [plan.axes[axis] for axis in axes],
        "rows": [_row(point, plan, axes) for point in points],
        "cost": cost(run),
        "origin": origin(run),
        "settings": settings(run),
    }


def _row(point: Point, plan: StudyPlan, axes: Sequence[str]) -> dict[str, Any]:
    def digits(value: Real | None, absent: str, count: int = 3) -> str:
        if value is None:
            return absent
        return f"{value:.1f}" if plan.is_accuracy else number(value, count)

    changed = [f"{name.partition('.')[2]} {say(value)}" for name, value in point.settings.items()]
    return {
        "variant": point.variant,
        "base": point.variant in plan.base,
        "at": [say(point.at.get(axis, "–")) for axis in axes],
        "mean": digits(point.sample.mean, point.absent),
        "sd": digits(point.sample.sd, "–", 2),
        "n": point.sample.n,
        "settings": ", ".join(changed) or "nothing",
    }


def _meta(result: StudyResult) -> str:
    distill = result.settings.get("distill")
    ipc = distill.get("ipc") if isinstance(distill, dict) else None
    data = "" if result.data is None else result.data.name
    images = f"{ipc} image{'s' if ipc != 1 else ''} per class" if ipc else ""
    parts = [
        f"study {result.study.name}",
        ", ".join(filter(None, (data, images))),
        result.network,
        f"{result.seeds} seed{'s' if result.seeds != 1 else ''}",
    ]
    return " · ".join(filter(None, parts))


def _counted(result: StudyResult, points: Sequence[Point]) -> str:
    """What mean, sd and n are of, in words."""
    counted = result.study.counted
    n = f"n{NBSP}={NBSP}{between([point.sample.n for point in points if point.done])}"
    if result.seeds == 1:
        return (
            f"Mean ± standard deviation over {n} {counted} of one seed; how much one seed differs "
            "from the next is not in it (--seeds gives that)."
        )
    each = between([cell.sample.n for cell in result.cells if cell.sample is not None])
    return (
        f"Mean ± standard deviation over {n} seeds, each the mean of {each} {counted}. All seeds "
        "share their experts."
    )
