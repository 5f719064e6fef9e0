"""A folder of experts that were trained the same way, and the segments drawn from it.

library.json              how they were trained, with a digest that every expert's file repeats
whitening.safetensors     the whitening of their images
expert_00000.safetensors  one trajectory each, written by rename: complete or absent
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import re
import shlex
import statistics
from collections.abc import Mapping, Sequence
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
    """The experts that a folder held when it was opened, read-only.

    Opening reads library.json and lists the folder. An expert's header is read on first use (0.1
    ms) and stays in memory, its parameters do not: 100 experts of 50 epochs take about 5 MB.
    """

    def __init__(self, path: Path, document: Mapping[str, Any]) -> None:
        provenance = document["made"]
        self.path = path
        self.digest: str = document["digest"]
        self.planned: int | None = document.get("planned")
        """Experts there will be when it is filled; None where that was not recorded."""
        if not isinstance(self.planned, int | None):
            raise TypeError(f"planned is {self.planned!r} and not a number")
        self.seed: int | None = provenance["seed"]
        # The origin of imported experts, whose seed and most settings are unknown.
        self.imported: str | None = provenance.get("imported")
        self._known_settings: dict[str, Any] = provenance["settings"]
        self.data: dict[str, Any] = provenance["data"]
        self.spec = NetworkSpec.from_json(provenance["network"])
        self.experts = present(path)
        count = max(1, len(self.experts))
        self.settings = from_dict(ExpertConfig, {**provenance["settings"], "experts": count})
        self.restricted = False
        """Whether it was restricted to some of its experts."""
        self._whitening: dict[str, Any] = provenance["whitening"]
        self._opened: dict[int, Trajectory] = {}

    @classmethod
    def open(cls, path: str | Path) -> ExpertLibrary:
        """The library in `path`. Raises FileFormatError if there is none, or if its library.json
        was altered or written by a newer version."""
        path = Path(path)
        where = path / "library.json"
        if not where.is_file():
            raise FileFormatError(
                f"there is no expert library in {path} (no library.json); give the --out of "
                "`trajmatch experts` (train_experts)"
            )
        document = read_json(where)
        try:
            if document["format"] > FORMAT:
                raise FileFormatError(
                    f"{where} was written by a newer trajmatch (format {document['format']}, this "
                    f"one reads up to {FORMAT}); upgrade trajmatch"
                )
            if document["digest"] != digest(document["made"]):
                raise FileFormatError(
                    f"{where} was altered: it no longer says how its experts were made; restore it "
                    "or make the library again elsewhere"
                )
            return cls(path, document)
        except (KeyError, TypeError, SettingError) as error:
            raise FileFormatError(
                f"{where} does not describe an expert library ({error}); give the folder of one"
            ) from error

    def __repr__(self) -> str:
        parts = [f"{len(self.experts)} experts of {self.epochs} epochs", self.spec.describe()]
        parts += [str(self._whitening["name"]), str(self.data["name"])]
        return f"ExpertLibrary({str(self.path)!r}: {', '.join(parts)})"

    @property
    def epochs(self) -> int:
        """Epochs every expert was trained for."""
        return self.settings.epochs

    @property
    def trajectory_count(self) -> int:
        return len(self.experts)

    @functools.cached_property
    def whitening(self) -> Whitening:
        """The whitening of the experts' images. Raises MismatchError if the file holds another."""
        whitening = load_whitening(self.path / "whitening.safetensors")
        if whitening.checksum != self._whitening["checksum"]:
            raise MismatchError(
                f"{self.path}/whitening.safetensors is not the one these experts were trained with "
                f"(checksum {whitening.checksum}, not {self._whitening['checksum']}); restore it"
            )
        return whitening

    def index(self, expert: int) -> int:
        """The position of an expert's number in `experts`. Raises SettingError if it is absent."""
        try:
            return self.experts.index(expert)
        except ValueError:
            raise SettingError(
                f"library {self.path} has no expert {expert}; it has {ranges(self.experts)}"
            ) from None

    def first(self, count: int) -> ExpertLibrary:
        """The same library restricted to its first `count` experts; opened files are shared.

        Raises SettingError for more experts than there are, or none.
        """
        if not 1 <= count <= len(self.experts):
            raise SettingError(
                f"library {self.path} holds {len(self.experts)} experts, not {count}; use 1 to "
                f"{len(self.experts)}, or train more"
            )
        return self.only(self.experts[:count])

    def only(self, experts: Sequence[int]) -> ExpertLibrary:
        """The same library restricted to the experts of these numbers; opened files are shared.

        Raises MismatchError, with their names, for experts that are not there.
        """
        missing = sorted(set(experts) - set(self.experts))
        if missing or not experts:
            raise MismatchError(
                f"library {self.path} has no expert {ranges(missing)}; it has "
                f"{ranges(self.experts)}; restore {expert_path(self.path, min(missing, default=0))}"
            )
        part = copy.copy(self)
        part.experts = sorted(experts)
        part.settings = dataclasses.replace(self.settings, experts=len(part.experts))
        part.restricted = True
        return part

    def trajectory(self, expert: int) -> Trajectory:
        """One expert's file, opened once. Raises MismatchError for a file of another library."""
        self.index(expert)
        if expert not in self._opened:
            file = Trajectory(expert_path(self.path, expert))
            if (file.library, file.index, file.epochs) != (self.digest, expert, self.epochs):
                raise MismatchError(
                    f"{file.path} is expert {file.index} of another library; remove it and run "
                    f"`trajmatch experts --out {shlex.quote(str(self.path))}` again"
                )
            self._opened[expert] = file
        return self._opened[expert]

    def segment(
        self, expert: int, start: int, length: int, out: Float[Tensor, "2 params"] | None = None
    ) -> tuple[Float[Tensor, "params"], Float[Tensor, "params"]]:
        """Parameters of one expert after `start` epochs and `length` epochs later.

        Reads two rows, into `out` (contiguous float32 on the CPU) if it is given, else into new
        memory: 0.15 ms at 320,010 parameters, from the system's cache. Raises SettingError for an
        expert or an epoch that does not exist, FileFormatError for an altered row.
        """
        if start < 0 or length < 1 or start + length > self.epochs:
            raise SettingError(
                f"the experts of {self.path} have {self.epochs} epochs, so there is no segment "
                f"from epoch {start} to {start + length}; use a smaller --max-start-epoch or "
                "--expert-epochs, or experts of more --epochs"
            )
        first, last = self.trajectory(expert).rows((start, start + length), out)
        return first, last

    def accuracy(self, split: Literal["val", "test"] = "test") -> dict[int, float | None]:
        """Percent of the split classified correctly after the last epoch, by expert."""
        files = {expert: self.trajectory(expert) for expert in self.experts}
        return {
            expert: file.test_accuracy if split == "test" else file.val_accuracy
            for expert, file in files.items()
        }

    def verify(self) -> None:
        """Read and check every byte of every expert. Raises FileFormatError or MismatchError at the
        first that is wrong."""
        assert self.whitening
        for expert in self.experts:
            self.trajectory(expert).verify()

    def summary(self) -> dict[str, Any]:
        """Plain values for result.json and reports; accuracies are of the test split, the standard
        deviation is the sample's (n - 1)."""
        scores = [score for score in self.accuracy().values() if score is not None]
        settings = to_dict(self.settings)
        if self.imported:  # a default is not how an unknown setting was
            settings = {name: settings[name] for name in ("experts", *self._known_settings)}
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
        if self.experts != list(range(len(self.experts))):
            summary["numbers"] = ranges(self.experts)
        return {**summary, "imported": self.imported} if self.imported else summary


def open_experts(path: str | Path) -> ExpertLibrary:
    """Open the library that `train_experts` made in the folder `path`.

    Raises FileFormatError if there is none, or if it was altered.
    """
    return ExpertLibrary.open(path)


def write_library(
    path: Path, provenance: Mapping[str, Any], whitening: Whitening, **entries: Any
) -> ExpertLibrary:
    """Found a library in `path`, or rewrite its library.json with the same `provenance`.

    provenance: how the experts were made: seed, settings (as in ExpertConfig), network, whitening,
        data, and for imported experts `imported`, their origin. Every expert's file carries its
        digest.
    entries: further entries of library.json, which the digest does not cover.
    """
    if not (path / "library.json").exists():
        whitening.save(path / "whitening.safetensors")
    provenance = json.loads(json.dumps(provenance))  # as it will be read: no tuples
    versions = {"trajmatch": __version__, "torch": torch.__version__}
    document = {
        "format": FORMAT,
        "digest": digest(provenance),
        "made": provenance,
        "versions": versions,
    }
    write_json(path / "library.json", {**document, **entries})
    return ExpertLibrary.open(path)


def plan_experts(library: ExpertLibrary, count: int) -> None:
    """Note in library.json that the library will be filled to `count` experts."""
    place = library.path / "library.json"
    write_json(place, {**read_json(place), "planned": count})
    library.planned = count


def expert_path(path: Path, expert: int) -> Path:
    """The file of expert number `expert` of the library in `path`.

    Examples:
        >>> expert_path(Path("experts"), 7).name
        'expert_00007.safetensors'
    """
    return path / f"expert_{expert:05d}.safetensors"


def present(path: Path) -> list[int]:
    """The numbers of the experts whose files are in the folder, ascending."""
    matches = (re.fullmatch(r"expert_(\d{5,})\.safetensors", p.name) for p in path.iterdir())
    return sorted(int(match[1]) for match in matches if match)


def digest(provenance: Mapping[str, Any]) -> str:
    """16 hex digits of how a library was made (the entry `made` of library.json)."""
    text = json.dumps(provenance, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def ranges(numbers: Sequence[int]) -> str:
    """A sorted list as text; `numbers_in` reads it.

    Examples:
        >>> ranges([0, 1, 2, 5]), ranges([])
        ('0-2, 5', 'none')
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) or "none"


def numbers_in(text: str) -> list[int]:
    """The numbers in a text of `ranges`.

    Examples:
        >>> numbers_in("0-2, 5")
        [0, 1, 2, 5]
    """
    found: list[int] = []
    for part in text.split(", "):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found
