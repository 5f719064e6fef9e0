"""Figures and the page, drawn from a run's files after the fact, never inside a training loop."""

from trajmatch.report.figures import Curve, Figure
from trajmatch.report.page import write_report
from trajmatch.report.scores import ScorePlot

__all__ = ["Curve", "Figure", "ScorePlot", "write_report"]
