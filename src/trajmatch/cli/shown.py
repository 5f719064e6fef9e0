"""What commands show: progress while they run, events in their log, tables and result.json when
they are done."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trajmatch.cli.flags import Common
from trajmatch.config import DataConfig, to_dict
from trajmatch.data import ImageDataset
from trajmatch.evaluation import Score
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import Outcome
from trajmatch.runtime.display import Bar, Display
from trajmatch.runtime.display import running as task
from trajmatch.runtime.progress import Progress, Several, Silent
from trajmatch.storage import LogProgress, open_tracker, write_result
from trajmatch.storage.trackers.log import EVENTS
from trajmatch.synthetic import SyntheticSet


def say(line: str) -> None:
    """A line on stdout at once, also when it goes to a file."""
    print(line, flush=True)


def load(config: DataConfig) -> ImageDataset:
    """The data set, with progress while images are decoded."""
    from trajmatch import pipeline

    with contextlib.ExitStack() as stack:
        bars: list[Any] = []

        def progress(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(task("decoding images", total)))
            bars[0].advance(done - bars[0].done)

        data = pipeline.load(config, progress)
    size = data.size if isinstance(data.size, int) else "x".join(map(str, data.size))
    val = 0 if data.val is None else len(data.val)
    say(
        f"{data.name}: {len(data.train)} training, {val} validation, {len(data.test)} test images "
        f"of {size} pixels, {data.num_classes} classes"
    )
    if data.note:
        say(f"  {data.note}")
    return data


@contextlib.contextmanager
def progress_of(
    out: Path,
    *,
    track: str = "none",
    log: bool = False,
    append: bool = True,
    events: tuple[str, ...] = EVENTS,
) -> Iterator[Progress]:
    """The terminal; beside it the tracker called `track`, and with `log` OUT/log.jsonl for these
    events (a distillation keeps its log itself); with `append` it goes on with an earlier one."""
    with contextlib.ExitStack() as stack:
        observers: list[Progress] = [stack.enter_context(Display())]
        if track != "none":
            observers.append(stack.enter_context(contextlib.closing(open_tracker(track, out))))
        if log:
            observers.append(
                stack.enter_context(contextlib.closing(LogProgress(out, events, append)))
            )
        yield observers[0] if len(observers) == 1 else Several(*observers)


def log_event(out: Path, name: str, values: Mapping[str, Any]) -> None:
    """Add one event to OUT/log.jsonl."""
    with contextlib.closing(LogProgress(out, (name,))) as log:
        log.event(name, **values)


class ImportProgress(Silent):
    """A bar over files, messages as lines on stdout, and what was imported from each file."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self.files: list[dict[str, Any]] = []

    def update(self, task: str, done: int, total: int, **values: Any) -> None:
        self._bar.advance(int(done == total), expert=f"{done} of {total}")

    def message(self, text: str) -> None:
        say(text)

    def event(self, name: str, **values: Any) -> None:
        self.files.append(values)


def result(
    flags: Common,
    command: str,
    data: Mapping[str, Any] | None,
    began: float,
    *,
    scores: Sequence[Score] = (),
    device: str = "cpu",
    extra: Mapping[str, Any] | None = None,
) -> None:
    """OUT/result.json of a command that began at `began` of `time.perf_counter`.

    data, extra: as `write_result` takes them. A distillation's is `pipeline.write_run`'s.
    """
    write_result(
        flags.out,
        command=command,
        settings=to_dict(flags),
        seed=flags.seed,
        scores=[score.to_json() for score in scores],
        data=data,
        seconds=time.perf_counter() - began,
        device=device,
        extra=extra,
    )


def best_of(outcome: Outcome) -> str:
    """Which set is the best, by its validation accuracy."""
    best = outcome.best_validation
    return (
        f"best set: {outcome.best_words}, validation accuracy {best['mean']:.1f} % (n={best['n']})"
    )


def table(scores: Sequence[Score]) -> None:
    """Scores as a table."""
    records([score.to_json() for score in scores])


def records(scores: Sequence[Mapping[str, Any]]) -> None:
    """Scores, as result.json has them, as a table: never a mean without n and sd."""
    rows = [("method", "network", "split", "accuracy %", "n", "protocol")]
    for score in scores:
        sd = "" if score["sd"] is None else f" +- {score['sd']:.1f}"
        rows.append(
            (
                str(score["method"]),
                str(score["model"]),
                str(score["split"]),
                f"{score['mean']:.1f}{sd}",
                f"{score['n']} ({score['diverged']} diverged)"
                if score.get("diverged")
                else str(score["n"]),
                str(score["protocol"]),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def library(found: ExpertLibrary) -> None:
    """An expert library: its settings, and a row per expert."""
    about = found.summary()
    print(f"expert library {found.path}")
    print(f"  network   {about['network']} ({about['parameters']:,} parameters)")
    print(f"  data      {about['data']['name']}, fingerprint {about['data']['fingerprint']}")
    print(f"  whitening {about['whitening']}")
    settings = {k: v for k, v in about["settings"].items() if k not in ("experts", "epochs")}
    print(f"  settings  {', '.join(f'{k}={v}' for k, v in settings.items())}, seed={about['seed']}")
    if found.imported:
        print(f"  origin    {found.imported}")
    print(f"  size      {len(found.experts)} experts x {found.epochs} epochs, "
          f"{about['bytes'] / 1e6:,.1f} MB")  # fmt: skip
    validation, test = found.accuracy("val"), found.accuracy("test")
    for expert in found.experts:
        line = f"  expert {expert:5d}"
        for name, scores in (("val", validation), ("test", test)):
            if scores[expert] is not None:
                line += f"  {name} {scores[expert]:.1f} %"
        print(line)


def distilled(place: Path, found: SyntheticSet) -> None:
    """A distilled set: what it is and where it comes from."""
    shape = "x".join(map(str, found.images.shape[1:]))
    print(f"distilled set {place}")
    print(f"  images    {len(found)} of {shape}, {found.ipc} per class, "
          f"{'soft' if found.is_soft else 'hard'} labels")  # fmt: skip
    print(f"  classes   {', '.join(found.classes)}")
    if found.step_size is not None:
        print(f"  step size {found.step_size}")
    print(f"  whitening {found.whitening.name}")
    for name in ("method", "seed", "iteration"):
        if name in found.info:
            print(f"  {name:<9} {found.info[name]}")
    if "data" in found.info:
        print(f"  data      {found.info['data']['name']}, {found.info['data']['fingerprint']}")
