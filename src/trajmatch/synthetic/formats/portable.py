"""A set for others: without the paths of the machine it was distilled on."""

from __future__ import annotations

import dataclasses
from typing import Any

from trajmatch.synthetic.set import SyntheticSet


def portable(distilled: SyntheticSet) -> SyntheticSet:
    """The same set with an `info` that names no local path: entries `path`, such as that of the
    experts' folder, are left out at every depth."""
    return dataclasses.replace(distilled, info=_without_paths(distilled.info))


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(part) for key, part in value.items() if key != "path"}
    return [_without_paths(part) for part in value] if isinstance(value, list) else value
