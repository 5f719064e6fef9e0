"""Lists of facts for the page: what a run cost, where its numbers come from, how it was set."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from trajmatch.methods import METHODS
from trajmatch.report.folder import RunFolder, is_number, mapping, optional
from trajmatch.units import duration, number, percent

_SHOWN = {
    "format", "command", "settings", "seed", "versions", "data", "scores", "started", "seconds",
    "device", "threads", "peak_memory_mb", "peak_memory_child_mb", "peak_memory_cuda_mb",
    "library", "network", "best_iteration", "last_iteration",
}  # fmt: skip
"""Entries of result.json that have a place of their own; others are listed with the settings."""


def cost(run: RunFolder) -> list[tuple[str, str]]:
    result, facts = run.result, []
    if is_number(result.get("seconds")):
        facts.append(("Time, all in all", duration(result["seconds"])))
    lines = run.by_step("loss").values()
    spent = [float(line["seconds"]) for line in lines if is_number(line.get("seconds"))]
    if spent:
        text = f"{duration(statistics.median(spent))} (median of {len(spent):,})"
        facts += [("One iteration", text), ("All iterations", duration(sum(spent)))]
    for name, key in (
        ("Peak memory", "peak_memory_mb"),
        ("Peak memory, child process", "peak_memory_child_mb"),
        ("Peak memory, GPU", "peak_memory_cuda_mb"),
    ):
        if is_number(result.get(key)):
            facts.append((name, f"{result[key]:,.0f} MB"))
    for name in ("device", "threads"):
        if result.get(name) is not None:
            facts.append((name.capitalize(), str(result[name])))
    return facts


def origin(run: RunFolder) -> list[tuple[str, str]]:
    """Where the numbers come from: data, experts, seed, versions."""
    result, facts = run.result, []
    data, library = mapping(result.get("data")), mapping(result.get("library"))
    if data:
        splits = [s for s in ("train", "val", "test") if isinstance(data.get(s), int)]
        counts = [f"{data[split]:,} {split}" for split in splits]
        facts.append(("Data", f"{data.get('name', 'unnamed')}: {', '.join(counts)} images"))
        if data.get("note"):
            facts.append(("Splits", str(data["note"])))
        facts.append(("Data fingerprint", str(data.get("fingerprint", "not recorded"))))
    if library:
        text = f"{library.get('experts', '?')} of {library.get('epochs', '?')} epochs"
        if is_number(library.get("accuracy_mean")):
            accuracy = percent(library["accuracy_mean"], optional(library.get("accuracy_sd")))
            text += f", accuracy {accuracy} % (n = {library.get('n', library.get('experts'))})"
        if isinstance(library.get("bytes"), int):
            text += f", {library['bytes'] / 1e6:,.1f} MB"
        maker = METHODS.get(str(run.setting("distill", "method")))
        name = "Experts" if maker is None or maker.needs_experts else "Experts (not matched)"
        facts += [(name, text), ("Expert library", str(library.get("path", "not recorded")))]
    if run.small is not None:
        facts.append(("Whitening", run.small.whitening.name))
    if run.small is not None and run.small.step_size is not None:
        fixed = run.setting("distill", "lr_lr") == 0
        name = "Step size, held fixed" if fixed else "Learned step size"
        facts.append((name, number(run.small.step_size, 4)))
    for name, key in (("Chosen iteration", "best_iteration"), ("Last iteration", "last_iteration")):
        if isinstance(result.get(key), int):
            facts.append((name, f"{result[key]:,}"))
    if result.get("seed") is not None:
        facts.append(("Seed", str(result["seed"])))
    if result.get("started"):
        facts.append(("Started", str(result["started"])))
    versions = mapping(result.get("versions"))
    if versions:
        facts.append(("Versions", ", ".join(f"{k} {v}" for k, v in versions.items())))
    return facts


def settings(run: RunFolder) -> list[tuple[str, list[tuple[str, str]]]]:
    """All settings by table; then what else the result records."""
    info = run.small.info if run.small is not None else {}
    values = mapping(run.result.get("settings")) or mapping(info.get("settings"))
    if run.command == "run":  # `methods` are settings of other runs of the recipe than this one
        values = {name: value for name, value in values.items() if name != "methods"}
    tables = [(name, list(_flat(value))) for name, value in values.items() if mapping(value)]
    plain = [(name, say(value)) for name, value in values.items() if not mapping(value)]
    rest = list(_flat({k: v for k, v in run.result.items() if k not in _SHOWN}))
    tables = ([("run", plain)] if plain else []) + tables
    return tables + ([("also recorded", rest)] if rest else [])


def _flat(values: Mapping[str, Any], where: str = "") -> Iterable[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{where}{name}.")
        else:
            yield f"{where}{name}", say(value)


def say(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(say, value)) or "none"
    return str(value)
