"""A folder of experts made alike, and the segments drawn from it.

library.json              exactly how they were made, with a digest every expert carries
whitening.safetensors     the whitening their images went through
expert_00000.safetensors  one trajectory each; it appears whole or not at all
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from trajmatch._version import __version__
from trajmatch.config import ExpertConfig, from_dict, to_dict
from trajmatch.data.whiten import Whitening, load_whitening
from trajmatch.errors import FileFormatError, MismatchError, SettingError
from trajmatch.experts.trajectory import Trajectory
from trajmatch.networks import NetworkSpec
from trajmatch.storage.files import read_json, write_json
from trajmatch.types import Float, Tensor

FORMAT = 1


class ExpertLibrary:
    """The experts of one folder, as they were when it was opened. Reads, never writes.

    Opening reads library.json and the folder's listing; an expert's header (0.1 ms) is read when it
    is first drawn and kept, its parameters never are: 100 experts of 50 epochs take about 5 MB.
    """

    def __init__(self, path: Path, found: Mapping[str, Any]) -> None:
        made = found["made"]
        self.path = path
        self.digest: str = found["digest"]
        self.seed: int | None = made["seed"]
        # Where experts of others come from: their seed and most settings are not known then.
        self.imported: str | None = made.get("imported")
        self._told: dict[str, Any] = made["settings"]
        self.data: dict[str, Any] = made["data"]
        self.spec = NetworkSpec.from_json(made["network"])
        self.experts = present(path)
        count = max(1, len(self.experts))
        self.settings = from_dict(ExpertConfig, {**made["settings"], "experts": count})
        self._whitening: dict[str, Any] = made["whitening"]
        self._opened: dict[int, Trajectory] = {}

    @classmethod
    def open(cls, path: str | Path) -> ExpertLibrary:
        """Raises FileFormatError when there is no library, or library.json was altered or newer."""
        path = Path(path)
        where = path / "library.json"
        if not where.is_file():
            raise FileFormatError(
                f"there is no expert library in {path} (no library.json); give the --out of "
                "`trajmatch experts`"
            )
        found = read_json(where)
        try:
            if found["format"] > FORMAT:
                raise FileFormatError(
                    f"{where} was written by a newer trajmatch (format {found['format']}, this one "
                    f"reads up to {FORMAT}); upgrade trajmatch"
                )
            if found["digest"] != digest(found["made"]):
                raise FileFormatError(
                    f"{where} was altered: it no longer says how its experts were made; restore it "
                    "or make the library again elsewhere"
                )
            return cls(path, found)
        except (KeyError, TypeError, SettingError) as error:
            raise FileFormatError(
                f"{where} does not describe an expert library ({error}); give the folder of one"
            ) from error

    @property
    def epochs(self) -> int:
        """Epochs every expert was trained for."""
        return self.settings.epochs

    @property
    def trajectory_count(self) -> int:
        return len(self.experts)

    @functools.cached_property
    def whitening(self) -> Whitening:
        """What the experts' images went through. MismatchError if the file is not theirs."""
        whitening = load_whitening(self.path / "whitening.safetensors")
        if whitening.checksum != self._whitening["checksum"]:
            raise MismatchError(
                f"{self.path}/whitening.safetensors is not the one these experts were trained with "
                f"(checksum {whitening.checksum}, not {self._whitening['checksum']}); restore it"
            )
        return whitening

    def index(self, expert: int) -> int:
        """The place of an expert's number in `experts`. Raises SettingError if it is absent."""
        if expert not in self.experts:
            raise SettingError(
                f"library {self.path} has no expert {expert}; it has {_ranges(self.experts)}"
            )
        return self.experts.index(expert)

    def first(self, count: int) -> ExpertLibrary:
        """The same library with its first `count` experts alone; it shares what was opened.

        Raises SettingError for a number that it does not hold.
        """
        if not 1 <= count <= len(self.experts):
            raise SettingError(
                f"library {self.path} holds {len(self.experts)} experts, not {count}; use 1 to "
                f"{len(self.experts)}, or train more"
            )
        part = copy.copy(self)
        part.experts = self.experts[:count]
        part.settings = dataclasses.replace(self.settings, experts=count)
        return part

    def trajectory(self, expert: int) -> Trajectory:
        """One expert's opened file. Raises MismatchError for a file of another library."""
        self.index(expert)
        if expert not in self._opened:
            found = Trajectory(expert_path(self.path, expert))
            theirs = (found.library, found.index, found.epochs)
            if theirs != (self.digest, expert, self.epochs):
                raise MismatchError(
                    f"{found.path} is expert {found.index} of another library; remove it and run "
                    f"`trajmatch experts --out {self.path}` again"
                )
            self._opened[expert] = found
        return self._opened[expert]

    def segment(
        self, expert: int, start: int, length: int, out: Float[Tensor, "2 params"] | None = None
    ) -> tuple[Float[Tensor, "params"], Float[Tensor, "params"]]:
        """Parameters of one expert after `start` epochs and `length` epochs later.

        Reads two rows: into `out`, contiguous float32 on the CPU, if there is one, else into fresh
        memory. 0.2 ms at 320,010 parameters, from the system's cache. Raises SettingError for an
        expert or an epoch that is not there, FileFormatError for an altered row.
        """
        if start < 0 or length < 1 or start + length > self.epochs:
            raise SettingError(
                f"the experts of {self.path} have {self.epochs} epochs, so there is no segment "
                f"from epoch {start} to {start + length}; use a smaller --max-start-epoch or "
                "--expert-epochs, or experts of more --epochs"
            )
        trajectory = self.trajectory(expert)
        first, last = (None, None) if out is None else out
        return trajectory.row(start, first), trajectory.row(start + length, last)

    def accuracy(self, split: Literal["val", "test"] = "test") -> dict[int, float | None]:
        """Percent right after the last epoch, per expert."""
        opened = {expert: self.trajectory(expert) for expert in self.experts}
        return {
            expert: found.test_accuracy if split == "test" else found.val_accuracy
            for expert, found in opened.items()
        }

    def verify(self) -> None:
        """Read and check every byte of every expert; raises at the first that is wrong."""
        assert self.whitening
        for expert in self.experts:
            self.trajectory(expert).verify()

    def summary(self) -> dict[str, Any]:
        """Plain values for a result or a page; accuracies are on the test split, sd with n - 1."""
        scores = [score for score in self.accuracy().values() if score is not None]
        settings = to_dict(self.settings)
        if self.imported:  # the defaults of what nobody knows are not how they were made
            settings = {name: settings[name] for name in ("experts", *self._told)}
        summary = {
            "path": str(self.path),
            "experts": len(self.experts),
            "epochs": self.epochs,
            "seed": self.seed,
            "network": self.spec.describe(),
            "parameters": self.spec.parameters(),
            "whitening": self._whitening["name"],
            "data": self.data,
            "settings": settings,
            "accuracy_mean": statistics.fmean(scores) if scores else None,
            "accuracy_sd": statistics.stdev(scores) if len(scores) > 1 else None,
            "n": len(scores),
            "bytes": sum(expert_path(self.path, e).stat().st_size for e in self.experts),
        }
        return {**summary, "imported": self.imported} if self.imported else summary


def open_experts(path: str | Path) -> ExpertLibrary:
    """Open a library that `train_experts` made; see ExpertLibrary."""
    return ExpertLibrary.open(path)


def write_library(
    path: Path, made: Mapping[str, Any], whitening: Whitening, **beside: Any
) -> ExpertLibrary:
    """Found a library in `path`, or write its library.json anew with the same `made`.

    made: seed, settings (as in ExpertConfig), network, whitening, data, and for experts of others
        `imported`, where they come from. Every expert's file carries the digest of all this.
    beside: further entries of library.json, which the digest does not cover.
    """
    if not (path / "library.json").exists():
        whitening.save(path / "whitening.safetensors")
    made = json.loads(json.dumps(made))  # as it will be read: no tuples
    versions = {"trajmatch": __version__, "torch": torch.__version__}
    document = {"format": FORMAT, "digest": digest(made), "made": made, "versions": versions}
    write_json(path / "library.json", {**document, **beside})
    return ExpertLibrary.open(path)


def expert_path(path: Path, expert: int) -> Path:
    """Where expert number `expert` of the library in `path` is kept."""
    return path / f"expert_{expert:05d}.safetensors"


def present(path: Path) -> list[int]:
    """The numbers of the experts whose files are in the folder, in order."""
    found = (re.fullmatch(r"expert_(\d{5,})\.safetensors", p.name) for p in path.iterdir())
    return sorted(int(match[1]) for match in found if match)


def digest(made: Mapping[str, Any]) -> str:
    """16 hex digits of how a library was made, as library.json says it."""
    text = json.dumps(made, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _ranges(numbers: list[int]) -> str:
    """`0-7, 9` for a sorted list; `none` for an empty one."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) or "none"
