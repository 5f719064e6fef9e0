"""What most studies measure: the accuracy of fresh networks trained on the images alone."""

from __future__ import annotations

from trajmatch import pipeline
from trajmatch.runtime.resources import Resources
from trajmatch.studies.study import Row, Subject


def accuracy(subject: Subject) -> list[Row]:
    """Test accuracy of `config.evaluate.n` fresh networks of the experts' kind, in percent."""
    (score,) = pipeline.evaluate(
        subject.distilled,
        subject.data,
        networks=[subject.library.spec],
        config=subject.config.evaluate,
        seed=subject.seed,
        resources=Resources(subject.device),
    )
    return [score.to_json()]
