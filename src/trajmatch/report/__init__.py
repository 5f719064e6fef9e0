"""Figures and the page, drawn from a run's files after the fact, never inside a training loop."""

from trajmatch.report.figures.curve import Curve
from trajmatch.report.figures.figure import Figure
from trajmatch.report.figures.scores import ScorePlot
from trajmatch.report.pages.run import write_report

__all__ = ["Curve", "Figure", "ScorePlot", "write_report"]
