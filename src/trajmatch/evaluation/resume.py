"""What fresh networks came to, in the log of a folder: a killed judging goes on from there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trajmatch.errors import SettingError
from trajmatch.evaluation import Score, Trained
from trajmatch.storage import JsonlTracker, read_log, read_result

_ENTRIES = {"of", "number", "percent", "finite"}
"""What a line on a network needs to be taken up again."""
_TOLD = {"event", "of", "n"}
"""What a line on a score needs to be known again."""


class EvaluationLog:
    """The networks in `out`/log.jsonl, by what determined them; where `out` is None, those that
    this record was told of.

    The log is opened by the first event: a refused evaluation writes nothing.
    """

    def __init__(self, out: Path | None) -> None:
        self.path = None if out is None else out / "log.jsonl"
        self._log: JsonlTracker | None = None
        self._networks: dict[str, dict[int, Trained]] = {}
        self._told: set[tuple[str, str, int]] = set()
        if self.path is not None and self.path.is_file():
            for line in read_log(self.path):
                if line.get("event") == "network" and line.keys() >= _ENTRIES:
                    found = Trained(line["percent"], line["finite"])
                    self._networks.setdefault(line["of"], {})[line["number"]] = found
                elif line.keys() >= _TOLD:
                    self._told.add((line["event"], line["of"], line["n"]))

    def networks(self, of: str) -> Mapping[int, Trained]:
        """Network i -> what it came to, for the networks that `of` determined."""
        return self._networks.get(of, {})

    def network(self, of: str, number: int, result: Trained, **about: Any) -> None:
        """Keep what network `number` came to; `about` is for who reads the log."""
        self._networks.setdefault(of, {})[number] = result
        self.event("network", of=of, number=number, **result._asdict(), **about)

    def score(self, name: str, of: str, score: Score) -> None:
        """Tell what the first `score.n` networks of `of` came to, unless it is in the log: a killed
        evaluation may have had the networks and not the score."""
        key = (name, of, score.n)
        if key not in self._told:
            self._told.add(key)
            self.event(name, of=of, **score.to_json())

    def event(self, name: str, **values: Any) -> None:
        """Something that happened once, with what belongs to it."""
        if self.path is None:
            return
        if self._log is None:
            self._log = JsonlTracker(self.path)
        self._log.event(name, **values)

    def close(self) -> None:
        if self._log is not None:
            self._log.close()


def require_own_folder(out: Path, command: str) -> None:
    """Refuse a folder that another command has written to, or is still writing to."""
    other = None
    if (out / "result.json").is_file():
        other = str(read_result(out).get("command"))
    elif (out / "checkpoint.safetensors").is_file():
        other = "distill"
    elif (out / "library.json").is_file():
        other = "experts"
    if other not in (None, command):
        raise SettingError(
            f"--out is {out}, which holds what `trajmatch {other}` found there, and {command} "
            "would write over it; give another --out"
        )
