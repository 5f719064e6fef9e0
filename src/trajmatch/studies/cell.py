"""A cell of a study: one variant for one seed, produced, measured and stored."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from trajmatch import pipeline
from trajmatch.config import determining, to_dict
from trajmatch.data import ImageDataset
from trajmatch.errors import FileFormatError, MismatchError
from trajmatch.evaluation import Score
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import METHODS, to_settings
from trajmatch.runtime.memory import added
from trajmatch.runtime.progress import SILENT, Progress, Silent
from trajmatch.runtime.resources import Resources
from trajmatch.storage.digest import read_with_digest, with_digest
from trajmatch.storage.files import write_json
from trajmatch.storage.folder import claim
from trajmatch.storage.jsonl import announce, jsonable
from trajmatch.storage.results import Cell as CellResult
from trajmatch.storage.results.fields import Fields
from trajmatch.studies.study import Row, Study, Subject, Variant, is_own
from trajmatch.synthetic import SyntheticSet, load_distilled


class _Iterations(Silent):
    """Passes the iterations of a distillation on, and notes whether there were any."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.any = progress, False

    def update(self, task: str, done: int, total: int, **values: Any) -> None:
        if values:  # without values: the iterations of an earlier call
            self.any = True
            self.progress.update(task, done, total, **values)


@dataclasses.dataclass(frozen=True)
class _Produced:
    """The images of a cell, and what producing them cost."""

    images: SyntheticSet
    outcome: pipeline.Outcome | None
    """Of the distillation; None for images that were not distilled."""
    seconds: float
    memory: int | None
    """Bytes beyond those in use before, at the peak; None where nothing was done now or nothing
    could be measured."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One variant for one seed."""

    study: Study
    variant: Variant
    seed: int
    out: Path
    """Folder of the study."""
    data: ImageDataset
    library: ExpertLibrary
    resources: Resources = Resources()
    file: str = "cell.json"
    """Where the rows are stored, in `folder`."""

    def before_choice(self) -> Cell:
        """The same cell, measured on validation images alone."""
        return dataclasses.replace(self, study=self.study.before_choice(), file="validation.json")

    @property
    def folder(self) -> Path:
        return self.out / self.variant.name / f"seed{self.seed}"

    def measured(self, progress: Progress = SILENT) -> list[Row]:
        """What `study.measure` finds, now or, for the same cell, at an earlier time.

        progress: an observer of the distillation's iterations.
        """
        # A set distilled elsewhere may have changed since; measuring it again is cheap.
        own = is_own(self.variant.source)
        stored = self._stored() if own else None
        if stored is not None:
            return stored
        if not own:
            return self._measure(self._produced(progress))
        with claim(self.folder, "distill" if self.variant.source in METHODS else "select"):
            began = time.perf_counter()
            produced = self._produced(progress)
            rows = self._measure(produced)
            if produced.outcome is not None:
                self._write_run(produced.outcome, rows, time.perf_counter() - began)
            content = {"key": self._key(), "rows": rows}
            write_json(self.folder / self.file, with_digest(content))
        return rows

    def _stored(self) -> list[Row] | None:
        """The rows of the same cell in the folder; None where there are none, or, with a warning,
        where they are damaged."""
        path = self.folder / self.file
        if not path.exists():
            return None
        try:
            found = Fields(read_with_digest(path), str(path))
            if found.tree("key") != self._key():
                return None
            for row in found.inners("rows"):
                CellResult.read(row)
                if row.has("protocol"):
                    Score.read(row)
        except FileFormatError as error:
            announce(f"{error}; the cell is measured again")
            return None
        rows: list[Row] = found.items("rows")
        return rows

    def _produced(self, progress: Progress) -> _Produced:
        """The images, distilled, chosen or loaded; chosen ones are saved for the page."""
        began, iterations, outcome = time.perf_counter(), _Iterations(progress), None
        with added(self.resources.torch_device) as memory:
            if self.variant.source in METHODS:
                outcome = self._distilled(iterations)
                images = outcome.best
            else:
                images = self._taken()
        if outcome is not None:
            return _Produced(
                images, outcome, outcome.seconds, memory.bytes if iterations.any else None
            )
        seconds = time.perf_counter() - began
        if is_own(self.variant.source) and self.seed == self.variant.config.seed:
            images.save(self.folder / "best")
        return _Produced(images, None, seconds, memory.bytes)

    def _measure(self, produced: _Produced) -> list[Row]:
        """The study's rows, with what producing the images cost."""
        subject = Subject(
            produced.images, self.library, self.data, self.variant.config, self.seed,
            str(self.resources.device),
        )  # fmt: skip
        rows: list[Row] = jsonable(self.study.measure(subject))
        memory = self._peak_memory(produced)
        for row in rows:
            row["makes"] = produced.outcome is not None
            row["making_seconds"] = round(produced.seconds, 3)
            row["making_bytes"] = memory
            if produced.outcome is not None:
                row["validation"] = produced.outcome.best_validation["mean"]
        return rows

    def _peak_memory(self, produced: _Produced) -> int | None:
        """Bytes at the peak over all calls that a distillation was done in."""
        now = produced.memory
        if produced.outcome is None:
            return now
        path, before = self.folder / "memory.json", None
        try:
            if path.exists():
                before = Fields(read_with_digest(path), str(path)).require_count("bytes")
        except FileFormatError as error:
            announce(f"{error}; the memory that earlier calls took is not known")
        if now is None or (before is not None and now <= before):
            return before
        write_json(path, with_digest({"bytes": now}))
        return now

    def _write_run(self, outcome: pipeline.Outcome, rows: list[Row], seconds: float) -> None:
        """result.json in the cell's folder, which is a run like any other."""
        finished = pipeline.FinishedRun(
            command="distill",
            settings=self.variant.config.to_dict(),
            seed=self.seed,
            data=self.data,
            library=self._matched(),
            outcome=outcome,
            scores=_scores(rows),
            seconds=seconds,
            device=str(self.resources.device),
        )
        pipeline.write_run(self.folder, finished)

    def _key(self) -> dict[str, Any]:
        """All that determines what is measured."""
        config = self.variant.config
        evaluation = {k: v for k, v in to_dict(config.evaluate).items() if k != "workers"}
        key = {
            "measured": self.study.measured,
            "measure_settings": self.study.measure_settings,
            "source": self.variant.source,
            "distill": to_settings(config.distill, config.method),
            "evaluate": determining(evaluation),
            "experts": [config.experts.experts, len(self.library.experts), self.library.digest],
            "data": self.data.fingerprint,
            "seed": self.seed,
        }
        return dict(jsonable(key))

    def _matched(self) -> ExpertLibrary:
        return self.library.first(self.variant.config.experts.experts)

    def _distilled(self, progress: Progress) -> pipeline.Outcome:
        config = self.variant.config
        outcome = pipeline.distill(
            self.data,
            config.method,
            self._matched(),
            self.folder,
            config=config.distill,
            evaluation=config.evaluate,
            seed=self.seed,
            resources=self.resources,
            progress=progress,
        )
        if outcome.iterations > config.distill.iterations:
            raise MismatchError(
                f"{self.folder} holds a run of {outcome.iterations} iterations and this study "
                f"gives it {config.distill.iterations}; give another --out"
            )
        return outcome

    def _taken(self) -> SyntheticSet:
        """A coreset, or the set in a folder."""
        source, config = self.variant.source, self.variant.config
        if not is_own(source):
            return load_distilled(source)
        return pipeline.select_coreset(
            source,
            self.data,
            config.distill.ipc,
            self._matched(),
            seed=self.seed,
            resources=self.resources,
        )


def _scores(rows: list[Row]) -> list[Score]:
    """Of rows of accuracies: on test images, else on validation images."""
    tested = [row for row in rows if "protocol" in row]
    return [
        Score.from_json(row) for row in tested or [r["validated"] for r in rows if "validated" in r]
    ]
