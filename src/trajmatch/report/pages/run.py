"""One self-contained HTML file about a run: its scores, images, course, settings and cost.

Everything is read from the run's folder, later evaluations inside it included. What is missing
there is named on the page, and the rest is shown; numbers are never filled in.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from trajmatch._version import __version__
from trajmatch.pipeline.doctor import Evidence, findings
from trajmatch.report.facts import cost, origin, settings
from trajmatch.report.figures.curve import Curve
from trajmatch.report.figures.pictures import (
    Timeline,
    gallery,
    pictures_of,
    snapshot_paths,
    timeline,
)
from trajmatch.report.folder import RunFolder
from trajmatch.report.methods import COMPARED, method_facts, method_title
from trajmatch.report.pages.curves import run_curves
from trajmatch.report.pages.lead import lead, untested
from trajmatch.report.pages.study import write_study_report
from trajmatch.report.tables.classes import ClassTable
from trajmatch.report.tables.evaluations import Evaluations
from trajmatch.report.tables.networks import network_tables
from trajmatch.report.tables.scores import caveats, score_plot, score_rows
from trajmatch.report.template import render, write_page
from trajmatch.storage.results import EvaluationResult, StudyResult
from trajmatch.units import number


def write_report(run: Path | str, out: Path | str | None = None) -> Path:
    """Write the page about the folder `run` to `out` (default: report.html in it); returns that.

    The file appears whole or not at all, needs no network, and is the same bytes for the same run.
    Takes a second or two; the page weighs what its pictures weigh, at most some 9 MB. Raises
    DataError when `run` is not a run folder, FileFormatError when its result or log is damaged, and
    MissingExtraError without jinja2 or matplotlib. A damaged set or snapshot is reported on the
    page instead.
    """
    run = Path(run)
    found = RunFolder.read(run)
    if isinstance(found.result, StudyResult):
        return write_study_report(run, out)
    return write_page(render("page.html.j2", _context(found)), run, out)


def _context(run: RunFolder) -> dict[str, Any]:
    """Everything the template says."""
    later = Evaluations.inside(run)
    if run.finished and not run.scores:  # the run did not test its set
        scores = tuple(found.score for found in later.scores)
        run = dataclasses.replace(run, result=dataclasses.replace(run.result, scores=scores))
    curves = run_curves(run)
    strip, unreadable = _timeline(run)
    pictures = None
    if run.distilled is not None:
        pictures = gallery(*pictures_of(run.distilled), run.distilled.classes)
    return {
        "run": run,
        "version": __version__,
        **_title(run),
        **lead(run, curves, [found.score for found in later.scores]),
        "missing": _missing(run, curves, strip is not None) + later.notes(run.folder),
        "findings": findings(Evidence.of(run.log, run.result, run.distilled)),
        "problems": [*run.problems, *later.problems, *unreadable],
        "gallery": pictures,
        "pictures_intro": _pictures_intro(run),
        "timeline": strip,
        "curves": curves,
        "scores": score_plot(run),
        "score_rows": score_rows(run),
        "caveats": caveats(run.scores),
        "by_class": ClassTable.of(run),
        "network_tables": network_tables(run, later.scores),
        "snippet": _snippet(run),
        "cost": cost(run),
        "origin": origin(run),
        "settings": settings(run),
    }


def _timeline(run: RunFolder) -> tuple[Timeline | None, tuple[str, ...]]:
    """The images over time, where they changed, and which snapshots could not be read."""
    strip = timeline(run.folder / "snapshots", run.classes) if run.classes else None
    if strip is None:
        return None, ()
    # Of a method that learns labels alone all frames are one.
    moving = len({frame.url for frame in strip.frames}) > 1
    return strip if moving else None, strip.unreadable


def _title(run: RunFolder) -> dict[str, str]:
    main, data, recorded = run.main, run.result.data, run.info.get("data")
    name = (data.name if data is not None else "") or (
        recorded.get("name") if isinstance(recorded, dict) else None
    )
    ipc = main.ipc if main is not None else None
    ipc = ipc or (run.distilled.ipc if run.distilled else run.setting("distill", "ipc"))
    network = run.result.network or (main.model if main is not None else "")
    network = (
        network or _network_words(run.info.get("network")) or run.setting("network", "network")
    )
    title = str(name or run.setting("data", "data") or run.folder.resolve().name)
    if run.distilled is not None and "to" in run.distilled.ipc_words:  # a share of each class
        title += f", {run.distilled.ipc_words} images per class"
    elif ipc:
        title += f", {ipc} image{'s' if ipc != 1 else ''} per class"
    title_of = run.info.get("title")  # recorded by the method that made the set
    method = title_of if isinstance(title_of, str) and title_of else method_title(run.method)
    return {"title": title, "method": method, "network": str(network or "")}


def _network_words(recorded: Any) -> str:
    """The network that a set records: in words, or as a table of its settings."""
    if isinstance(recorded, dict):
        recorded = recorded.get("name")
    return recorded if isinstance(recorded, str) else ""


def _missing(run: RunFolder, curves: list[Curve], moving: bool) -> list[str]:
    """What a reader could expect here and will not find, and how to get it."""
    notes = []
    if not run.finished:
        notes.append(
            "This run has not finished: there is no result.json, so no scores, settings or timings "
            "yet. The same command continues it from its last checkpoint."
        )
    if run.distilled is None and not run.problems and (run.distills or run.command == "select"):
        notes.append("There is no set of images yet (folder best or last).")
    if run.place is not None and run.place.name == "last":
        notes.append("No set has been chosen by validation yet; the images are the latest ones.")
    if run.distills:
        count = len(snapshot_paths(run.folder / "snapshots"))
        if not moving and count < 2:
            found = "There is one snapshot" if count else "There are no snapshots"
            notes.append(f"{found}, so how the images changed cannot be shown.")
        drawn = {curve.name for curve in curves}
        if not run.log.iterations:
            notes.append("There is no log of the iterations (log.jsonl), so no loss curve.")
        elif "loss" not in drawn:
            notes.append("Every update was skipped or its loss not finite, so there is no curve.")
        if "validation" not in drawn:
            notes.append("No evaluation on the validation split has been logged.")
    if run.finished and not run.scores:
        notes.append("No accuracy has been measured; trajmatch evaluate does that.")
    elif untested(run):
        notes.append(
            "The set has not been tested (--no-test), nor have images beside it: trajmatch "
            f"evaluate {run.folder} tests it, once settings are chosen."
        )
    elif run.finished and run.command not in ("select", "experts"):
        absent = [name for name in COMPARED if run.score(name) is None]
        if absent:
            notes.append(f"Not measured in this run: {', '.join(absent)}.")
    return notes


def _pictures_intro(run: RunFolder) -> str:
    if run.distilled is None:
        return ""
    distilled, best = run.distilled, run.result.best_iteration
    shown, kind = distilled.images, "image"
    if distilled.canvases is not None:
        shown, kind = distilled.canvases, "texture"
    count = len(shown)
    text = f"{count:,} {kind}{'s' if count != 1 else ''} of {shown.shape[3]} × "
    text += f"{shown.shape[2]} pixels, "
    text += "gray. " if shown.shape[1] == 1 else "color. "
    if distilled.canvases is not None:
        text += "Each is shown three by three: it goes on where it ends. Networks are trained on "
        height, width = distilled.images.shape[2:]
        text += f"{len(distilled):,} crops of {width} × {height} pixels that cover them. "
    if run.place is not None and run.folder not in (run.place, run.place.parent):
        tested = run.result.fingerprint if isinstance(run.result, EvaluationResult) else ""
        changed = ", which has changed since it was tested" if tested else " as it is now"
        text += f"Read from {run.place}{'' if tested == distilled.fingerprint else changed}. "
    elif run.place is not None and run.place.name == "best" and best is not None:
        text += f"Taken from iteration {best:,}, the best on the validation split"
        text += ". " if best else ": the run was never better than where it began. "
    if distilled.is_soft:
        alone = method_facts(run.method).labels_alone
        text += (
            "The labels were learned, and the images stay as they were"
            if alone
            else "The labels were learned too"
        )
        text += ": under each image, its two likeliest classes. "
    text += (
        f"Shown with the whitening ({distilled.whitening.name}) undone and values clipped to what "
    )
    return text + "a screen can show; networks train on the whitened, unclipped numbers."


def _snippet(run: RunFolder) -> str:
    if run.distilled is None or run.place is None:
        return ""
    distilled, shape = run.distilled, ", ".join(map(str, run.distilled.images.shape))
    labels = (
        f"probabilities [{len(distilled)}, {len(distilled.classes)}]"
        if distilled.is_soft
        else "indices"
    )
    lines = [
        "import trajmatch",
        "from torch.utils.data import DataLoader",
        "",
        f"distilled = trajmatch.load_distilled({str(run.place)!r})",
        f"distilled.images     # float32 [{shape}], whitened: train on them as they are",
        f"distilled.labels     # class {labels}; names in distilled.classes",
    ]
    if distilled.step_size is not None:
        rate = "to train at" if run.setting("distill", "lr_lr") == 0 else "learned"
        step_size = number(distilled.step_size)
        lines.append(f"distilled.step_size  # {step_size}: the learning rate {rate}")
    lines += [
        "loader = DataLoader(distilled, batch_size=256, shuffle=True)",
        "",
        "# images to predict, uint8 or floats in [0, 1], need the same whitening:",
        "inputs = distilled.whitening.apply(images)",
    ]
    return "\n".join(lines)
