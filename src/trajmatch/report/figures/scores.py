"""Accuracies beside one another, drawn as the page and a paper show them."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from trajmatch.methods import METHODS
from trajmatch.report.figures.axes import END, WIDTH, Scale, every
from trajmatch.report.figures.figure import Figure, Row
from trajmatch.report.folder import BASELINES, RunFolder, is_chosen, mapping
from trajmatch.units import NBSP, percent


@dataclass(frozen=True)
class ScorePlot(Figure):
    """Accuracies beside one another: mean, standard deviation, and each network's own."""

    labels: tuple[str, ...]
    scores: tuple[Row, ...]
    """Dicts with mean, sd, n, values (percent), as result.json holds them."""
    main: int | None = None
    """Index of the one that the page is about."""
    name: str = "scores"
    title: str = "Test accuracy, %"

    def frame(self) -> list[Row]:
        names = ["method", "model", "parameters", "lr", "ipc", "n", "mean", "sd", "split"]
        names += ["protocol", "values"]
        return [{name: score.get(name) for name in names} for score in self.scores]

    def summary(self) -> str:
        reached = [f"{percent(s['mean'], s.get('sd'))}{NBSP}%" for s in self.scores]
        pairs = zip(self.labels, reached, strict=True)
        return "; ".join(f"{label} {text}" for label, text in pairs) + "."

    def svg(self) -> str:
        left, right, row = 12, 348, 44
        bottom = 8 + row * len(self.scores)
        x = Scale(0, 100, left, right)
        parts = [
            f'<svg class="chart" viewBox="0 0 {WIDTH} {bottom + 22}" role="img" '
            f'aria-label="{escape(self.title)}: {escape(self.summary())}">'
        ]
        for tick in (0, 25, 50, 75, 100):
            anchor = {0: "start", 100: "end"}.get(tick, "middle")
            parts.append(f'<path class="grid" d="M{x(tick)} 4V{bottom}"/>')
            parts.append(
                f'<text class="tick" x="{x(tick)}" y="{bottom + 16}" text-anchor="{anchor}">'
                f"{tick}{' %' if tick == 100 else ''}</text>"
            )
        for i, (label, score) in enumerate(zip(self.labels, self.scores, strict=True)):
            kind = " main" if i == self.main else ""
            text_y, dot_y = 8 + row * i + 14, 8 + row * i + 28
            mean, sd = float(score["mean"]), score.get("sd")
            parts.append(
                f'<g class="score{kind}"><path class="bar" d="M{left} {dot_y}H{x(mean)}"/>'
            )
            parts += [
                f'<circle class="one" cx="{x(value)}" cy="{dot_y}" r="1.8"/>'
                for value in every(score.get("values") or [], 50)
            ]
            if sd:
                lo, hi = x(max(0.0, mean - sd)), x(min(100.0, mean + sd))
                parts.append(
                    f'<path class="spread" d="M{lo} {dot_y}H{hi}M{lo} {dot_y - 4}v8M{hi} '
                    f'{dot_y - 4}v8"/>'
                )
            parts.append(f'<circle class="mean" cx="{x(mean)}" cy="{dot_y}" r="4.5"/>')
            parts.append(
                f'<text class="name" x="{left}" y="{text_y}">{escape(label)}</text>'
                f'<text class="value" x="{right}" y="{text_y}" {END}>{percent(mean, sd)}</text></g>'
            )
        return "".join(parts) + "</svg>"

    def _draw(self, axes: Any) -> None:
        rows = range(len(self.scores))
        means = [float(score["mean"]) for score in self.scores]
        spread = [score.get("sd") or 0.0 for score in self.scores]
        axes.errorbar(means, list(rows), xerr=spread, fmt="o", capsize=3)
        axes.set_yticks(list(rows), self.labels)
        axes.invert_yaxis()
        axes.set_xlim(0, 100)


def score_plot(run: RunFolder) -> ScorePlot | None:
    """The run's scores, each bar named by what it differs in from the others."""
    scores = run.scores
    if not scores:
        return None
    main = run.main
    usual = (main or scores[0]).get("model")
    one_method = len(scores) > 1 and len({score.get("method") for score in scores}) == 1
    labels = []
    for score in scores:
        network = network_name(score.get("model"))
        other = "" if score.get("model") in (usual, None) else f" → {network}"
        labels.append((one_method and network) or score_name(score) + other)
    splits = {str(score.get("split") or "test") for score in scores}
    title = f"{' and '.join(sorted(splits)).capitalize()} accuracy, %"
    index = next((i for i, score in enumerate(scores) if score is main), None)
    return ScorePlot(tuple(labels), tuple(scores), index, title=title)


def score_rows(run: RunFolder) -> list[dict[str, str | bool]]:
    """The run's scores as the page's table shows them."""
    return [
        {
            "name": score_name(score),
            "main": score is run.main,
            "ipc": "all" if score.get("method") == "full data" else str(score.get("ipc") or "–"),
            "accuracy": f"{score['mean']:.1f}",
            "sd": "–" if score.get("sd") is None else f"{score['sd']:.1f}",
            "n": str(score.get("n") or "–"),
            "model": network_name(score.get("model")) or "–",
            "split": str(score.get("split") or "test"),
            "protocol": str(score.get("protocol") or "not recorded")
            + (f"; {score['diverged']} diverged" if score.get("diverged") else ""),
        }
        for score in run.scores
    ]


def score_name(score: Row) -> str:
    """What the networks of a score were trained on."""
    method = str(score.get("method") or "unnamed")
    if is_chosen(method):
        return BASELINES.get(method, f"real images, {method}")
    return f"distilled by {method.upper() if method in METHODS else method}"


def network_name(value: Any) -> str:
    """A network as a result describes it: in words, or as a table of its settings."""
    return str(mapping(value).get("name", value)) if value else ""
