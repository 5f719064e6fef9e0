"""What commands tell: progress while they run, events in their log, tables and result.json when
they are done."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trajmatch.cli.flags import Common
from trajmatch.cli.progress import Bar, task
from trajmatch.config import DataConfig, DistillConfig, ExpertConfig, RunConfig, to_dict
from trajmatch.data import ImageDataset
from trajmatch.evaluation import Score
from trajmatch.experts import ExpertLibrary
from trajmatch.experts.library import present
from trajmatch.methods import Outcome
from trajmatch.storage import Tracker, open_tracker, write_result
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
def expert_progress(
    path: Path, config: ExpertConfig
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A bar over the epochs of all experts, those that lie in the folder `path` among them."""
    there = [expert for expert in present(path) if expert < config.experts] if path.is_dir() else []
    epochs = dict.fromkeys(there, config.epochs)
    with task("experts", config.experts * config.epochs, done=sum(epochs.values())) as bar:

        def progress(event: Mapping[str, Any]) -> None:
            expert, epoch = event["expert"], event["epoch"]
            more = epoch - epochs.get(expert, 0)
            epochs[expert] = epoch
            if more > 1:  # trained in part before a kill
                bar.start(bar.done + more)
                more = 0
            accuracy = f"{event['train_accuracy']:.1f} %"
            bar.advance(more, expert=expert, epoch=epoch, train_accuracy=accuracy)

        yield progress


@contextlib.contextmanager
def training_progress(
    title: str, config: ExpertConfig
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A bar over the epochs of one network; none where none is trained."""
    with contextlib.ExitStack() as stack:
        bars: list[Bar] = []

        def progress(event: Mapping[str, Any]) -> None:
            epoch, accuracy = event["epoch"], f"{event['train_accuracy']:.1f} %"
            if not bars:
                bars.append(stack.enter_context(task(title, config.epochs, done=epoch)))
            bars[0].advance(epoch - bars[0].done, train_accuracy=accuracy)

        yield progress


@contextlib.contextmanager
def iteration_progress(
    config: DistillConfig,
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """A bar over the iterations of a distillation."""
    with task("distill", config.iterations) as bar:

        def progress(iteration: int, values: Mapping[str, float]) -> None:
            if not bar.done:
                bar.start(iteration)
                if iteration > 1:
                    say(f"continuing after iteration {iteration - 1} of {config.iterations}")
            told = {name: values[name] for name in ("loss", "step_size") if name in values}
            bar.advance(iteration - bar.done, **told)

        yield progress


@contextlib.contextmanager
def evaluation_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar over the epochs of all networks of a kind; the next kind's takes its place."""
    with contextlib.ExitStack() as stack:
        bars: list[Bar] = []

        def progress(what: str, done: int, total: int) -> None:
            if not bars or bars[0].title != what:
                stack.close()
                bars[:] = [stack.enter_context(task(what, total, done=done))]
            bars[0].advance(done - bars[0].done)

        yield progress


@contextlib.contextmanager
def run_progress(
    out: Path, config: RunConfig
) -> Iterator[
    tuple[Callable[[Mapping[str, Any]], None], Callable[[int, Mapping[str, float]], None]]
]:
    """Both bars, for a whole run."""
    with (
        expert_progress(out / "experts", config.experts) as experts,
        iteration_progress(config.distill) as iterations,
    ):
        yield experts, iterations


@contextlib.contextmanager
def event_log(out: Path) -> Iterator[Callable[[str, Mapping[str, Any]], None]]:
    """Adds events to OUT/log.jsonl, which the first of them opens: a refused command writes none.

    For commands without iterations; a distillation's loop keeps its log itself.
    """
    with contextlib.ExitStack() as stack:
        opened: list[Tracker] = []

        def event(name: str, values: Mapping[str, Any]) -> None:
            if not opened:
                opened.append(open_tracker(out))
                stack.callback(opened[0].close)
            opened[0].event(name, **values)

        yield event


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


def kept(outcome: Outcome) -> str:
    """Which set was kept and why."""
    best = outcome.best_validation
    return (
        f"kept the set of iteration {outcome.best_iteration} of {outcome.iterations}: validation "
        f"accuracy {best['mean']:.1f} % (n={best['n']})"
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
    """An expert library: how it was made, and a row per expert."""
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


def distilled(place: Path, made: SyntheticSet) -> None:
    """A distilled set: what it is and how it was made."""
    shape = "x".join(map(str, made.images.shape[1:]))
    print(f"distilled set {place}")
    print(f"  images    {len(made)} of {shape}, {made.ipc} per class, "
          f"{'soft' if made.is_soft else 'hard'} labels")  # fmt: skip
    print(f"  classes   {', '.join(made.classes)}")
    if made.step_size is not None:
        print(f"  step size {made.step_size}")
    print(f"  whitening {made.whitening.name}")
    for name in ("method", "seed", "iteration"):
        if name in made.info:
            print(f"  {name:<9} {made.info[name]}")
    if "data" in made.info:
        print(f"  data      {made.info['data']['name']}, {made.info['data']['fingerprint']}")
