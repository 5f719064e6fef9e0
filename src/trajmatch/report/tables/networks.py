"""The table across networks: how well the same images train networks of other kinds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trajmatch.report.figures.scores import ScorePlot
from trajmatch.report.folder import RunFolder
from trajmatch.report.methods import ALL_IMAGES, trained_on
from trajmatch.report.tables.evaluations import LaterScore
from trajmatch.report.tables.scores import chance_of
from trajmatch.storage.results import Score
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


def network_tables(run: RunFolder, later: Sequence[LaterScore] = ()) -> list[NetworkTable]:
    """A table for each method, split and protocol (but for the learning rate) under which more than
    one network was tested, or that is of `later` alone.

    later: scores of evaluations of the run's set after the run. Of a network that was tested twice
        alike, the score of more networks is shown.
    """
    groups: dict[tuple[str, str, str, str], list[LaterScore]] = {}
    for found in [*(LaterScore(score, "") for score in run.scores), *later]:
        score = found.score
        ipc = f"{score.ipc} per class" if score.ipc else ""
        rows = groups.setdefault((trained_on(score), ipc, score.split, _protocol(score)), [])
        twin = next((i for i, row in enumerate(rows) if _alike(row.score, score)), None)
        if twin is None:
            rows.append(found)
        elif score.n > rows[twin].score.n:
            rows[twin] = found
    return [
        _table(run, key, rows)
        for key, rows in groups.items()
        if len({row.score.model for row in rows}) > 1 or any(row.place for row in rows)
    ]


def _alike(one: Score, other: Score) -> bool:
    return (one.model, one.protocol) == (other.model, other.protocol)


def _protocol(score: Score) -> str:
    """How networks were trained, without the learning rate, which has a column of its own."""
    if score.lr is None:
        return score.protocol
    found = f"{score.lr:.3g} {score.lr_origin}".rstrip()
    return score.protocol.replace(f", lr {found}, ", ", ", 1)


def _table(
    run: RunFolder, key: tuple[str, str, str, str], found: Sequence[LaterScore]
) -> NetworkTable:
    name, ipc, split, protocol = key
    chosen = found[0].score.method in ALL_IMAGES
    words = ", ".join(filter(None, (f"Trained on {name}" if chosen else f"Images {name}", ipc)))
    caption = f"{words}: {split} accuracy in percent, mean and standard deviation over n."
    scores = [row.score for row in found]
    labels = [score.model or "–" for score in scores]
    origins = sorted({score.lr_origin for score in scores if score.lr_origin})
    notes = [f"* Learning rate {origin}." for origin in origins]
    if any(_learned(score, run) for score in scores):
        notes.append("† The step size learned with the images.")
    if places := sorted({row.place for row in found if row.place}):
        notes.append(f"Tested after the run, in {', '.join(places)}.")
    return NetworkTable(
        f"{caption} {protocol}." if protocol else caption,
        tuple(_row(score, run) for score in scores),
        tuple(notes),
        ScorePlot.of(
            labels, scores, name="networks", title=words, **chance_of(scores[0], len(run.classes))
        ),
    )


def _row(score: Score, run: RunFolder) -> dict[str, str | bool]:
    mark = "*" if score.lr_origin else "†" if _learned(score, run) else ""
    diverged = f" ({score.diverged} diverged)" if score.diverged else ""
    main = run.main
    return {
        "model": score.model or "–",
        "parameters": "–" if score.parameters is None else f"{score.parameters:,}",
        "lr": "–" if score.lr is None else f"{number(score.lr)}{mark}",
        "accuracy": percent(score.mean, score.sd),
        "n": f"{score.n}{diverged}",
        "main": main is not None and (score.model, score.method) == (main.model, main.method),
    }


def _learned(score: Score, run: RunFolder) -> bool:
    """Whether networks were trained at the step size of the set that is shown."""
    own = None if run.distilled is None else run.distilled.step_size
    return own is not None and score.lr == own and not score.lr_origin
