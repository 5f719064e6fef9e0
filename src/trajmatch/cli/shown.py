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
from trajmatch.data.cache import folders
from trajmatch.data.sources.source import Caching
from trajmatch.errors import MissingExtraError, require_extra
from trajmatch.evaluation import Score
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import Method, Outcome
from trajmatch.pipeline.checks import some_words
from trajmatch.runtime.display import Bar, Display
from trajmatch.runtime.display import running as task
from trajmatch.runtime.progress import Progress, Several, Silent
from trajmatch.storage import LogProgress, open_tracker, write_result
from trajmatch.storage.results.classes import is_imbalanced, majority, present
from trajmatch.storage.trackers.log import EVENTS
from trajmatch.synthetic import SyntheticSet
from trajmatch.units import byte_size, shortened


def say(line: str) -> None:
    """A line on stdout at once, also when it goes to a file."""
    print(line, flush=True)


def warn_without_page() -> None:
    """Say before the work what `report` will lack after it."""
    try:
        require_extra("the page", "report", "jinja2", "matplotlib")
    except MissingExtraError as error:
        say(f"warning: no page will be drawn: {error}")


def load(config: DataConfig, *, cache: Caching = True) -> ImageDataset:
    """The data set, with progress while images are decoded, and lines that say what it is.

    cache: as for `load_data`.
    """
    from trajmatch import pipeline

    with contextlib.ExitStack() as stack:
        bars: list[Any] = []

        def progress(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(task("decoding images", total)))
            bars[0].advance(done - bars[0].done)

        data = pipeline.load(config, progress, cache=cache)
    for line in about(data):
        say(line)
    return data


def about(data: ImageDataset) -> Iterator[str]:
    """The first lines of a run: what the data are, and what should be known of them."""
    size = data.size if isinstance(data.size, int) else "x".join(map(str, data.size))
    val = 0 if data.val is None else len(data.val)
    yield (
        f"{data.name}: {len(data.train)} training, {val} validation, {len(data.test)} test images "
        f"of {size} pixels, {data.num_classes} classes"
    )
    yield f"  {class_counts(data)}"
    if data.note:
        yield f"  {data.note}"
    for remark in data.remarks:
        yield f"  {remark}"
    if data.uncached:
        size_words = f"{byte_size(data.uncached)} of decoded images"
        yield f"  a run will write {size_words} to the cache in {folders()[0]}"
    yield from class_warnings(data)


def class_counts(data: ImageDataset, most: int = 10) -> str:
    """`cat: 45/5/10, dog: 44/5/10 (training/validation/test)`.

    Names alone where every class has the same counts; the first ones of more than `most` classes.
    """
    splits = [data.train, *([] if data.val is None else [data.val]), data.test]
    columns = [split.labels.bincount(minlength=data.num_classes).tolist() for split in splits]
    counts = ["/".join(f"{count:,}" for count in row) for row in zip(*columns, strict=True)]
    names = [name if len(name) <= 30 else f"{name[:27]}..." for name in data.classes]
    further = data.num_classes - most
    end = f", ... ({further:,} more)" if further > 0 else ""
    what = f"training{'' if data.val is None else '/validation'}/test"
    if len(set(counts)) == 1:
        return f"{', '.join(names[:most])}{end}: {counts[0]} each ({what})"
    pairs = zip(names[:most], counts, strict=False)
    return f"{', '.join(f'{name}: {count}' for name, count in pairs)}{end} ({what})"


def class_warnings(data: ImageDataset) -> Iterator[str]:
    """Lines on classes of very different size among the training images, and on classes without
    images to validate or test on; none for balanced data."""
    for split, counts in data.class_counts().items():
        names = [shortened(name, 40) for name in data.classes]
        absent = [names[i] for i, count in enumerate(counts) if count == 0]
        if absent:
            yield (
                f"warning: {split} images of {present(counts)} of {len(counts)} classes; none of "
                f"{some_words(absent)}"
            )
        if split == "train" and is_imbalanced(counts):
            most, least = (pick(range(len(counts)), key=counts.__getitem__) for pick in (max, min))
            yield (
                f"warning: imbalanced classes: {counts[most]:,} training images of "
                f"{names[most]} and {counts[least]:,} of {names[least]}; the largest "
                f"class is {majority(counts):.1f} % of them, so see the balanced accuracy"
            )


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


def untested(out: Path) -> str:
    """What is said of a run with --no-test."""
    return (
        "not tested (--no-test): the accuracy is on validation images, by which the set was chosen "
        f"as well; `trajmatch evaluate {out}` tests it"
    )


def left_out(
    method: Method, ipc: int, data: ImageDataset, library: ExpertLibrary | None
) -> dict[str, str]:
    """Say which baselines a run cannot be compared with, and why; the same for its result."""
    from trajmatch.pipeline.checks import baselines_left_out, left_out_words, set_ipc

    found = baselines_left_out(data, set_ipc(method, ipc, data), experts=library is not None)
    for line in left_out_words(found):
        say(line)
    return found


def findings(out: Path) -> None:
    """A line for each thing that keeps the run in `out` from a better result."""
    from trajmatch.pipeline.doctor import examine

    for finding in examine(out):
        say(f"{finding.name}: {finding}")


def table(scores: Sequence[Score]) -> None:
    """Scores as a table: never a mean without n and sd."""
    columns(
        ("method", "network", "split", "accuracy %", "n", "protocol"),
        [
            (score.label, score.model, score.split, spread(score.mean, score.sd),
             networks(score), score.protocol)
            for score in scores
        ],
        scores,
    )  # fmt: skip


def columns(heads: Sequence[str], rows: Sequence[Sequence[str]], scores: Sequence[Score]) -> None:
    """A row a score, its cells below `heads`. Where the images tested on are imbalanced, a column
    more after the accuracy; below the table what else has to be known of these images."""
    lines = [list(heads), *map(list, rows)]
    if any(score.is_imbalanced and score.balanced is not None for score in scores):
        found = ["-" if s.balanced is None else spread(s.balanced, s.balanced_sd) for s in scores]
        for line, cell in zip(lines, ["balanced %", *found], strict=True):
            line.insert(heads.index("accuracy %") + 1, cell)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(map(str.ljust, line, widths)).rstrip())
    for caveat in dict.fromkeys(caveat for score in scores for caveat in score.caveats):
        print(f"note: {caveat}")


def spread(mean: float, sd: float | None) -> str:
    """`63.1 +- 0.4`."""
    return f"{mean:.1f}" if sd is None else f"{mean:.1f} +- {sd:.1f}"


def networks(score: Score) -> str:
    """How many networks a score is of, and how many of them diverged."""
    return f"{score.n} ({score.diverged} diverged)" if score.diverged else str(score.n)


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
