"""Per-network results in log.jsonl; an interrupted evaluation resumes from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trajmatch.storage import JsonlTracker, read_log
from trajmatch.storage.results import Score, Trained

_NETWORK_ENTRIES = {"of", "number", "percent", "finite"}
"""What a line on a network must hold to be used again."""
_SCORE_ENTRIES = {"event", "of", "n"}
"""What identifies a line on a score."""


class EvaluationLog:
    """Results of networks in `out`/log.jsonl, or in memory alone where `out` is None.

    A result belongs to a key and a number: the key is a digest of all that determines the result
    (set, data, network, settings, learning rate, seed; the log's entry `of`), the number is i of
    the network. The file is opened by the first event, so a refused evaluation writes nothing.

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
        self._scores: set[tuple[str, str, int]] = set()
        if self.path is not None and self.path.is_file():
            for line in read_log(self.path):
                if line.get("event") == "network" and line.keys() >= _NETWORK_ENTRIES:
                    correct = line.get("correct")  # absent in logs of version 0.1
                    counts = tuple(correct) if isinstance(correct, list) else None
                    result = Trained(line["percent"], line["finite"], counts)
                    self._networks.setdefault(line["of"], {})[line["number"]] = result
                elif line.keys() >= _SCORE_ENTRIES:
                    self._scores.add((line["event"], line["of"], line["n"]))

    def networks(self, key: str) -> Mapping[int, Trained]:
        """Number -> result of the networks of `key`."""
        return self._networks.get(key, {})

    def add_network(self, key: str, number: int, result: Trained, **about: Any) -> None:
        """Keep and write a result; `about` is for readers of the log."""
        self._networks.setdefault(key, {})[number] = result
        self.event("network", of=key, number=number, **result._asdict(), **about)

    def add_score(self, event: str, key: str, score: Score) -> None:
        """Write the score of the first `score.n` networks of `key`, unless the log has it. (An
        evaluation may be killed after its last network and before its score is written.)"""
        entry = (event, key, score.n)
        if entry not in self._scores:
            self._scores.add(entry)
            self.event(event, of=key, **score.to_json())

    def event(self, name: str, **values: Any) -> None:
        """Append one line to the file, where there is one."""
        if self.path is None:
            return
        if self._tracker is None:
            self._tracker = JsonlTracker(self.path)
        self._tracker.event(name, **values)

    def close(self) -> None:
        if self._tracker is not None:
            self._tracker.close()


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
