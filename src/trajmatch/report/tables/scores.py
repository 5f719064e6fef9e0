"""A run's scores: the figure beside the lead, and the table of all that is known of them."""

from __future__ import annotations

from trajmatch.report.figures.scores import ScorePlot
from trajmatch.report.folder import RunFolder
from trajmatch.report.methods import FULL_DATA, trained_on


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
        labels.append((one_method and score.model) or trained_on(score.method) + other)
    splits = {score.split for score in scores}
    return ScorePlot.of(
        labels,
        scores,
        main=next((index for index, score in enumerate(scores) if score is main), None),
        title=f"{' and '.join(sorted(splits)).capitalize()} accuracy, %",
    )


def score_rows(run: RunFolder) -> list[dict[str, str | bool]]:
    """The run's scores as the page's table shows them."""
    main = run.main
    return [
        {
            "name": trained_on(score.method),
            "main": score is main,
            "ipc": "all" if score.method == FULL_DATA else str(score.ipc or "–"),
            "accuracy": f"{score.mean:.1f}",
            "sd": "–" if score.sd is None else f"{score.sd:.1f}",
            "n": str(score.n),
            "model": score.model or "–",
            "split": score.split,
            "protocol": (score.protocol or "not recorded")
            + (f"; {score.diverged} diverged" if score.diverged else ""),
        }
        for score in run.scores
    ]
