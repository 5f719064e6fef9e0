"""What an earlier run left in its folder, and the room on its disk."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trajmatch.config import DistillConfig, determining
from trajmatch.evaluation.batch import NEUTRAL_SETTINGS
from trajmatch.experts.library import present
from trajmatch.methods import Method, to_settings
from trajmatch.methods.checkpoint import checkpoint_iteration
from trajmatch.pipeline.recipe import Recipe
from trajmatch.storage import read_result
from trajmatch.storage.jsonl import jsonable

TABLES = ("data", "network", "experts", "distill", "evaluate")
UNDETERMINING = {*NEUTRAL_SETTINGS, "data_root", "iterations", "checkpoint_every", "experts"} - {
    "lr"
}
"""Settings that change how many networks are evaluated or how fast, not what each one scores."""


@dataclass(frozen=True)
class Room:
    """The disk that a run's experts are written to."""

    folder: str
    """Of the run."""
    stored: int
    """Bytes of its experts' files, those trained in part among them."""
    free: int | None
    """Bytes; None where the file system does not report them."""

    @classmethod
    def of(cls, out: Path, library: Path | None = None) -> Room:
        """Of the folder `out`, which need not exist yet. library: its experts (None: in it)."""
        library = (library or out / "experts").absolute()  # perhaps a link to another disk
        place = next(path for path in (library, *library.parents) if path.is_dir())
        total, _, free = shutil.disk_usage(place)
        stored = 0
        for path in library.glob("expert_*.safetensors"):
            with contextlib.suppress(FileNotFoundError):  # another process is filling the library
                stored += path.stat().st_size
        return cls(str(out), stored, free if total else None)


@dataclass(frozen=True)
class Done:
    """The part of a run that exists already and costs nothing."""

    experts: int = 0
    iterations: int = 0
    networks: int = 0
    """Networks that have tested each of the sets compared at the end."""
    room: Room | None = None
    """None: the disk is not checked."""

    @classmethod
    def of_experts(cls, out: Path) -> Done:
        """What is in the library `out`, which need not exist yet."""
        return cls(len(present(out)) if out.is_dir() else 0, room=Room.of(out, out))

    @classmethod
    def of(cls, out: Path, recipe: Recipe) -> Done:
        """What is in the folder `out` of a run of `recipe`. Raises FileFormatError for a damaged
        checkpoint."""
        library = out / "experts"
        experts = len(present(library)) if library.is_dir() else 0
        return cls(experts, checkpoint_iteration(out), _networks(out, recipe), Room.of(out))


_OPEN = {"optimizer", "ema", "skip_loss", "lr_log_step_size"}
"""Settings that a recipe may leave to the method, or that version 0.1 lacked."""


def _networks(out: Path, recipe: Recipe) -> int:
    """Networks that have tested each set; 0 for a run that has not ended, or of other settings."""
    try:
        result = read_result(out)
        if result["command"] != "run" or result["last_iteration"] < recipe.distill.iterations:
            return 0
        if not any(score["split"] == "test" for score in result["scores"]):
            return 0
        before, now = result["settings"], jsonable(recipe.to_dict())
        begun, wanted = (_determining(one, recipe.method) for one in (before, now))
        for name in _OPEN | {*recipe.method.calibrates}:
            if wanted["distill"].get(name) is None or name not in before["distill"]:
                for table in (begun["distill"], wanted["distill"]):
                    table.pop(name, None)
        if begun != wanted:
            return 0
        return int(before["evaluate"]["n"])
    except (LookupError, TypeError, ValueError, AttributeError):  # damaged, or of other settings
        return 0


def _determining(settings: Mapping[str, Any], method: Method) -> dict[str, Any]:
    """The settings that determine what the networks score.

    [distill] of version 0.1 holds settings of other methods, which are left out, and lacks newer
    ones, which had their defaults.
    """
    tables = {name: dict(settings[name]) for name in TABLES}
    tables["evaluate"] = determining(tables["evaluate"])
    defaults = jsonable(to_settings(DistillConfig(), type(method)()))
    tables["distill"] = {key: tables["distill"].get(key, defaults[key]) for key in defaults}
    rest = {
        name: {key: value for key, value in table.items() if key not in UNDETERMINING}
        for name, table in tables.items()
    }
    return {**rest, "seed": settings["seed"]}
