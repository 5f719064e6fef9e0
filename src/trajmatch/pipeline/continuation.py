"""What a run that is continued takes from its earlier calls: its experts, and its threads."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from trajmatch.errors import MismatchError
from trajmatch.experts import ExpertLibrary
from trajmatch.experts.library import numbers_in, ranges
from trajmatch.methods import Method
from trajmatch.methods.checkpoint import checkpoint_values
from trajmatch.runtime.progress import Progress
from trajmatch.runtime.resources import Resources


def as_begun(library: ExpertLibrary, out: Path) -> ExpertLibrary:
    """The experts that the run in `out` began with, of a library that has grown since; the library
    itself where there is no run of it, or where it was restricted to some experts.

    Raises MismatchError, with their numbers, where experts of the run are no longer there.
    """
    values = checkpoint_values(out)
    recorded = "" if values is None else str(values["origin"].get("experts"))
    match = re.fullmatch(r"(?:(\d+)|numbers ([\d, -]+)) of (\w+)", recorded)
    if library.restricted or match is None or match[3] != library.digest:
        return library
    return library.only(numbers_in(match[2]) if match[2] else list(range(int(match[1]))))


def as_calibrated(method: Method, out: Path) -> Method:
    """The method with the values that the run in `out` began with, where it leaves them to be
    calibrated; as it is where there is no run."""
    values = checkpoint_values(out)
    if values is None or values["origin"].get("method") != method.name:
        return method
    left = [name for name in method.calibrates if getattr(method, name) is None]
    begun = {name: values["origin"][name] for name in left if name in values["origin"]}
    return dataclasses.replace(method, **begun)


def experts_words(library: ExpertLibrary) -> str:
    """Which experts a run matches: `3 of DIGEST` of the first three, as version 0.1 wrote it."""
    count, numbers = len(library.experts), ranges(library.experts)
    first = library.experts == list(range(count))
    return f"{count if first else f'numbers {numbers}'} of {library.digest}"


def say_experts(library: ExpertLibrary | None, given: object, progress: Progress) -> None:
    """Say where a run matches, of the library that it was given, not all experts that there are,
    or that are planned."""
    if library is None or not isinstance(given, ExpertLibrary):
        return
    used, there, planned = len(library.experts), len(given.experts), given.planned or 0
    if used < there:
        progress.message(
            f"experts {ranges(library.experts)} of the {there} in {given.path} are matched: those "
            "the run began with"
        )
    elif there < planned and not given.restricted:
        progress.message(
            f"the library {given.path} is incomplete: {there} of {planned} planned experts are "
            f"there; {ranges(library.experts)} are matched, also when the run is continued"
        )


def threads_of(out: Path, resources: Resources, default: int) -> int:
    """The threads that a run computes with: sums are taken in another order with another number,
    so a run goes on with its own.

    Raises MismatchError where another number is asked for.
    """
    recorded = (checkpoint_values(out) or {"resolved": {}})["resolved"].get("threads")
    if recorded is None or not resources.on_cpu:
        return resources.threads or default
    if resources.threads not in (None, recorded):
        raise MismatchError(
            f"{out} holds a run with --threads {recorded} and this one has "
            f"{resources.threads}; leave --threads out to continue it, or give another --out"
        )
    return int(recorded)
