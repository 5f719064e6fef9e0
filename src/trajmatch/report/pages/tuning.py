"""The page of a tuning: its history, which settings matter, a table of the trials, and the command
that runs the best."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from trajmatch._version import __version__
from trajmatch.errors import FileFormatError
from trajmatch.report.facts import cost, origin, say, settings
from trajmatch.report.figures.history import History
from trajmatch.report.folder import RunFolder
from trajmatch.report.template import render, write_page
from trajmatch.storage.results import Tried, TuningResult
from trajmatch.units import NBSP, Real, duration, number, percent

PAGE = "index.html"


def write_tuning_report(folder: Path | str, out: Path | str | None = None) -> Path:
    """Write the page about the folder of `trajmatch tune` to `out` (default: index.html in it);
    returns that.

    Raises FileFormatError when it holds the result of another command, and MissingExtraError
    without jinja2 or matplotlib.
    """
    folder = Path(folder)
    run = RunFolder.read(folder)
    if not isinstance(run.result, TuningResult):
        raise FileFormatError(
            f"this is the result of `trajmatch {run.result.command}`, not of a tuning; give the "
            "--out of `trajmatch tune`"
        )
    page = render("tuning.html.j2", _context(run, run.result))
    return write_page(page, folder, folder / PAGE if out is None else out)


def _context(run: RunFolder, result: TuningResult) -> dict[str, Any]:
    """Everything the template says."""
    names = list(result.ranges)
    best = result.best_tried
    return {
        "version": __version__,
        "folder": run.folder,
        "meta": _meta(result),
        "figure": History(result.trials),
        "lead": None if best.mean is None else percent(best.mean, best.sd),
        "summary": _lead(result),
        "command": shlex.join(result.command_of(run.folder)),
        "best_folder": run.folder / result.best_folder,
        "importance": [(name, share, percent(100 * share)) for name, share in _shares(result)],
        "names": names,
        "ranges": [(name, str(one), one.log) for name, one in result.ranges.items()],
        "rows": [_row(tried, result, names) for tried in result.trials],
        "errors": [f"trial {t.number}: {t.error}" for t in result.trials if t.error],
        "cost": cost(run),
        "origin": origin(run),
        "settings": settings(run),
    }


def _shares(result: TuningResult) -> list[tuple[str, float]]:
    """The settings by importance, the largest first."""
    return sorted(result.importance.items(), key=lambda pair: -pair[1])


def _row(tried: Tried, result: TuningResult, names: list[str]) -> dict[str, Any]:
    best = tried.number == result.best
    words = {"complete": "complete", "pruned": f"stopped at {tried.iteration:,}"}
    return {
        "number": tried.number,
        "best": best,
        "own": tried.number == 0,
        "mean": "–" if tried.mean is None else percent(tried.mean, tried.sd),
        "n": tried.n,
        "state": "best" if best else words.get(tried.state, tried.state),
        "seconds": "–" if tried.seconds is None else duration(tried.seconds),
        "settings": [_value(tried.settings.get(name)) for name in names],
    }


def _value(value: Any) -> str:
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    return number(value) if is_number else say(value)


def _meta(result: TuningResult) -> str:
    distill = result.settings.get("distill")
    known = distill if isinstance(distill, dict) else {}
    ipc = known.get("ipc")
    images = f"{ipc} image{'s' if ipc != 1 else ''} per class" if ipc else ""
    parts = [
        str(known.get("method", "")),
        "" if result.data is None else result.data.name,
        images,
        result.network,
        f"{len(result.trials)} trials",
    ]
    return " · ".join(filter(None, parts))


def _lead(result: TuningResult) -> str:
    best, first = result.best_tried, result.first
    n = f"n{NBSP}={NBSP}{best.n}"
    text = f"of the validation images ({n}) with the settings of trial {best.number}"
    if first is best:
        return f"{text}, which are the recipe’s own."
    if first is not None and first.mean is not None:
        return f"{text}, where the recipe’s own reach {percent(first.mean, first.sd)}{NBSP}%."
    return f"{text}."
