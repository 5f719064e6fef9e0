"""A run's scores: the figure beside the lead, and the table of all that is known of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trajmatch.report.figures.scores import ScorePlot
from trajmatch.report.folder import RunFolder
from trajmatch.report.methods import ALL_IMAGES, trained_on
from trajmatch.storage.results import Score
from trajmatch.storage.results.classes import majority
from trajmatch.units import percent


def score_plot(run: RunFolder) -> ScorePlot | None:
    """The run's scores, each line named by what it differs in from the others."""
    scores, main = run.scores, run.main
    if not scores:
        return None
    usual = (main or scores[0]).model
    one_method = len(scores) > 1 and len({score.method for score in scores}) == 1
    labels = []
    for score in scores:
        other = "" if score.model in (usual, "") else f" → {score.model}"
        labels.append((one_method and score.model) or trained_on(score) + other)
    splits = {score.split for score in scores}
    return ScorePlot.of(
        labels,
        scores,
        main=next((index for index, score in enumerate(scores) if score is main), None),
        **chance_of(main or scores[0], len(run.classes)),
        title=f"{' and '.join(sorted(splits)).capitalize()} accuracy, %",
    )


def chance_of(score: Score, classes: int) -> dict[str, Any]:
    """What a plot says of chance: one of the classes drawn at random, or where these differ much,
    always the largest; nothing where `classes` is 0, not known."""
    if score.is_imbalanced:
        return {"chance": majority(score.tests), "chance_words": "always the largest class"}
    return {"chance": 100 / classes} if classes else {}


def score_rows(run: RunFolder) -> list[dict[str, str | bool]]:
    """The run's scores as the page's table shows them; `balanced` is empty where it says nothing
    beyond the accuracy."""
    main = run.main
    balanced = any(score.is_imbalanced and score.balanced is not None for score in run.scores)
    return [
        {
            "name": trained_on(score),
            "main": score is main,
            "ipc": "all" if score.method in ALL_IMAGES else str(score.ipc or "–"),
            "accuracy": f"{score.mean:.1f}",
            "sd": "–" if score.sd is None else f"{score.sd:.1f}",
            "n": str(score.n),
            "balanced": _balanced(score) if balanced else "",
            "model": score.model or "–",
            "split": score.split,
            "protocol": (score.protocol or "not recorded")
            + (f"; {score.diverged} diverged" if score.diverged else ""),
        }
        for score in run.scores
    ]


def caveats(scores: Sequence[Score]) -> list[str]:
    """What has to be known of the images that the networks of `scores` were tested on, a sentence
    each."""
    found = dict.fromkeys(caveat for score in scores for caveat in score.caveats)
    return [f"{text[0].upper()}{text[1:]}." for text in found]


def _balanced(score: Score) -> str:
    return "–" if score.balanced is None else percent(score.balanced, score.balanced_sd)
