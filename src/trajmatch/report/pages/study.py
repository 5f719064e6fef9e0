"""The page of a study: one figure over all its variants, the numbers behind it, the settings.

Drawn from the study's result.json alone, so that it can be drawn anew at any time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trajmatch._version import __version__
from trajmatch.errors import FileFormatError
from trajmatch.report.facts import cost, origin, say, settings
from trajmatch.report.figures.figure import Figure, Row
from trajmatch.report.figures.heatmap import Heatmap
from trajmatch.report.figures.lines import Lines
from trajmatch.report.figures.scores import ScorePlot
from trajmatch.report.folder import RunFolder, mapping
from trajmatch.report.pages.comparison import comparison_context
from trajmatch.report.tables.seeds import between
from trajmatch.report.tables.seeds import pooled as pooled
from trajmatch.report.template import render, write_page
from trajmatch.units import NBSP, Real, number


def write_study_report(study: Path | str, out: Path | str | None = None) -> Path:
    """Write the page about the folder `study` to `out` (default: report.html in it); returns that.

    As `write_report`, for what `trajmatch study` leaves. Raises FileFormatError when the folder
    holds the result of no study, and MissingExtraError without jinja2.
    """
    study = Path(study)
    run = RunFolder.read(study)
    context, template = _context(run), "study.html.j2"
    if run.result["study"].get("page") == "comparison":
        context, template = context | comparison_context(run), "comparison.html.j2"
    return write_page(render(template, context), study, out)


def study_figure(result: Mapping[str, Any]) -> Figure:
    """The figure that a study's result asks for.

    Raises FileFormatError for a result that is not a study's.
    """
    study = mapping(result.get("study"))
    kinds = {"bars": _bars, "grid": _grid, "lines": _lines}
    if study.get("figure") not in kinds:
        raise FileFormatError(
            f"this is the result of `trajmatch {result.get('command')}`, not of a study; give the "
            "--out of `trajmatch study`"
        )
    return kinds[study["figure"]](study, pooled(result))


def _bars(study: Mapping[str, Any], rows: Sequence[Row]) -> Figure:
    done = [row for row in rows if row["mean"] is not None]
    names = tuple(str(row["variant"]) for row in done)
    main = next((i for i, name in enumerate(names) if name in study["base"]), None)
    return ScorePlot(names, tuple(done), main, name=study["name"], title=_title(study))


def _grid(study: Mapping[str, Any], rows: Sequence[Row]) -> Figure:
    (x, x_words), (y, y_words) = study["axes"].items()
    return Heatmap(
        name=study["name"],
        title=_title(study),
        x=x,
        y=y,
        words=(x_words, y_words),
        rows=tuple(rows),
        base=tuple(study["base"]),
    )


def _lines(study: Mapping[str, Any], rows: Sequence[Row]) -> Figure:
    (x, words), *others = study["axes"].items()
    series: dict[str, list[Row]] = {}
    for row in rows:
        if row["mean"] is not None:
            name = str(row["at"][others[0][0]]) if others else ""
            series.setdefault(name, []).append(row)
    accuracy = _is_accuracy(study)
    return Lines(
        name=study["name"],
        title=_title(study),
        x=x,
        words=words,
        series={name: tuple(found) for name, found in series.items()},
        level=None if accuracy else (1.0, "never nearer than at the start"),
        accuracy=accuracy,
    )


def _title(study: Mapping[str, Any]) -> str:
    text = str(study["measured"])
    return text[:1].upper() + text[1:]


def _is_accuracy(study: Mapping[str, Any]) -> bool:
    return str(study["measured"]).endswith("%")


def _context(run: RunFolder) -> dict[str, Any]:
    """Everything the template says."""
    result = run.result
    figure = study_figure(result)
    rows, study = pooled(result), result["study"]
    # A variant that is named as its place on an axis need not say so twice.
    axes = [a for a in study["axes"] if any(row["at"].get(a) != row["variant"] for row in rows)]
    told = ("cells", "study", "full")
    plain = dataclasses.replace(
        run, result={name: result[name] for name in result if name not in told}
    )
    return {
        "version": __version__,
        "folder": run.folder,
        "study": study,
        "figure": figure,
        "meta": _meta(result),
        "counted": _counted(result, rows),
        "outlined": bool(study["base"]) and isinstance(figure, Heatmap),
        "failures": [
            f"{cell['variant']}, seed {cell['seed']}: {cell['error']}"
            for cell in result["cells"]
            if "error" in cell
        ],
        "accuracy": _is_accuracy(study),
        "columns": [study["axes"][axis] for axis in axes],
        "rows": [_row(row, study, axes) for row in rows],
        "cost": cost(plain),
        "origin": origin(plain),
        "settings": settings(plain),
    }


def _row(row: Row, study: Mapping[str, Any], axes: Sequence[str]) -> dict[str, Any]:
    def digits(value: Real | None, absent: str, count: int = 3) -> str:
        if value is None:
            return absent
        return f"{value:.1f}" if _is_accuracy(study) else number(value, count)

    changed = [f"{name.partition('.')[2]} {say(value)}" for name, value in row["settings"].items()]
    return {
        "variant": row["variant"],
        "base": row["variant"] in study["base"],
        "at": [say(row["at"].get(axis, "–")) for axis in axes],
        "mean": digits(row["mean"], "failed"),
        "sd": digits(row["sd"], "–", 2),
        "n": row["n"],
        "settings": ", ".join(changed) or "nothing",
    }


def _meta(result: Mapping[str, Any]) -> str:
    data, chosen = mapping(result.get("data")), mapping(result["settings"])
    ipc, seeds = mapping(chosen.get("distill")).get("ipc"), chosen.get("seeds", 1)
    parts = [
        f"study {result['study']['name']}",
        f"{data.get('name')}, {ipc} image{'s' if ipc != 1 else ''} per class",
        str(result.get("network")),
        f"{seeds} seed{'s' if seeds != 1 else ''}",
    ]
    return " · ".join(parts)


def _counted(result: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """What mean, sd and n are of, in words."""
    counted, seeds = result["study"]["counted"], mapping(result["settings"]).get("seeds", 1)
    n = f"n{NBSP}={NBSP}{between([row['n'] for row in rows if row['mean'] is not None])}"
    if seeds == 1:
        return (
            f"Mean ± standard deviation over {n} {counted} of one seed; how much one seed differs "
            "from the next is not in it (--seeds gives that)."
        )
    each = between([cell["n"] for cell in result["cells"] if cell.get("mean") is not None])
    return (
        f"Mean ± standard deviation over {n} seeds, each the mean of {each} {counted}. All seeds "
        "share their experts."
    )
