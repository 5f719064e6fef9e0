"""What most studies measure: how well fresh networks do that were trained on the images alone."""

from __future__ import annotations

from trajmatch import pipeline
from trajmatch.studies.study import Made, Row


def accuracy(made: Made) -> list[Row]:
    """Test accuracy of `config.evaluate.n` fresh networks of the experts' kind, in percent."""
    (score,) = pipeline.evaluate(
        made.small,
        made.data,
        networks=[made.library.spec],
        config=made.config.evaluate,
        seed=made.seed,
        device=made.device,
    )
    return [score.to_json()]
