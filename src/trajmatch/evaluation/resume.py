"""Per-network results in log.jsonl; an interrupted evaluation resumes from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trajmatch.errors import FileFormatError
from trajmatch.storage import JsonlTracker
from trajmatch.storage.jsonl import announce, sound_lines
from trajmatch.storage.results import NetworkLine, Score, Trained
from trajmatch.storage.results.fields import Fields


class EvaluationLog:
    """Results of networks in `out`/log.jsonl, or in memory alone where `out` is None.

    A result belongs to a key and a number: the key is a digest of all that determines the result
    (set, data, network, settings, learning rate, seed; the log's entry `of`), the number is i of
    the network. The file is opened by the first event, so a refused evaluation writes nothing.
    A line that was altered, or holds what cannot be, is not used: its network is trained again.

    Examples:
        >>> log = EvaluationLog(None)
        >>> log.add_network("c471", 0, Trained(61.5, True), method="mtt")
        >>> log.networks("c471")
        {0: Trained(percent=61.5, finite=True, correct=None)}
    """

    def __init__(self, out: Path | None) -> None:
        self.path = None if out is None else out / "log.jsonl"
        self._tracker: JsonlTracker | None = None
        self._networks: dict[str, dict[int, Trained]] = {}
        if self.path is not None and self.path.is_file():
            for line in sound_lines(self.path):
                if _is_network(line) and (found := self._network(line)) is not None:
                    self._networks.setdefault(found.of, {})[found.number] = found.result

    def networks(self, key: str) -> Mapping[int, Trained]:
        """Number -> result of the networks of `key`."""
        return self._networks.get(key, {})

    def add_network(self, key: str, number: int, result: Trained, **about: Any) -> None:
        """Keep and write a result; `about` is for readers of the log."""
        self._networks.setdefault(key, {})[number] = result
        self.event("network", of=key, number=number, **result._asdict(), **about)

    def add_score(self, event: str, key: str, score: Score) -> None:
        """Write the score of the first `score.n` networks of `key`, unless the log has it."""
        self.event(event, of=key, **score.to_json())

    def event(self, name: str, **values: Any) -> None:
        """Append one line to the file, where there is one."""
        if self.path is None:
            return
        if self._tracker is None:
            self._tracker = JsonlTracker(self.path, drop=self._is_damaged)
        self._tracker.event(name, **values)

    def close(self) -> None:
        if self._tracker is not None:
            self._tracker.close()

    def _network(self, line: Mapping[str, Any]) -> NetworkLine | None:
        """What a line says of a network; None, with a warning, where no network can have that."""
        try:
            return NetworkLine.read(Fields.of(line, str(self.path)))
        except FileFormatError as error:
            announce(f"{error}; that line is not used")
            return None

    def _is_damaged(self, line: Mapping[str, Any]) -> bool:
        return _is_network(line) and self._network(line) is None


def _is_network(line: Mapping[str, Any]) -> bool:
    return line.get("event") == "network" and "number" in line


class LoggedResults(dict[tuple[int, int], Trained]):
    """(number of the set, i) -> result, for `evaluate_sets`: begins with the first `n` networks of
    each set that the log has, and writes what is added to the log.

    keys: the log's key of each set. about: per set, what its lines say besides the result.
    """

    def __init__(
        self,
        log: EvaluationLog,
        keys: Sequence[str],
        n: int,
        about: Sequence[Mapping[str, Any]],
    ) -> None:
        super().__init__(
            ((k, i), result)
            for k, key in enumerate(keys)
            for i, result in log.networks(key).items()
            if i < n
        )
        self._log, self._keys, self._about = log, keys, about

    def __setitem__(self, place: tuple[int, int], result: Trained) -> None:
        super().__setitem__(place, result)
        k, i = place
        self._log.add_network(self._keys[k], i, result, **self._about[k])
