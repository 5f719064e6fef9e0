"""Numbers for TensorBoard: `tensorboard --logdir runs` shows every run below that folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trajmatch.errors import MissingExtraError
from trajmatch.storage.jsonl import jsonable


class TensorboardTracker:
    """Writes scalars and events below `out`/tensorboard.

    Raises MissingExtraError when tensorboard is not installed.
    """

    def __init__(self, out: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("tracking with TensorBoard", "tensorboard") from error
        self._writer: Any = SummaryWriter(str(Path(out) / "tensorboard"))
        self._step = 0

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        self._step = step
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, step)

    def event(self, name: str, **values: Any) -> None:
        self._writer.add_text(name, json.dumps(jsonable(values)), self._step)

    def close(self) -> None:
        self._writer.close()
