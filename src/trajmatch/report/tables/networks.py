"""The table across networks: how well the same images train networks of other kinds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trajmatch.report.figures.figure import Row
from trajmatch.report.figures.scores import ScorePlot, network_name, score_name
from trajmatch.report.folder import RunFolder, optional
from trajmatch.units import number, percent


@dataclass(frozen=True)
class NetworkTable:
    """How one method's images do on several networks, under one protocol."""

    caption: str
    rows: tuple[dict[str, str | bool], ...]
    """model, parameters, lr, accuracy, n as they are shown; main: of the page's main network."""
    notes: tuple[str, ...]
    """What the marks at learning rates mean, and where scores were found."""
    figure: ScorePlot
    """The numbers behind."""


def network_tables(run: RunFolder, later: Sequence[Row] = ()) -> list[NetworkTable]:
    """A table for each method, split and protocol (but for the learning rate) under which more than
    one network was tested, or that is of `later` alone.

    later: what evaluations found out about the run's set after it, as `Evaluations.scores`. Of a
    network that was tested twice alike, the score of more networks is shown.
    """
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for score in [*run.scores, *later]:
        split, ipc = str(score.get("split") or "test"), score.get("ipc")
        key = (score_name(score), f"{ipc} per class" if ipc else "", split, _protocol(score))
        rows = groups.setdefault(key, [])
        twin = next((i for i, row in enumerate(rows) if _alike(row, score)), None)
        if twin is None:
            rows.append(score)
        elif (score.get("n") or 0) > (rows[twin].get("n") or 0):
            rows[twin] = score
    return [
        _table(run, *key, rows)
        for key, rows in groups.items()
        if len({row.get("model") for row in rows}) > 1 or any("place" in row for row in rows)
    ]


def _alike(one: Row, other: Row) -> bool:
    return all(one.get(name) == other.get(name) for name in ("model", "protocol"))


def _protocol(score: Row) -> str:
    """How networks were trained, without the learning rate, which has a column of its own."""
    lr, text = optional(score.get("lr")), str(score.get("protocol") or "")
    if lr is None:
        return text
    found = f"{lr:.3g} {score['lr_origin']}" if score.get("lr_origin") else f"{lr:.3g}"
    return text.replace(f", lr {found}, ", ", ", 1)


def _table(
    run: RunFolder, name: str, ipc: str, split: str, protocol: str, scores: list[Row]
) -> NetworkTable:
    words = ", ".join(filter(None, (f"Images {name}", ipc)))
    caption = f"{words}: {split} accuracy in percent, mean and standard deviation over n."
    origins = sorted({str(score["lr_origin"]) for score in scores if score.get("lr_origin")})
    notes = [f"* Learning rate {origin}." for origin in origins]
    if any(_learned(score, run) for score in scores):
        notes.append("† The step size learned with the images.")
    if places := sorted({str(score["place"]) for score in scores if "place" in score}):
        notes.append(f"Tested after the run, in {', '.join(places)}.")
    labels = tuple(network_name(score.get("model")) or "–" for score in scores)
    return NetworkTable(
        f"{caption} {protocol}." if protocol else caption,
        tuple(_row(score, run) for score in scores),
        tuple(notes),
        ScorePlot(labels, tuple(scores), name="networks", title=words),
    )


def _row(score: Row, run: RunFolder) -> dict[str, str | bool]:
    lr, parameters, main = optional(score.get("lr")), score.get("parameters"), run.main or {}
    mark = "*" if score.get("lr_origin") else "†" if _learned(score, run) else ""
    diverged = f" ({score['diverged']} diverged)" if score.get("diverged") else ""
    return {
        "model": network_name(score.get("model")) or "–",
        "parameters": f"{parameters:,}" if isinstance(parameters, int) else "–",
        "lr": "–" if lr is None else f"{number(lr)}{mark}",
        "accuracy": percent(score["mean"], score.get("sd")),
        "n": f"{score.get('n') or '–'}{diverged}",
        "main": all(score.get(name) == main.get(name) for name in ("model", "method")),
    }


def _learned(score: Row, run: RunFolder) -> bool:
    """Whether networks were trained at the step size of the set that is shown."""
    own = None if run.small is None else run.small.step_size
    return own is not None and score.get("lr") == own and not score.get("lr_origin")
