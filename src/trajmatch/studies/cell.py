"""A cell of a study: one variant for one seed, made, measured and remembered."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from trajmatch import pipeline
from trajmatch.config import to_dict
from trajmatch.data import ImageDataset
from trajmatch.errors import FileFormatError, MismatchError
from trajmatch.evaluation import Score
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import METHODS
from trajmatch.runtime.memory import added
from trajmatch.storage.files import read_json, write_json
from trajmatch.storage.jsonl import jsonable
from trajmatch.studies.study import Made, Row, Study, Variant, is_own
from trajmatch.synthetic import SyntheticSet, load_distilled


@dataclasses.dataclass(frozen=True)
class Cell:
    """One variant for one seed."""

    study: Study
    variant: Variant
    seed: int
    folder: Path
    data: ImageDataset
    library: ExpertLibrary
    device: str
    threads: int | None

    def measured(self, on_iteration: Callable[[int, Mapping[str, float]], None]) -> list[Row]:
        """What `study.measure` finds, now or, for the same cell, at an earlier time."""
        stored, key = self.folder / "cell.json", self._key()
        # A set made elsewhere may have changed since; measuring it again is cheap.
        own = is_own(self.variant.source)
        if own and stored.exists():
            try:
                found = read_json(stored)
                if found["key"] == key:
                    rows: list[Row] = found["rows"]
                    return rows
            except (FileFormatError, KeyError, TypeError):
                pass  # damaged: measured again
        began = time.perf_counter()
        config, seed = self.variant.config, self.seed
        outcome = None
        iterated = False

        def hear(iteration: int, values: Mapping[str, float]) -> None:
            nonlocal iterated
            iterated = True
            on_iteration(iteration, values)

        with added(torch.device(self.device)) as memory:
            if self.variant.source in METHODS:
                outcome = self._distilled(hear)
                small = outcome.best
            else:
                small = self._taken()
        making = time.perf_counter() - began if outcome is None else outcome.seconds
        if own and outcome is None and seed == config.seed:
            small.save(self.folder / "best")  # for the page: a made set lies there as well
        rows = jsonable(
            self.study.measure(Made(small, self.library, self.data, config, seed, self.device))
        )
        for row in rows:
            row["makes"] = outcome is not None
            row["making_seconds"] = round(making, 3)
            row["making_bytes"] = self._most(memory.bytes if iterated or outcome is None else None)
        if outcome is not None:
            for row in rows:
                row["validation"] = outcome.best_validation["mean"]
            pipeline.write_run(
                self.folder,
                command="distill",
                settings=to_dict(config),
                seed=seed,
                data=self.data,
                library=self._matched(),
                outcome=outcome,
                scores=[Score.from_json(row) for row in rows if "protocol" in row],
                seconds=time.perf_counter() - began,
                device=self.device,
            )
        if own:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(stored, {"key": key, "rows": rows})
        return rows

    def _most(self, now: int | None) -> int | None:
        """Bytes at the peak of making, which may have been done in parts; `now`: in this one."""
        if self.variant.source not in METHODS:
            return now
        path = self.folder / "memory.json"
        before = int(read_json(path)["bytes"]) if path.exists() else None
        if now is None or (before is not None and now <= before):
            return before
        write_json(path, {"bytes": now})
        return now

    def _key(self) -> dict[str, Any]:
        """All that determines what is measured."""
        config = self.variant.config
        judged = {k: v for k, v in to_dict(config.evaluate).items() if k != "workers"}
        key = {
            "measured": self.study.measured,
            "asks": self.study.asks,
            "source": self.variant.source,
            "distill": to_dict(config.distill),
            "evaluate": judged,
            "experts": [config.experts.experts, len(self.library.experts), self.library.digest],
            "data": self.data.fingerprint,
            "seed": self.seed,
        }
        return dict(jsonable(key))

    def _matched(self) -> ExpertLibrary:
        return self.library.first(self.variant.config.experts.experts)

    def _distilled(
        self, on_iteration: Callable[[int, Mapping[str, float]], None]
    ) -> pipeline.Outcome:
        config = self.variant.config
        outcome = pipeline.distill(
            self.data,
            self._matched(),
            self.folder,
            config=config.distill,
            evaluation=config.evaluate,
            seed=self.seed,
            device=self.device,
            threads=self.threads,
            on_iteration=on_iteration,
        )
        if outcome.iterations > config.distill.iterations:
            raise MismatchError(
                f"{self.folder} holds a run of {outcome.iterations} iterations and this study "
                f"gives it {config.distill.iterations}; give another --out"
            )
        return outcome

    def _taken(self) -> SyntheticSet:
        source, config = self.variant.source, self.variant.config
        if not is_own(source):
            return load_distilled(source)
        return pipeline.select_coreset(
            source,
            self.data,
            config.distill.ipc,
            experts=self._matched(),
            seed=self.seed,
            device=self.device,
        )
