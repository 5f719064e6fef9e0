"""Lists of facts for the page: the cost of a run, where its numbers come from, its settings."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from trajmatch.report.figures.theme import shown
from trajmatch.report.folder import RunFolder
from trajmatch.report.methods import method_facts
from trajmatch.storage.results import DataSummary, EvaluationResult, LibrarySummary
from trajmatch.storage.results.classes import is_imbalanced
from trajmatch.units import duration, number, percent

Fact = tuple[str, str]


def cost(run: RunFolder) -> list[Fact]:
    """Time and memory of a run."""
    spent, facts = run.result.cost, list[Fact]()
    if spent.seconds is not None:
        facts.append(("Time, all in all", duration(spent.seconds)))
    each = [line.seconds for line in run.log.iterations if line.seconds is not None]
    if each:
        text = f"{duration(statistics.median(each))} (median of {len(each):,})"
        facts += [("One iteration", text), ("All iterations", duration(sum(each)))]
    for name, memory in (
        ("Peak memory", spent.peak_memory_mb),
        ("Peak memory, child process", spent.peak_memory_child_mb),
        ("Peak memory, GPU", spent.peak_memory_cuda_mb),
    ):
        if memory is not None:
            facts.append((name, f"{memory:,.0f} MB"))
    if spent.device:
        facts.append(("Device", spent.device))
    if spent.threads is not None:
        facts.append(("Threads", str(spent.threads)))
    return facts


def origin(run: RunFolder) -> list[Fact]:
    """Where the numbers come from: data, experts, seed, versions."""
    result, facts = run.result, list[Fact]()
    if result.data is not None:
        facts += _data(result.data)
    if result.library is not None:
        # A result without a method is that of `experts` itself.
        matched = method_facts(str(run.setting("distill", "method"))).needs_experts
        facts += _library(result.library, "Experts" if matched else "Experts (not matched)")
    if run.distilled is not None:
        facts.append(("Whitening", run.distilled.whitening.name))
        if run.distilled.step_size is not None:
            fixed = run.setting("distill", "lr_lr") == 0
            name = "Step size, fixed" if fixed else "Learned step size"
            facts.append((name, number(run.distilled.step_size, 4)))
    if result.best_iteration is not None:
        facts.append(("Chosen iteration", f"{result.best_iteration:,}"))
    if result.last_iteration is not None:
        facts.append(("Last iteration", f"{result.last_iteration:,}"))
    if result.seed is not None:
        facts.append(("Seed", str(result.seed)))
    if result.started:
        facts.append(("Started", result.started))
    if result.versions:
        facts.append(("Versions", ", ".join(f"{k} {v}" for k, v in result.versions.items())))
    return facts


def _data(data: DataSummary) -> list[Fact]:
    counts = {"train": data.train, "val": data.val, "test": data.test}
    words = ", ".join(f"{n:,} {split}" for split, n in counts.items() if n is not None)
    facts = [("Data", f"{data.name}: {words} images" if words else data.name)]
    if data.note:
        facts.append(("Splits", data.note))
    if sizes := class_sizes(data):
        facts.append(("Class sizes", sizes))
    return [*facts, ("Data fingerprint", data.fingerprint or "not recorded")]


def class_sizes(data: DataSummary | None) -> str:
    """The largest and the smallest class among the training images, where they differ much; else
    empty."""
    counts = data.counts.get("train", ()) if data is not None else ()
    if data is None or not is_imbalanced(counts):
        return ""
    most, least = (pick(range(len(counts)), key=counts.__getitem__) for pick in (max, min))
    names = [
        shown(data.classes[index], 40) if index < len(data.classes) else f"class {index}"
        for index in (most, least)
    ]
    return f"{counts[most]:,} training images of {names[0]} and {counts[least]:,} of {names[1]}"


def _library(library: LibrarySummary, name: str) -> list[Fact]:
    experts, epochs = ("?" if n is None else n for n in (library.experts, library.epochs))
    text = f"{experts} of {epochs} epochs"
    if library.accuracy_mean is not None:
        accuracy = percent(library.accuracy_mean, library.accuracy_sd)
        text += f", accuracy {accuracy} % (n = {library.n or experts})"
    if library.bytes is not None:
        text += f", {library.bytes / 1e6:,.1f} MB"
    return [(name, text), ("Expert library", library.path or "not recorded")]


def settings(run: RunFolder) -> list[tuple[str, list[Fact]]]:
    """All settings by table; then what else the result records."""
    values = run.result.settings or _table(run.info.get("settings"))
    if run.command == "run":  # `methods` are settings of other runs of the recipe than this one
        values = {name: value for name, value in values.items() if name != "methods"}
    tables = [(name, list(_flat(value))) for name, value in values.items() if _table(value)]
    plain = [(name, say(value)) for name, value in values.items() if not _table(value)]
    other = {**run.result.other, "resolved": run.result.resolved or None}
    if isinstance(run.result, EvaluationResult):
        other["set.fingerprint"] = run.result.fingerprint or None
    rest = list(_flat({name: value for name, value in other.items() if value is not None}))
    tables = ([("run", plain)] if plain else []) + tables
    return tables + ([("also recorded", rest)] if rest else [])


def say(value: Any) -> str:
    """A setting as text."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(say, value)) or "none"
    return str(value)


def _flat(values: Mapping[str, Any], where: str = "") -> Iterable[Fact]:
    for name, value in values.items():
        if _table(value):
            yield from _flat(value, f"{where}{name}.")
        else:
            yield f"{where}{name}", say(value)


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
