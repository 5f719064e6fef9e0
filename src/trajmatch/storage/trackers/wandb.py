"""Numbers for Weights & Biases, with the account and mode that `wandb` itself is configured for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trajmatch.errors import MissingExtraError
from trajmatch.storage.jsonl import jsonable


class WandbTracker:
    """One W&B run named after the folder `out`, in the project WANDB_PROJECT (or trajmatch).

    A resumed run is a new W&B run, since W&B accepts each step once. Raises MissingExtraError if
    wandb is not installed.
    """

    def __init__(self, out: str | Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise MissingExtraError("tracking with Weights & Biases", "wandb") from error
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        project = os.environ.get("WANDB_PROJECT", "trajmatch")
        self._run: Any = wandb.init(project=project, name=out.resolve().name, dir=str(out))

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self._run.log(dict(values), step=step)

    def event(self, name: str, **values: Any) -> None:
        self._run.summary.update({name: jsonable(values)})

    def close(self) -> None:
        self._run.finish()
