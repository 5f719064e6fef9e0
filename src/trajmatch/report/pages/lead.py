"""The number at the top of a run's page, in words: what it is and what to compare it with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from trajmatch.report.facts import class_sizes
from trajmatch.report.figures.curve import Curve
from trajmatch.report.figures.pictures import clipped_share
from trajmatch.report.folder import RunFolder
from trajmatch.report.methods import ALL_IMAGES, BASELINES, is_chosen, method_facts, method_title
from trajmatch.storage.results import CEILING, EXPERTS, Score
from trajmatch.units import NBSP, number, percent


def lead(run: RunFolder, curves: Sequence[Curve], later: Sequence[Score] = ()) -> dict[str, Any]:
    """`lead`, the main accuracy; `lead_label`, what it is; `beside`, sentences on what other images
    reach and on the pictures; `cautions`, what has to be known to read the number.

    later: scores of evaluations after the run, among which its ceiling may be.
    """
    main = run.main
    if main is None:
        return {**_by_validation(curves), "beside": _clipped(run), "cautions": _cautions(run)}
    labels_alone = method_facts(main.method).labels_alone
    kind = "real" if is_chosen(main.method) or labels_alone else "synthetic"
    count = len(run.distilled) if run.distilled is not None else None
    label = f"{'validation' if main.split == 'val' else main.split} accuracy of "
    label += f"{main.n} fresh networks, each" if main.n > 1 else "one fresh network"
    images = _all_images(run) if main.method in ALL_IMAGES else _these(count, kind)
    label += f" trained on {images}"
    label += ", with learned labels" if labels_alone else ""
    spread = "mean ± standard deviation" if main.sd is not None else "no spread: one network"
    beside = _beside(run, main, count, _ceiling(main, [*run.scores, *later]))
    return {
        "lead": percent(main.mean, main.sd),
        "lead_label": f"{label} ({spread}).{_UNTESTED if untested(run) else ''}",
        "beside": " ".join(filter(None, (beside, _clipped(run)))),
        "cautions": _cautions(run),
    }


_UNTESTED = " Not tested: the test images have not been looked at."


def untested(run: RunFolder) -> bool:
    """Whether the run chose its set on validation images and tested it on no others."""
    return run.distills and run.main is not None and run.main.split == "val"


def _by_validation(curves: Sequence[Curve]) -> dict[str, str]:
    """Of a run that has not been tested."""
    validation = next((curve for curve in curves if curve.name == "validation"), None)
    if validation is None:
        return {"lead": "", "lead_label": "No accuracy has been measured."}
    rows = [row for row in validation.frame() if math.isfinite(row["validation"])]
    best = max(rows, key=lambda row: float(row["validation"]))
    nets = f" of {best['n']} fresh networks" if best["n"] else ""
    label = f"validation accuracy{nets} at iteration {best['iteration']:,}, the best so far. "
    label += "Test accuracy has not been measured."
    return {"lead": percent(best["validation"], best["sd"]), "lead_label": label}


def _beside(run: RunFolder, main: Score, count: int | None, ceiling: Score | None) -> str:
    """What other images reach, in a few sentences; empty when nothing else was measured."""
    baselines = {name: run.score(name) for name in BASELINES}
    others = {name: one for name, one in baselines.items() if one is not None and one is not main}
    parts = [
        f"as many real images {BASELINES[name]} reach {_reach(score)}"
        for name, score in others.items()
    ]
    experts = run.score(EXPERTS)
    if experts is not None and experts is not main:
        epochs = experts.label.partition("(")[2].rstrip(")")
        words = f"the experts, {epochs} on" if epochs else "the experts, on"
        parts.append(f"{words} {_all_images(run)}, reach {_reach(experts)}")
    if ceiling is not None:
        parts.append(f"networks trained to the end on {_all_images(run)} reach {_reach(ceiling)}")
    text = "; ".join(parts)
    text = text[:1].upper() + text[1:] + "." if text else ""
    if others:
        name = list(others)[-1]  # herding, where it was measured
        text = f"{_difference(main, others[name])} {method_title(name)}. {text}"
    train = run.result.data.train if run.result.data is not None else None
    # A set that loses to chosen images carries nothing worth a sentence.
    wins = main.mean > max((score.mean for score in others.values()), default=0.0)
    if ceiling is not None and ceiling.mean > 0 and wins and count and train:
        share, reached = number(100 * count / train, 2), 100 * main.mean / ceiling.mean
        text += f" So {share}{NBSP}% of the images carry {reached:.0f}{NBSP}% of that accuracy."
    return text


def _ceiling(main: Score, scores: Sequence[Score]) -> Score | None:
    """The accuracy of the main score's network trained to the end on all images; of several the
    one of the most networks."""
    found = [
        score
        for score in scores
        if score.method == CEILING and (score.model, score.split) == (main.model, main.split)
    ]
    return max(found, key=lambda score: score.n, default=None) if main not in found else None


def _difference(main: Score, other: Score) -> str:
    """`7.4 ± 1.3 points above`; the spread is that of the difference of two networks."""
    points = main.mean - other.mean
    sd = None if main.sd is None or other.sd is None else math.hypot(main.sd, other.sd)
    where = "above" if points >= 0.05 else "below" if points <= -0.05 else "from"
    return f"{percent(abs(points), sd)} points {where}"


def _clipped(run: RunFolder) -> str:
    """How much of the pictures cannot be shown; empty for real images."""
    if run.distilled is None or is_chosen(run.method):
        return ""
    share = 100 * clipped_share(run.distilled)
    words = "None" if share == 0 else f"{number(share, 2)}{NBSP}%"
    return f"{words} of the pictures’ pixel values had to be clipped to be shown."


def _cautions(run: RunFolder) -> list[str]:
    """Classes without images to test on, and classes of very different size."""
    found = []
    if run.main is not None:
        found += [f"{note[0].upper()}{note[1:]}.".replace("+-", "±") for note in run.main.notes]
    sizes = class_sizes(run.result.data)
    return [*found, f"Imbalanced classes: {sizes}."] if sizes else found


def _all_images(run: RunFolder) -> str:
    train = run.result.data.train if run.result.data is not None else None
    return "all training images" if train is None else f"all {train:,} training images"


def _these(count: int | None, kind: str) -> str:
    if count is None:
        return f"the {kind} images alone"
    return f"these {count:,} {kind} images alone" if count != 1 else f"this one {kind} image alone"


def _reach(score: Score) -> str:
    return f"{percent(score.mean, score.sd)}{NBSP}% (n{NBSP}={NBSP}{score.n})"
