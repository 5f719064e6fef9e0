"""One self-contained HTML file about a run: what it reached, what it made, how, and at what cost.

Everything is read from the run's folder, later evaluations inside it included. What is not
there is named on the page, and the rest is shown; numbers are never filled in.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from trajmatch._version import __version__
from trajmatch.methods import METHODS
from trajmatch.report.facts import cost, origin, settings
from trajmatch.report.figures.figure import Curve, Row
from trajmatch.report.figures.pictures import gallery, pictures_of, snapshot_paths, timeline
from trajmatch.report.figures.scores import network_name, score_plot, score_rows
from trajmatch.report.folder import (
    BASELINES,
    RunFolder,
    is_chosen,
    mapping,
    number_or_nan,
    optional,
)
from trajmatch.report.tables.evaluations import Evaluations
from trajmatch.report.tables.networks import network_tables
from trajmatch.report.template import render, write_page
from trajmatch.units import NBSP, number, percent


def write_report(run: Path | str, out: Path | str | None = None) -> Path:
    """Write the page about the folder `run` to `out` (default: report.html in it); returns that.

    The file appears whole or not at all, needs no network, and is the same bytes for the same run.
    Takes a second or two; the page weighs what its pictures weigh, at most some 9 MB. Raises
    DataError when `run` is not a run folder, FileFormatError when its result or log is damaged, and
    MissingExtraError without jinja2. A damaged set or snapshot is reported on the page instead.
    """
    run = Path(run)
    found = RunFolder.read(run)
    if found.command == "study":
        from trajmatch.report.pages.study import write_study_report

        return write_study_report(run, out)
    return write_page(render("page.html.j2", _context(found)), run, out)


def _context(run: RunFolder) -> dict[str, Any]:
    """Everything the template says."""
    later = Evaluations.inside(run)
    if run.result and not run.scores:  # it was made without a test
        run = dataclasses.replace(run, result={**run.result, "scores": list(later.scores)})
    curves = _curves(run)
    scores = score_plot(run)
    pictures = strip = None
    problems = [*run.problems, *later.problems]
    if run.small is not None:
        pictures = gallery(*pictures_of(run.small), run.small.classes)
    if run.classes:
        strip = timeline(run.folder / "snapshots", run.classes)
    if strip is not None:
        problems += strip.unreadable
        # Of a method that learns labels alone all frames are one.
        strip = strip if len({frame.url for frame in strip.frames}) > 1 else None
    return {
        "run": run,
        "version": __version__,
        **_title(run),
        **_lead(run, curves),
        "missing": _missing(run, curves, strip is not None) + later.notes(run.folder),
        "problems": problems,
        "gallery": pictures,
        "pictures_intro": _pictures_intro(run),
        "timeline": strip,
        "curves": curves,
        "scores": scores,
        "score_rows": score_rows(run),
        "network_tables": network_tables(run, later.scores),
        "snippet": _snippet(run),
        "cost": cost(run),
        "origin": origin(run),
        "settings": settings(run),
    }


def _title(run: RunFolder) -> dict[str, str]:
    main = run.main or {}
    made = run.small.info if run.small is not None else {}
    method = _method(run)
    data = mapping(run.result.get("data")).get("name") or mapping(made.get("data")).get("name")
    data = data or run.setting("data", "data")
    ipc = main.get("ipc") or (run.small.ipc if run.small else run.setting("distill", "ipc"))
    network = run.result.get("network") or main.get("model") or made.get("network")
    network = network or run.setting("network", "network")
    title = str(data or run.folder.resolve().name)
    if ipc:
        title += f", {ipc} image{'s' if ipc != 1 else ''} per class"
    return {
        "title": title,
        "method": _words(method),
        "network": network_name(network),
    }


def _words(method: str) -> str:
    if method in METHODS:
        return METHODS[method].title
    return "random choice" if method == "random" else method


def _method(run: RunFolder) -> str:
    """What made or chose the images, or what else was done; empty where nothing tells."""
    made = run.small.info if run.small is not None else {}
    method = (run.main or {}).get("method") or made.get("method")
    method = method or (run.setting("distill", "method") if run.distills else None)
    return str(method or ("" if run.distills else run.command))


def _lead(run: RunFolder, curves: list[Curve]) -> dict[str, str]:
    """The number everybody looks for, what it is, and what it is to be compared with."""
    main = run.main
    if main is None:
        return _lead_by_validation(curves)
    n, method = main.get("n"), main.get("method")
    kind = "real" if is_chosen(method) or method == "ld" else "synthetic"
    count = len(run.small) if run.small is not None else None
    label = f"{main.get('split') or 'test'} accuracy of "
    label += f"{n} fresh networks, each" if n and n > 1 else "one fresh network"
    label += f" trained on {_all_images(run) if method == 'full data' else _these(count, kind)}"
    label += ", with learned labels" if method == "ld" else ""
    spread = "mean ± standard deviation" if main.get("sd") is not None else "no spread: one network"
    return {
        "lead": percent(main["mean"], main.get("sd")),
        "lead_label": f"{label} ({spread}).",
        "beside": _beside(run, main, count),
    }


def _lead_by_validation(curves: list[Curve]) -> dict[str, str]:
    validation = next((curve for curve in curves if curve.name == "validation"), None)
    if validation is None:
        return {"lead": "", "lead_label": "No accuracy has been measured.", "beside": ""}
    rows = [row for row in validation.frame() if math.isfinite(row["validation"])]
    best = max(rows, key=lambda row: row["validation"])
    nets = f" of {best['n']} fresh networks" if best["n"] else ""
    label = f"validation accuracy{nets} at iteration {best['iteration']:,}, the best so far. "
    label += "Test accuracy has not been measured."
    return {"lead": percent(best["validation"], best["sd"]), "lead_label": label, "beside": ""}


def _beside(run: RunFolder, main: Row, count: int | None) -> str:
    """What other images reach, in one or two sentences; empty when nothing else was measured."""
    parts = []
    for name, words in (("random", "picked at random"), ("herding", "picked by herding")):
        if (found := run.score(name)) is not None and found is not main:
            parts.append(f"as many real images {words} reach {_reach(found)}")
    full = run.score("full data")
    if full is main:
        full = None
    if full is not None:
        # The ceiling is that of experts as long as these: a few epochs do not exhaust the data.
        epochs = mapping(run.result.get("library")).get("epochs")
        within = f" in the experts’ {epochs} epochs" if isinstance(epochs, int) else ""
        parts.append(f"{_all_images(run)} reach {_reach(full)}{within}")
    text = "; ".join(parts)
    text = text[:1].upper() + text[1:] + "." if text else ""
    train = mapping(run.result.get("data")).get("train")
    chosen = [run.score(name) for name in ("random", "herding")]
    others = [found["mean"] for found in chosen if found is not None and found is not main]
    # A set that loses to chosen images carries nothing worth a sentence.
    wins = main["mean"] > max(others, default=0)
    if full is not None and full["mean"] > 0 and wins and count and isinstance(train, int):
        share, kept = number(100 * count / train, 2), 100 * main["mean"] / full["mean"]
        text += f" So {share}{NBSP}% of the images carry {kept:.0f}{NBSP}% of that accuracy."
    return text


def _all_images(run: RunFolder) -> str:
    train = mapping(run.result.get("data")).get("train")
    return f"all {train:,} training images" if isinstance(train, int) else "full data"


def _these(count: int | None, kind: str) -> str:
    if count is None:
        return f"the {kind} images alone"
    return f"these {count:,} {kind} images alone" if count != 1 else f"this one {kind} image alone"


def _reach(score: Row) -> str:
    n = f" (n{NBSP}={NBSP}{score['n']})" if score.get("n") else ""
    return f"{percent(score['mean'], score.get('sd'))}{NBSP}%{n}"


def _missing(run: RunFolder, curves: list[Curve], moving: bool) -> list[str]:
    """What a reader could expect here and will not find, and how to get it."""
    notes = []
    if not run.result:
        notes.append(
            "This run has not finished: there is no result.json, so no scores, settings or timings "
            "yet. The same command continues it from its last checkpoint."
        )
    if run.small is None and not run.problems and (run.distills or run.command == "select"):
        notes.append("There is no set of images yet (folder best or last).")
    if run.place is not None and run.place.name == "last":
        notes.append("No set has been chosen by validation yet; the images are the latest ones.")
    if run.distills:
        count = len(snapshot_paths(run.folder / "snapshots"))
        if not moving and count < 2:
            found = "There is one snapshot" if count else "There are no snapshots"
            notes.append(f"{found}, so how the images changed cannot be shown.")
        drawn = {curve.name for curve in curves}
        if not run.by_step("loss"):
            notes.append("There is no log of the iterations (log.jsonl), so no loss curve.")
        elif "loss" not in drawn:
            notes.append("Every update was skipped or its loss not finite, so there is no curve.")
        if "validation" not in drawn:
            notes.append("No evaluation on the validation split has been logged.")
    if run.result and not run.scores:
        notes.append("No accuracy has been measured; trajmatch evaluate does that.")
    elif run.result and run.command not in ("select", "experts"):
        absent = [name for name in BASELINES if run.score(name) is None]
        if absent:
            notes.append(f"Not measured in this run: {', '.join(absent)}.")
    return notes


def _curves(run: RunFolder) -> list[Curve]:
    """Loss, step size, and validation accuracy: those that were logged."""
    if not run.distills:
        return []
    chosen = run.result.get("best_iteration")
    lines = run.by_step("loss", "step_size")
    skipped = tuple(step for step, line in lines.items() if line.get("skipped"))
    curves = []
    if any("loss" in line for line in lines.values()):
        method = _method(run)
        level = (1.0, "as far as at the start") if method == "mtt" else None
        values = tuple(number_or_nan(line.get("loss")) for line in lines.values())
        title = f"Loss: {METHODS[method].objective}" if method in METHODS else "Loss"
        loss = Curve("loss", title, tuple(lines), values, skipped=skipped, chosen=chosen)
        curves.append(dataclasses.replace(loss, noisy=True, level=level))
    if any("step_size" in line for line in lines.values()):
        values = tuple(number_or_nan(line.get("step_size")) for line in lines.values())
        if len(set(values)) > 1 or len(values) == 1:  # else it was held fixed
            title = "Learned step size"
            curves.append(Curve("step_size", title, tuple(lines), values, chosen=chosen))
    judged = run.by_step("val_mean")
    if judged:
        counts = {line.get("val_n") for line in judged.values()}
        curves.append(
            Curve(
                "validation",
                "Validation accuracy, %",
                tuple(judged),
                tuple(number_or_nan(line.get("val_mean")) for line in judged.values()),
                sd=tuple(optional(line.get("val_sd")) for line in judged.values()),
                n=counts.pop() if len(counts) == 1 else None,
                chosen=chosen,
                unit=f"{NBSP}%",
            )
        )
    return [curve for curve in curves if curve.points()]


def _pictures_intro(run: RunFolder) -> str:
    if run.small is None:
        return ""
    small, best = run.small, run.result.get("best_iteration")
    shown, kind = (small.images, "image") if small.canvases is None else (small.canvases, "texture")
    count = len(shown)
    text = f"{count:,} {kind}{'s' if count != 1 else ''} of {shown.shape[3]} × "
    text += f"{shown.shape[2]} pixels, "
    text += "gray. " if shown.shape[1] == 1 else "color. "
    if small.canvases is not None:
        text += "Each is shown three by three: it goes on where it ends. Networks are trained on "
        text += f"{len(small):,} crops of {small.images.shape[3]} × {small.images.shape[2]} pixels "
        text += "that cover them. "
    if run.place is not None and run.folder not in (run.place, run.place.parent):
        judged = mapping(run.result.get("set")).get("fingerprint")
        changed = " as it is now" if judged is None else ", which has changed since it was tested"
        text += f"Read from {run.place}{'' if judged == small.fingerprint else changed}. "
    elif run.place is not None and run.place.name == "best" and best is not None:
        text += f"Taken from iteration {best:,}, the best on the validation split. "
    if small.is_soft:
        alone = _method(run) == "ld"
        text += (
            "The labels were learned, and the images stay as they were"
            if alone
            else ("The labels were learned too")
        )
        text += ": under each image, its two likeliest classes. "
    text += f"Shown with the whitening ({small.whitening.name}) undone and values clipped to what "
    return text + "a screen can show; networks train on the whitened, unclipped numbers."


def _snippet(run: RunFolder) -> str:
    if run.small is None or run.place is None:
        return ""
    small, shape = run.small, ", ".join(map(str, run.small.images.shape))
    labels = f"probabilities [{len(small)}, {len(small.classes)}]" if small.is_soft else "indices"
    lines = [
        "import trajmatch",
        "from torch.utils.data import DataLoader",
        "",
        f"small = trajmatch.load_distilled({str(run.place)!r})",
        f"small.images     # float32 [{shape}], whitened: train on them as they are",
        f"small.labels     # class {labels}; names in small.classes",
    ]
    if small.step_size is not None:
        rate = "to train at" if run.setting("distill", "lr_lr") == 0 else "learned"
        lines.append(f"small.step_size  # {number(small.step_size)}: the learning rate {rate}")
    lines += [
        "loader = DataLoader(small, batch_size=256, shuffle=True)",
        "",
        "# images to predict, as floats in [0, 1], need the same whitening:",
        "inputs = small.whitening.apply(images)",
    ]
    return "\n".join(lines)
