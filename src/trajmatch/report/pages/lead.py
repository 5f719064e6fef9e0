"""The number at the top of a run's page, in words: what it is and what to compare it with."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trajmatch.report.figures.curve import Curve
from trajmatch.report.folder import RunFolder
from trajmatch.report.methods import BASELINES, FULL_DATA, is_chosen, method_facts
from trajmatch.storage.results import Score
from trajmatch.units import NBSP, number, percent


def lead(run: RunFolder, curves: Sequence[Curve]) -> dict[str, str]:
    """`lead`, the main accuracy; `lead_label`, what it is; `beside`, what other images reach."""
    main = run.main
    if main is None:
        return _by_validation(curves)
    labels_alone = method_facts(main.method).labels_alone
    kind = "real" if is_chosen(main.method) or labels_alone else "synthetic"
    count = len(run.distilled) if run.distilled is not None else None
    label = f"{'validation' if main.split == 'val' else main.split} accuracy of "
    label += f"{main.n} fresh networks, each" if main.n > 1 else "one fresh network"
    images = _all_images(run) if main.method == FULL_DATA else _these(count, kind)
    label += f" trained on {images}"
    label += ", with learned labels" if labels_alone else ""
    spread = "mean ± standard deviation" if main.sd is not None else "no spread: one network"
    return {
        "lead": percent(main.mean, main.sd),
        "lead_label": f"{label} ({spread}).{_UNTESTED if untested(run) else ''}",
        "beside": _beside(run, main, count),
    }


_UNTESTED = " Not tested: the test images have not been looked at."


def untested(run: RunFolder) -> bool:
    """Whether the run chose its set on validation images and tested it on no others."""
    return run.distills and run.main is not None and run.main.split == "val"


def _by_validation(curves: Sequence[Curve]) -> dict[str, str]:
    """Of a run that has not been tested."""
    validation = next((curve for curve in curves if curve.name == "validation"), None)
    if validation is None:
        return {"lead": "", "lead_label": "No accuracy has been measured.", "beside": ""}
    rows = [row for row in validation.frame() if math.isfinite(row["validation"])]
    best = max(rows, key=lambda row: float(row["validation"]))
    nets = f" of {best['n']} fresh networks" if best["n"] else ""
    label = f"validation accuracy{nets} at iteration {best['iteration']:,}, the best so far. "
    label += "Test accuracy has not been measured."
    return {"lead": percent(best["validation"], best["sd"]), "lead_label": label, "beside": ""}


def _beside(run: RunFolder, main: Score, count: int | None) -> str:
    """What other images reach, in one or two sentences; empty when nothing else was measured."""
    baselines = {name: run.score(name) for name in BASELINES}
    others = {name: one for name, one in baselines.items() if one is not None and one is not main}
    parts = [
        f"as many real images {BASELINES[name]} reach {_reach(score)}"
        for name, score in others.items()
    ]
    full = run.score(FULL_DATA)
    if full is main:
        full = None
    if full is not None:
        # The ceiling is that of experts as long as these: a few epochs do not exhaust the data.
        epochs = run.result.library.epochs if run.result.library is not None else None
        within = f" in the experts’ {epochs} epochs" if epochs is not None else ""
        parts.append(f"{_all_images(run)} reach {_reach(full)}{within}")
    text = "; ".join(parts)
    text = text[:1].upper() + text[1:] + "." if text else ""
    train = run.result.data.train if run.result.data is not None else None
    # A set that loses to chosen images carries nothing worth a sentence.
    wins = main.mean > max((score.mean for score in others.values()), default=0.0)
    if full is not None and full.mean > 0 and wins and count and train:
        share, reached = number(100 * count / train, 2), 100 * main.mean / full.mean
        text += f" So {share}{NBSP}% of the images carry {reached:.0f}{NBSP}% of that accuracy."
    return text


def _all_images(run: RunFolder) -> str:
    train = run.result.data.train if run.result.data is not None else None
    return "all training images" if train is None else f"all {train:,} training images"


def _these(count: int | None, kind: str) -> str:
    if count is None:
        return f"the {kind} images alone"
    return f"these {count:,} {kind} images alone" if count != 1 else f"this one {kind} image alone"


def _reach(score: Score) -> str:
    return f"{percent(score.mean, score.sd)}{NBSP}% (n{NBSP}={NBSP}{score.n})"
